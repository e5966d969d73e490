"""Take product, baseline, experts and data out of a project: `python -m tools.antgo del expert --exp E --id I`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from projects.book import check_known
from projects.models import Project
from tools.projects.add import add_run_flags, changes, data_list
from tools.projects.flags import add_project
from tools.projects.words import Words


def delete_expert(project: Project, args: argparse.Namespace) -> str:
    """Take a run out of the experts, whether the project still has it or not. Raises ProjectError."""
    name = check_known(f"{args.exp}.{args.id}", project.expert, "expert", project.name)
    project.expert.remove(name)
    return f"{name} is no expert any more"


def clears(key: str) -> Callable[[Project, argparse.Namespace], str]:
    """Return what empties product or baseline."""

    def clear(project: Project, args: argparse.Namespace) -> str:
        setattr(project, key, "")
        return f"no {key}"

    return clear


def deletes_data(kind: str) -> Callable[[Project, argparse.Namespace], str]:
    """Return what takes data of a kind out; the data themselves stay."""

    def delete(project: Project, args: argparse.Namespace) -> str:
        if kind in ("test", "val"):
            setattr(project.dataset, kind, {})
            return f"no {kind} data"
        known = data_list(project, kind)
        tag = check_known(args.tags, [data.tag for data in known], "tag", f"{project.name}: {kind}")
        known[:] = [data for data in known if data.tag != tag]
        return f"{kind} without {tag}"

    return delete


def add_tags(parser: argparse.ArgumentParser) -> None:
    """Add --tags."""
    add_project(parser)
    parser.add_argument("--tags", required=True, metavar="T", help="the name of the data")


VERB = Words(
    "del",
    {
        "product": ("No product.", add_project, changes(clears("product"))),
        "baseline": ("No baseline.", add_project, changes(clears("baseline"))),
        "expert": ("A run that is no expert any more.", add_run_flags, changes(delete_expert)),
        **{
            kind: (f"Data of {kind}, by tag.", add_tags, changes(deletes_data(kind)))
            for kind in ("train/label", "train/unlabel")
        },
        **{kind: (f"The data of {kind}.", add_project, changes(deletes_data(kind))) for kind in ("test", "val")},
    },
)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
