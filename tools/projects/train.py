"""Train an experiment here, entered into a project: `python -m tools.antgo train --exp E --project P`."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import named_path
from common.formatting import did_you_mean
from common.signals import Stopped
from projects.book import Book, check_known
from projects.errors import ProjectError
from projects.models import Project, Run
from projects.run_state import reported
from projects.runs import begin_run, code_state, settle
from projects.tables import score_text
from tools.child_programs import run_child
from tools.datasets.verb import Verb
from tools.projects.flags import add_home, print_text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("--exp", required=True, metavar="E", help="the experiment, whose folder is here")
    add("--project", metavar="P", help="enter the run into this project")
    add("--root", type=named_path, default=Path("output"), metavar="DIR", help="where runs lie (default output)")
    add("--gpu-id", default="0", metavar="N", help="0 (default), 0,1 for two GPUs, -1 for the CPU")
    add("--local", action="store_true", help="here and now, which it is anyway")
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
    words = [str(main), "--exp", Path(args.exp).name, "--process", "train", "--gpu-id", args.gpu_id]
    words += ["--checkpoint", str(args.checkpoint)] if args.checkpoint else []
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
        found = _found(project, begun.name)
        settle(found)
    print_text(f"{name}: {found.name} {found.state}, {score_text(found)}")
    if stopped is not None:
        raise stopped
    return exit_code


def _found(project: Project, name: str) -> Run:
    """Return a run that has been entered. Raises ProjectError where another command has taken it out meanwhile."""
    runs = {run.name: run for runs in project.exp.values() for run in runs}
    return runs[check_known(name, list(runs), "run", project.name)]


VERB = Verb("train", (__doc__ or "").splitlines()[0], add_flags, run, may_overwrite=False)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
