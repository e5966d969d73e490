"""Show projects, their runs and the best: `python -m tools.antgo show project`."""

from __future__ import annotations

import argparse

from projects.book import Book
from projects.models import Run
from projects.tables import project_text, projects_table, runs_table, table
from tools.projects.flags import add_json, add_project, print_json, print_text, project_of
from tools.projects.words import Words


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --project, --home and --json."""
    add_project(parser)
    add_json(parser)


def show_project(args: argparse.Namespace) -> int:
    """Show one project, or a line for each; return 0. Raises ProjectError."""
    book = Book(args.home)
    if args.project is None:
        projects = [book.read(name) for name in book.names()]
        return print_json([each.values() for each in projects]) if args.json else print_text(projects_table(projects))
    project = book.read(book.name_of(args.project))
    return print_json(project.values()) if args.json else print_text(project_text(project))


def show_exp(args: argparse.Namespace) -> int:
    """Show the runs of a project; return 0. Raises ProjectError."""
    book, name = project_of(args)
    project = book.read(name)
    return print_json(project.values()["exp"]) if args.json else print_text(runs_table(project))


def show_best(args: argparse.Namespace) -> int:
    """Show the best run of a project; return 0. Raises ProjectError."""
    book, name = project_of(args)
    project = book.read(name)
    if args.json:
        return print_json(project.values()["best"])
    best = project.best
    if not isinstance(best, Run):
        return print_text(f"{name}: no run has become the best yet")
    score = [(key, value) for key, value in best.metric.get("score", {}).items()]
    return print_text(f"{best.name}  {best.checkpoint}\n{table(('score', ''), score)}")


VERB = Words(
    "show",
    {
        "project": ("All projects, or one with its last decisions.", add_flags, show_project),
        "exp": ("The runs of a project.", add_flags, show_exp),
        "best": ("The best run of a project.", add_flags, show_best),
    },
)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
