"""List the runs of all projects with their state: `python -m tools.antgo ls`."""

from __future__ import annotations

import argparse

from projects.book import Book
from projects.runs import present_state, settle
from projects.tables import score_text, table
from tools.datasets.verb import Verb
from tools.projects.flags import add_json, add_project, print_json, print_text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --project, --home and --json."""
    add_project(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Settle the runs that have ended, and list all; return 0. Raises UserError."""
    book = Book(args.home)
    names = book.names() if args.project is None else [book.name_of(args.project)]
    found = []
    for name in names:
        with book.changing(name) as project:
            for each in (run for runs in project.exp.values() for run in runs):
                settle(each)
                found.append((name, each))
    if args.json:
        return print_json(
            [{"project": name, **each.model_dump(), "state": present_state(each)} for name, each in found]
        )
    rows = [
        (name, each.exp, each.id, present_state(each) or "-", each.stage, score_text(each), each.finish_time or "-")
        for name, each in found
    ]
    return print_text(table(("project", "exp", "id", "state", "stage", "score", "finished"), rows))


VERB = Verb("ls", (__doc__ or "").splitlines()[0], add_flags, run, may_overwrite=False)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
