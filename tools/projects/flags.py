"""What the commands of projects share: their flags."""

from __future__ import annotations

import argparse
import json
import sys

from common.cli import named_path
from common.console import printable_lines
from projects.book import HOME, Book, check_known
from projects.errors import ProjectError
from projects.models import Run


def add_home(parser: argparse.ArgumentParser) -> None:
    """Add --home."""
    what = f"folder with the projects' files (default {HOME})"
    parser.add_argument("--home", type=named_path, default=HOME, metavar="DIR", help=what)


def add_project(parser: argparse.ArgumentParser) -> None:
    """Add --project and --home."""
    parser.add_argument("--project", metavar="P", help="the project; may be left out where there is one")
    add_home(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add --id, --project and --home."""
    parser.add_argument("--id", required=True, metavar="I", help="the run, as `ls` has it")
    parser.add_argument("--project", metavar="P", help="the project; may be left out where one alone has such a run")
    add_home(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def project_of(args: argparse.Namespace) -> tuple[Book, str]:
    """Return the book and the name of the project that the flags name. Raises ProjectError."""
    book = Book(args.home)
    return book, book.name_of(args.project)


def run_by_id(args: argparse.Namespace) -> tuple[str, Run]:
    """Return the run that --id names, with its project's name; of all projects where none is named.

    Raises ProjectError.
    """
    book = Book(args.home)
    names = book.names() if args.project is None else [book.name_of(args.project)]
    found = [(name, run) for name in names for runs in book.read(name).exp.values() for run in runs]
    check_known(args.id, [run.id for _, run in found], "run", args.project or str(args.home))
    named = [(name, run) for name, run in found if run.id == args.id]
    if len(named) > 1:
        raise ProjectError(f"{args.id}: it is a run of {', '.join(name for name, _ in named)}; name one with --project")
    return named[0]


def print_json(content: object) -> int:
    """Print a value as JSON; return 0."""
    json.dump(content, sys.stdout, ensure_ascii=False, indent=1)
    print()
    return 0


def print_text(text: str) -> int:
    """Print lines; return 0."""
    print(printable_lines(text))
    return 0
