"""Measure this program beside others, in one run: `python -m tools.benchmark train|load|infer|pim|serve|simsiam|probe`.

Every side does a round, then every one the next: what the machine does in the meantime hits all alike.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence

from tools.benchmark.cli_args import make_parser
from tools.benchmark.peer_env import make_peers
from tools.benchmark.report import report_of, section, write_page

PROGRAM = "python -m tools.benchmark"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 2 for a mistake of the user's."""
    parser = make_parser()
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given)
    if not (args.command or args.make_peers):
        parser.error("name a KIND, or --make_peers DIR")
    try:
        if args.make_peers:
            make_peers(args.make_peers)
        if args.command == "page":
            write_page(args.reports)
        elif args.command:
            if args.rounds < 1:
                parser.error(f"--rounds must be at least 1, got {args.rounds}")
            from tools.benchmark.statistics import surroundings
            from tools.benchmark.suites import KINDS  # late: some of them import torch

            sets = KINDS[args.command](args)
            report = report_of(f"{PROGRAM} {shlex.join(given)}", surroundings(), sets)
            print(section(report))
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
