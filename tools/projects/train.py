"""Train an experiment, here or as a job elsewhere: `python -m tools.antgo train --exp E --project P --ssh`."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import named_path
from common.formatting import did_you_mean
from common.signals import Stopped
from projects.book import Book, check_known
from projects.errors import ProjectError
from projects.run_state import reported
from projects.runs import begin_run, code_state, find_run, settle
from projects.tables import score_text
from tools.child_programs import run_child
from tools.datasets.verb import Verb
from tools.projects.flags import add_home, print_text
from tools.projects.submit import METHODS, go_on, method_of, submit


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("--exp", required=True, metavar="E", help="the experiment, whose folder is here")
    add("--project", metavar="P", help="enter the run into this project")
    add("--root", type=named_path, default=Path("output"), metavar="DIR", help="where runs lie (default output)")
    add("--gpu-id", metavar="N", help="0 (default), 0,1 for two GPUs, -1 for the CPU; of a job, the project's number")
    methods = parser.add_mutually_exclusive_group()
    for method, what in METHODS.items():
        methods.add_argument(f"--{method}", dest="method", action="store_const", const=method, help=f"as a job {what}")
    add("--dirty", action="store_true", help="of a job: send changes that are not committed, and record them")
    add("--dry-run", action="store_true", help="of a job: print what would be done")
    add("--resume", action="store_true", help="let the job of --id go on from its last checkpoint")
    add("--id", metavar="I", help="of --resume: the run")
    add("--config", type=named_path, metavar="F", help="the recipe (default configs/config.json of the experiment)")
    add("--stage", default="supervised", metavar="S", help="what kind of training it is (default supervised)")
    add("--checkpoint", type=named_path, metavar="F", help="start from the weights of this checkpoint")
    add("flags", nargs="*", metavar="-- FLAGS", help="further flags of the experiment's main.py, after --")
    add_home(parser)


def run(args: argparse.Namespace) -> int:
    """Train; return the training's exit code. Raises UserError."""
    main = Path(args.exp) / "main.py"
    if not main.is_file():
        known = [path.parent.name for path in Path().glob("*/main.py")]
        raise ProjectError(
            f"{main}: the experiment is not here{did_you_mean(args.exp, known)} (current folder {Path.cwd()})"
        )
    if args.resume or args.id:
        if not (args.resume and args.id):
            raise ProjectError("name the run that is to go on with --resume and --id")
        return go_on(args, Book(args.home).name_of(args.project))
    book = Book(args.home)
    method = args.method or (method_of(book, book.name_of(args.project)) if args.project is not None else None)
    if method:
        return submit(args, book.name_of(args.project), method)
    if args.dirty or args.dry_run:
        raise ProjectError("--dirty and --dry_run are for jobs; add --local, --ssh or another method")
    words = [str(main), "--exp", Path(args.exp).name, "--process", "train", "--gpu-id", args.gpu_id or "0"]
    for flag in ("config", "checkpoint"):
        words += [f"--{flag}", str(getattr(args, flag))] if getattr(args, flag) else []
    if args.project is None:
        return run_child([*words, "--root", str(args.root), *args.flags])
    return _train_in_project(args, words)


def _train_in_project(args: argparse.Namespace, words: list[str]) -> int:
    """Enter a run, train, and enter how it has ended."""
    book, code = Book(args.home), code_state(Path.cwd())
    name = book.name_of(args.project)
    with book.changing(name) as project:
        check_known(args.exp, list(project.exp), "experiment", name)
        begun = begin_run(project, args.exp, args.stage, args.root.absolute() / name, code)
    stopped: Stopped | None = None
    with reported(Path(begun.root)) as ended:
        print_text(f"{name}: {begun.name} in {begun.root}")
        try:
            exit_code = run_child([*words, "--root", begun.root, *args.flags])
        except Stopped as error:
            stopped, exit_code = error, error.exit_code
        ended(exit_code)
    with book.changing(name) as project:
        found = find_run(project, begun.id)
        settle(found)
    print_text(f"{name}: {found.name} {found.state}, {score_text(found)}")
    if stopped is not None:
        raise stopped
    return exit_code


VERB = Verb("train", (__doc__ or "").splitlines()[0], add_flags, run, may_overwrite=False)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
