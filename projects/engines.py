"""What carries a job by its method: submitted, stopped, and its log, by programs that people have already."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from projects import remote_run
from projects.errors import ProjectError
from projects.jobs import CODE, MANIFEST, SCRIPT, SLURM, Job
from projects.jobs import FILE as FILE_OF_JOB
from projects.models import QUEUED, RUNNING, STOPPED
from projects.run_state import FILE, LOST_S, MARKS, read_state, write_state
from projects.shell import Shell
from projects.submitters import Script

COMPLETED = "COMPLETED"  # of SLURM
FAILED = "Failed"  # a condition of a TrainJob


def launch(job: Job, folder: Path, own: Script | None) -> str:
    """Submit a job whose folder is placed; return its handle, "" where there is none. Raises ProjectError."""
    return LAUNCH[job.method](job, folder, own)


def stop_job(job: Job, folder: Path, own: Script | None) -> None:
    """End a job, which saves before. Raises ProjectError."""
    state = read_state(folder)[0] if (folder / FILE).is_file() else QUEUED
    if job.method in ("ssh", "local", "skypilot"):
        if state != RUNNING:
            raise ProjectError(f"{job.exp}.{job.id} has not begun yet: try again in a while")
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        remote_run.stop(Shell(job.address), job, int(content["pid"]))
        return
    if job.method == "slurm":  # the batch script passes it on; a queued job has none yet
        words = ["scancel", *(["--batch", "--signal=TERM"] if state == RUNNING else [])]
        words.append(job.handle or f"--name={job.name}")
    elif job.method == "kubernetes":
        words = ["kubectl", "delete", "--wait=false", "-f", str(folder / MANIFEST)]
    else:
        words = _own_words(own, "stop", job)
    run_program(words, folder)
    if state == QUEUED:
        write_state(folder, STOPPED)


def ask_status(job: Job, folder: Path, own: Script | None) -> None:
    """Ask the user's own script how a job is, where it has no folder of its own to say it. Raises ProjectError."""
    words = run_program(_own_words(own, "status", job), folder).split()
    if not words or words[-1] not in (QUEUED, *MARKS):
        said = words[-1] if words else ""
        raise ProjectError(f'the script "status" must print {", ".join((QUEUED, *MARKS))}, got "{said}"')
    if words[-1] != QUEUED:
        write_state(folder, words[-1])


def has_vanished(job: Job, folder: Path) -> bool:
    """Return whether a job of which its folder says nothing will never begin, or is no more: cancelled, or forgotten.

    Raises ProjectError where what carries it does not answer.
    """
    if job.method == "slurm":
        return _is_gone_from_slurm(job, folder)
    if job.method == "kubernetes":
        return _is_gone_from_kubernetes(folder)
    # Here and over ssh a job begins at once; SkyPilot's machine and an own script's queue may take hours.
    has_begun = job.method not in ("ssh", "local") or (folder / FILE).is_file()
    return not has_begun and time.time() - (folder / FILE_OF_JOB).stat().st_mtime > LOST_S


def take_away(job: Job, folder: Path) -> None:
    """Take a manifest off the cluster, so that it can be submitted again; nothing elsewhere. Raises ProjectError."""
    if job.method == "kubernetes":
        run_program(["kubectl", "delete", "--ignore-not-found", "-f", MANIFEST], folder)


def follow_log(job: Job, own: Script | None) -> int:
    """Print a job's log, and what is added to it until it ends; return the exit code. Raises ProjectError."""
    if job.method == "script" and own is not None and own.log:
        return subprocess.call(_own_words(own, "log", job))
    return remote_run.follow(Shell(job.address), job)


def launch_words(job: Job, own: Script | None) -> list[str]:
    """Return the words that submit a job from its folder. Raises ProjectError."""
    if job.method == "script":
        if own is None:
            raise ProjectError("no script of your own is registered: submitter template, then submitter --config")
        run = shlex.join(["sh", f"{job.folder}/{SCRIPT}"])
        numbers = [str(job.gpus), str(job.cpus), f"{job.memory}M"]
        return ["bash", str(Path(own.folder, own.script).absolute()), job.image, run, *numbers]
    return {
        "slurm": ["sbatch", "--parsable", SLURM],
        "kubernetes": ["kubectl", "apply", "-f", MANIFEST],
        "skypilot": ["sky", "launch", "--yes", "--detach-run", "--cluster", job.name, MANIFEST],
    }[job.method]


def run_program(words: Sequence[str], folder: Path) -> str:
    """Run a program in a folder, and return what it prints. Raises ProjectError."""
    try:
        done = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError as error:
        hint = "install it, or read what would be submitted with --dry_run"
        raise ProjectError(f"{words[0]}: there is no such program here; {hint}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        last = said[-1] if said else "it said nothing"
        raise ProjectError(f"{shlex.join(words[:2])}: exit code {done.returncode}: {last}")
    return done.stdout


def _is_gone_from_slurm(job: Job, folder: Path) -> bool:
    """Return whether a job is no more in SLURM's queue; one that has completed says so in its folder."""
    if run_program(["squeue", "--noheader", "--me", "--format=%T", f"--name={job.name}"], folder).split():
        return False
    said: list[str] = []
    with suppress(ProjectError):  # accounting is not kept everywhere
        words = ["sacct", "--noheader", "--allocations", "--format=State", f"--jobs={job.handle}"]
        said = run_program(words, folder).split() if job.handle else []
    return said[:1] != [COMPLETED]


def _is_gone_from_kubernetes(folder: Path) -> bool:
    """Return whether a TrainJob was deleted, or has failed without saying so in its folder."""
    text = run_program(["kubectl", "get", "--ignore-not-found", "-o", "json", "-f", MANIFEST], folder)
    try:
        conditions = json.loads(text)["status"]["conditions"] if text.strip() else [{"type": FAILED, "status": "True"}]
        return any(each["type"] == FAILED and each["status"] == "True" for each in conditions)
    except (ValueError, KeyError, TypeError):  # it has no status yet
        return False


def _start(job: Job, folder: Path, own: Script | None) -> str:
    remote_run.start(Shell(job.address), job)
    return ""


def _submit(job: Job, folder: Path, own: Script | None) -> str:
    """Return the last line that the program prints, for SLURM the job's number."""
    inside = folder / CODE / job.place if job.method == "script" else folder
    lines = run_program(launch_words(job, own), inside).strip().splitlines()
    return (lines[-1].split(";")[0] if job.method == "slurm" else lines[-1]).strip() if lines else ""


def _own_words(own: Script | None, kind: str, job: Job) -> list[str]:
    script = str(getattr(own, kind)) if own is not None else ""
    if own is None or not script:
        raise ProjectError(f'the script of your own has no "{kind}": name one in its config, and register it again')
    return ["bash", str(Path(own.folder, script).absolute()), job.handle]


LAUNCH: dict[str, Callable[[Job, Path, Script | None], str]] = {
    "ssh": _start,
    "local": _start,
    **dict.fromkeys(("slurm", "script", "kubernetes", "skypilot"), _submit),
}
