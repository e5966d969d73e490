"""What the commands of projects share: their flags."""

from __future__ import annotations

import argparse
import json
import sys

from common.cli import named_path
from common.console import printable_lines
from projects.book import HOME, Book


def add_home(parser: argparse.ArgumentParser) -> None:
    """Add --home."""
    what = f"folder with the projects' files (default {HOME})"
    parser.add_argument("--home", type=named_path, default=HOME, metavar="DIR", help=what)


def add_project(parser: argparse.ArgumentParser) -> None:
    """Add --project and --home."""
    parser.add_argument("--project", metavar="P", help="the project; may be left out where there is one")
    add_home(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def project_of(args: argparse.Namespace) -> tuple[Book, str]:
    """Return the book and the name of the project that the flags name. Raises ProjectError."""
    book = Book(args.home)
    return book, book.name_of(args.project)


def print_json(content: object) -> int:
    """Print a value as JSON; return 0."""
    json.dump(content, sys.stdout, ensure_ascii=False, indent=1)
    print()
    return 0


def print_text(text: str) -> int:
    """Print lines; return 0."""
    print(printable_lines(text))
    return 0
