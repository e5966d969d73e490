"""List the runs of all projects with their state: `python -m tools.antgo ls`."""

from __future__ import annotations

import argparse
import sys

from common.console import printable
from projects.book import Book
from projects.runs import present_state
from projects.tables import score_text, table
from tools.datasets.verb import Verb
from tools.projects.flags import add_json, add_project, print_json, print_text
from tools.projects.watching import watch


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --project, --home and --json."""
    add_project(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Ask after the runs elsewhere, settle those that have ended, and list all; return 0. Raises UserError.

    1 where a machine was not reached, whose runs keep the state that was known.
    """
    book = Book(args.home)
    names = book.names() if args.project is None else [book.name_of(args.project)]
    problems: list[str] = []
    found = [(name, run) for name in names for run in watch(book, name, problems.append)]
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    code = 1 if problems else 0
    if args.json:
        print_json([{"project": name, **each.model_dump(), "state": present_state(each)} for name, each in found])
        return code
    rows = [
        (name, each.exp, each.id, present_state(each) or "-", each.stage, score_text(each), each.finish_time or "-")
        for name, each in found
    ]
    print_text(table(("project", "exp", "id", "state", "stage", "score", "finished"), rows))
    return code


VERB = Verb("ls", (__doc__ or "").splitlines()[0], add_flags, run, may_overwrite=False)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
