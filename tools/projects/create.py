"""Create an experiment or a project: `python -m tools.antgo create mvp --name mycls`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from projects.book import Book
from projects.errors import ProjectError
from projects.models import Project
from tools.experiment.scaffold import check_name, create_experiment
from tools.projects.flags import add_home, add_project, print_text, project_of
from tools.projects.words import Words


def add_mvp_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `create mvp`."""
    parser.add_argument("--name", default="cifar10", metavar="NAME", help="the experiment's folder (default cifar10)")
    parser.add_argument("--tgt", type=Path, default=Path(), metavar="DIR", help="where to create it (default: here)")


def create_mvp(args: argparse.Namespace) -> int:
    """Write an experiment's tree; return 0. Raises UserError."""
    return print_text("\n".join(map(str, create_experiment(args.name, args.tgt))))


def add_project_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `create project`."""
    parser.add_argument("--git", required=True, metavar="URL", help="where the project's code lies")
    parser.add_argument("--name", metavar="N", help="the project's name (default: the end of the URL without .git)")
    parser.add_argument("--image", default="", metavar="I", help="the container image of its jobs")
    parser.add_argument("--auto", action="store_true", help="let the loop look at it")
    add_home(parser)


def create_project(args: argparse.Namespace) -> int:
    """Write a project's file; return 0. Raises UserError."""
    name = args.name if args.name is not None else re.split(r"[/:]", args.git.rstrip("/"))[-1].removesuffix(".git")
    path = Book(args.home).create(Project(name=name, git=args.git, image=args.image, auto=args.auto))
    return print_text(str(path))


def add_exp_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `create exp`."""
    add_project(parser)
    parser.add_argument("--name", required=True, metavar="E", help="the experiment, and its folder")
    parser.add_argument("--tgt", type=Path, default=Path(), metavar="DIR", help="where its folder is (default: here)")


def create_exp(args: argparse.Namespace) -> int:
    """Enter an experiment into a project, and create its folder where there is none; return 0. Raises UserError."""
    book, name = project_of(args)
    with book.changing(name) as project:
        if check_name(args.name) in project.exp:
            raise ProjectError(f'{name}: it has an experiment "{args.name}" already')
        if not (args.tgt / args.name).is_dir():
            create_experiment(args.name, args.tgt)
        project.exp[args.name] = []
    return print_text(f"{name}: experiment {args.name} in {args.tgt / args.name}")


VERB = Words(
    "create",
    {
        "mvp": ("An experiment to start from, with CIFAR-10's recipe.", add_mvp_flags, create_mvp),
        "project": ("A project's file.", add_project_flags, create_project),
        "exp": ("An experiment of a project, and its folder.", add_exp_flags, create_exp),
    },
)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
