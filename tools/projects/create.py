"""Create an experiment: `python -m tools.antgo create mvp --name mycls`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.datasets.verb import Verb
from tools.experiment.scaffold import create_experiment
from tools.projects.words import Words


def add_mvp_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `create mvp`."""
    parser.add_argument("--name", default="cifar10", metavar="NAME", help="the experiment's folder (default cifar10)")
    parser.add_argument("--tgt", type=Path, default=Path(), metavar="DIR", help="where to create it (default: here)")


def create_mvp(args: argparse.Namespace) -> int:
    """Write an experiment's tree; return 0. Raises UserError."""
    for path in create_experiment(args.name, args.tgt):
        print(path)
    return 0


VERB = Words(
    "create",
    {
        "mvp": Verb(
            "create mvp", "An experiment to start from, with CIFAR-10's recipe.", add_mvp_flags, create_mvp, False
        ),
    },
)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
