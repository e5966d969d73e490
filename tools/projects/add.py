"""Add product, baseline, experts and data to a project: `python -m tools.antgo add product --exp E`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from common.cli import number
from projects.book import check_known
from projects.data import find_data
from projects.errors import ProjectError
from projects.models import Data, Project, Run
from tools.projects.flags import add_project, print_text, project_of
from tools.projects.words import Words


def run_of(project: Project, args: argparse.Namespace) -> Run:
    """Return the run that --exp and --id name. Raises ProjectError."""
    check_known(args.exp, list(project.exp), "experiment", project.name)
    runs = {run.id: run for run in project.exp[args.exp]}
    return runs[check_known(args.id, list(runs), "run", f"{project.name}: {args.exp}")]


def data_list(project: Project, kind: str) -> list[Data]:
    """Return the project's list of data of a kind, "train/label" or "train/unlabel"."""
    train = project.dataset.train
    return train.label if kind == "train/label" else train.unlabel


def add_product(project: Project, args: argparse.Namespace) -> str:
    """Make an experiment the product; return what is told. Raises ProjectError."""
    project.product = check_known(args.exp, list(project.exp), "experiment", project.name)
    return f"product {project.product}"


def add_baseline(project: Project, args: argparse.Namespace) -> str:
    """Make a run the baseline; return what is told. Raises ProjectError."""
    project.baseline = run_of(project, args).name
    return f"baseline {project.baseline}"


def add_expert(project: Project, args: argparse.Namespace) -> str:
    """Add a run to the experts; return what is told. Raises ProjectError."""
    name = run_of(project, args).name
    if name in project.expert:
        raise ProjectError(f"{project.name}: {name} is an expert already")
    project.expert.append(name)
    return f"experts {', '.join(project.expert)}"


def adds_data(kind: str) -> Callable[[Project, argparse.Namespace], str]:
    """Return what adds data of a kind; of test and val there is one."""

    def add(project: Project, args: argparse.Namespace) -> str:
        data = find_data(args.tags, args.address, args.num)
        if kind in ("test", "val"):
            setattr(project.dataset, kind, data)
        else:
            known = data_list(project, kind)
            if data.tag in {each.tag for each in known}:
                raise ProjectError(f'{project.name}: {kind} has a tag "{data.tag}" already; del {kind} removes it')
            known.append(data)
        return f"{kind} {data.tag}: {data.num:,} samples at {data.address}"

    return add


def add_exp_flag(parser: argparse.ArgumentParser) -> None:
    """Add --exp."""
    add_project(parser)
    parser.add_argument("--exp", required=True, metavar="E", help="an experiment of the project")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add --exp and --id."""
    add_exp_flag(parser)
    parser.add_argument("--id", required=True, metavar="I", help="a run of the experiment, as `show exp` has it")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add --tags, --address and --num."""
    add_project(parser)
    parser.add_argument("--tags", required=True, metavar="T", help="a name for the data")
    what = "a pack without -tfrecord, such as packs/P-00000-of-00003, or a pattern, packs/P-*"
    parser.add_argument("--address", required=True, metavar="A", help=what)
    parser.add_argument("--num", type=number(0, 10**12), metavar="N", help="samples (default: as many as are counted)")


def changes(change: Callable[[Project, argparse.Namespace], str]) -> Callable[[argparse.Namespace], int]:
    """Return what runs a change of the project that the flags name, and tells it."""

    def run(args: argparse.Namespace) -> int:
        book, name = project_of(args)
        with book.changing(name) as project:
            told = change(project, args)
        return print_text(f"{name}: {told}")

    return run


VERB = Words(
    "add",
    {
        "product": ("The experiment that is shipped.", add_exp_flag, changes(add_product)),
        "baseline": ("The run to beat.", add_run_flags, changes(add_baseline)),
        "expert": ("A run that teaches the product.", add_run_flags, changes(add_expert)),
        **{
            kind: (f"Data of {kind}.", add_data_flags, changes(adds_data(kind)))
            for kind in ("train/label", "train/unlabel", "test", "val")
        },
    },
)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
