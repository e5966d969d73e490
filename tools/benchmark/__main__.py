"""Measure this program beside others, in one run: `python -m tools.benchmark KIND`, of which --help has a list.

Every side does one round, then every side the next, so that changes of the machine's load affect all of them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence

from common.cli import run_program
from tools.benchmark.cli_args import make_parser
from tools.benchmark.peer_ages import check_peers
from tools.benchmark.peer_env import make_peers
from tools.benchmark.report import build_report, section, write_page

PROGRAM = "python -m tools.benchmark"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code, 2 for a mistake of the user's."""
    parser = make_parser()
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given)
    if not (args.command or args.make_peers or args.check_peers):
        parser.error("name a KIND, --make_peers DIR or --check_peers")
    if args.command not in (None, "page") and args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    return run_program(PROGRAM, lambda: run(args, f"{PROGRAM} {shlex.join(given)}"))


def run(args: argparse.Namespace, command: str) -> int:
    """Check the peers, make their environment, write the page, or measure; return 0. Raises UserError, OSError."""
    if args.check_peers:
        print("\n".join(check_peers()))
    if args.make_peers:
        make_peers(args.make_peers)
    if args.command == "page":
        write_page(args.reports)
    elif args.command:
        from tools.benchmark.statistics import describe_environment
        from tools.benchmark.suites import KINDS  # late: some of them import torch

        sets = KINDS[args.command](args)
        report = build_report(command, describe_environment(), sets)
        print(section(report))
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
