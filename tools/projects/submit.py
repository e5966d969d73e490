"""Submits a run of an experiment, shows what would be submitted, or lets a run go on."""

from __future__ import annotations

import argparse
from pathlib import Path, PurePosixPath

from common.atomic_io import write_atomic, writing
from projects import remote_run
from projects.book import Book, check_known
from projects.code_archive import check_code, read_code, trainer_code
from projects.engines import launch, take_away
from projects.errors import ProjectError
from projects.jobs import CONFIG, FILE, SETUP, START, Job, Method, read_job
from projects.models import QUEUED, RUNNING, STOPPED, Project
from projects.run_state import FILE as STATE
from projects.runs import begin_run, code_state, find_run, present_state
from projects.sending import Sent, plan, shown
from projects.shell import Shell
from projects.submitters import Address, Registered, read_registered
from tools.projects.flags import print_text
from tools.projects.watching import refresh

ARCHIVE = "sent.tar.gz"
SKY_FOLDER = "sky_workdir"  # SkyPilot's
METHODS = {
    "ssh": "on the machine that submitter has",
    "slurm": "by sbatch",
    "local": "here, in the background",
    "kubernetes": "on a cluster with Kubeflow Trainer",
    "skypilot": "on machines that SkyPilot rents",
}


def method_of(book: Book, name: str) -> Method | None:
    """Return how a project's jobs run where no flag says it: as it is set, by one's own script, or none, here.

    Raises ProjectError.
    """
    method = book.read(name).submitter.method
    if method:
        return check_known(method, list(METHODS), "method", f"{name}: submitter")  # type: ignore[return-value]
    return "script" if read_registered(book.home).own else None


def submit(args: argparse.Namespace, name: str, method: Method, cause: str = "") -> int:
    """Submit a run and print its id, or show what would be submitted; return 0. Raises UserError.

    `cause` is what the loop submits it for.
    """
    book, registered = Book(args.home), read_registered(args.home)
    project = book.read(name)
    check_known(args.exp, list(project.exp), "experiment", name)
    here = Path.cwd().resolve()
    code, state = read_code(here, [args.home, args.root]), code_state(here)
    check_code(code, dirty=args.dirty)
    if f"{(here / args.exp).relative_to(code.folder).as_posix()}/main.py" not in code.files:
        raise ProjectError(f"{args.exp}/main.py: git ignores it, so it would not be sent")
    root = _root(args, method, registered) / name
    if args.dry_run:
        run = begin_run(project, args.exp, args.stage, root, state)
    else:
        with book.changing(name) as project:
            run = begin_run(project, args.exp, args.stage, root, state, cause)
            run.state = QUEUED
    job = _job(args, project, run.id, method, registered, Path(run.root))
    job.place = here.relative_to(code.folder).as_posix()
    try:
        sent = plan(job, code, trainer_code(), registered, state, _files(args, method, registered))
        if args.dry_run:
            return print_text(shown(sent, registered))
        _send(sent, Path(run.root), registered)
    except BaseException:
        if not args.dry_run:
            with book.changing(name) as project:
                find_run(project, run.id).state = STOPPED
        raise
    return print_text(f"{name}: {run.name} submitted by {method}\n{run.id}")


def go_on(args: argparse.Namespace, name: str) -> int:
    """Submit a run that has ended or is lost again, in its folder: it goes on from its last checkpoint; return 0."""
    book, registered = Book(args.home), read_registered(args.home)
    run = find_run(book.read(name), args.id)
    folder = Path(run.root)
    given = [flag for flag in ("method", "dirty", "config", "checkpoint", "gpu_id", "flags") if getattr(args, flag)]
    if given:
        raise ProjectError("--resume goes on with what was sent; leave all flags out but --exp, --project and --id")
    if not (folder / FILE).is_file():
        raise ProjectError(f"{name}: {run.name} is no job that was sent; main.py --resume-from goes on with it here")
    job = read_job(folder)
    refresh(run, args.home)
    if present_state(run) == RUNNING:
        raise ProjectError(f"{name}: {run.name} is running")
    if args.dry_run:
        return print_text(f"{name}: {run.name} would go on by {job.method}, in {job.folder}")
    _launch_again(job, folder, registered)
    with book.changing(name) as project:
        found = find_run(project, args.id)
        found.state, found.finish_time = QUEUED, ""
    return print_text(f"{name}: {run.name} goes on by {job.method}\n{run.id}")


def _launch_again(job: Job, folder: Path, registered: Registered) -> None:
    """Submit a job anew: what its folder here said until now is forgotten, unless it cannot be submitted."""
    state = folder / STATE
    before = state.read_bytes() if state.is_file() else b""
    state.unlink(missing_ok=True)
    try:
        take_away(job, folder)
        _launch(job, folder, registered)
    except BaseException:
        if before:
            write_atomic(state, before)
        raise


def _root(args: argparse.Namespace, method: Method, registered: Registered) -> Path:
    """Return the folder of the projects' runs here. Raises ProjectError for a method that is not registered."""
    if method == "ssh":
        registered.selected_ssh()
    elif method == "script" and registered.own is None:
        raise ProjectError("no script of your own is registered: submitter template, then submitter --config F")
    elif method in ("kubernetes", "skypilot") and getattr(registered, method) is None:
        raise ProjectError(
            f"{method} is not registered: submitter template --{method}, then submitter update --{method}"
        )
    if method == "kubernetes" and registered.kubernetes:
        return Path(registered.kubernetes.folder)
    root: Path = args.root.absolute()
    return root


def _job(
    args: argparse.Namespace, project: Project, run_id: str, method: Method, registered: Registered, folder: Path
) -> Job:
    asked = project.submitter
    gpu_id = args.gpu_id or ",".join(map(str, range(asked.gpu_num))) or "0"
    checked = Job(
        project=project.name,
        exp=args.exp,
        id=run_id,
        method=method,
        place="",
        words=["--exp", args.exp, "--process", "train", "--gpu-id", gpu_id, *args.flags],
        folder=str(folder),
        gpus=0 if gpu_id == "-1" else len(gpu_id.split(",")),
        cpus=asked.cpu_num,
        memory=asked.memory,
        image=project.image,
    )
    if method == "ssh":
        machine = registered.selected_ssh()
        base = PurePosixPath(machine.config.folder.removeprefix("~/") or ".")
        checked.address, checked.image = machine.config, machine.image or project.image
        checked.folder = str(base / project.name / run_id)
    elif method == "skypilot":
        checked.address, checked.folder = Address(ip=checked.name), SKY_FOLDER
    return checked


def _files(args: argparse.Namespace, method: Method, registered: Registered) -> dict[str, Path]:
    """Return the files of flags and of the submitter, by the names that they are sent under."""
    submitter = registered.selected_ssh() if method == "ssh" else getattr(registered, method, None)
    setup = str(getattr(submitter, "script", ""))
    wanted = {CONFIG: args.config, START: args.checkpoint, SETUP: Path(setup) if setup else None}
    return {name: path for name, path in wanted.items() if path is not None}


def _send(sent: Sent, folder: Path, registered: Registered) -> None:
    """Place a job's folder and submit it; keep here what was sent. Raises ProjectError, ResultsError."""
    job, content = sent.job, sent.pack()
    if job.method == "ssh":
        with writing(folder):
            folder.mkdir(parents=True)
            for name, text in sent.record().items():
                write_atomic(folder / name, text)
            if sent.code.changed:
                write_atomic(folder / ARCHIVE, content)
        remote_run.place(Shell(job.address), job.folder, content)
    else:
        remote_run.place(Shell(), str(folder), content)
    _launch(job, folder, registered)


def _launch(job: Job, folder: Path, registered: Registered) -> None:
    handle = launch(job, folder, registered.own)
    with writing(folder):  # in any case: its time says when the job was launched
        write_atomic(folder / FILE, job.model_copy(update={"handle": handle}).text())
