"""`python -m tools.soak --weights F`: the service under sustained load, overload, hostile clients and signals.

Each trial prints its measurements beside their limits; the exit code is 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from common.cli import FlagParser, run_program
from tools.soak.trials import TRIALS

PROGRAM = "python -m tools.soak"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials, and return the exit code: 0, 1 if a limit is exceeded, or 2 for a mistake of the user's."""
    parser = FlagParser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--weights", metavar="F", type=Path, required=True, help="a checkpoint, or any export of it")
    add("--minutes", metavar="N", type=float, default=30.0, help="of the soak trial (default 30)")
    add("--seconds", metavar="N", type=float, default=20.0, help="of each other trial (default 20)")
    add("--trials", nargs="+", choices=tuple(TRIALS), default=list(TRIALS), help="default all")
    add("--service_flags", metavar="TEXT", default="", help='further flags of the service, e.g. "--queue 32"')
    add("--json", metavar="F", type=Path, help="also write the findings")
    args = parser.parse_args(argv)
    return run_program(PROGRAM, lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    findings = []
    for name in args.trials:
        for finding in TRIALS[name](args):
            sign = "ok    " if finding.is_within() else "FAILED"
            print(
                f"{sign} {finding.trial:9} {finding.what}: {finding.figure:.4g} (at most {finding.limit:.4g})",
                flush=True,
            )
            findings.append(finding)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n", encoding="utf-8")
    return 0 if all(finding.is_within() for finding in findings) else 1


if __name__ == "__main__":
    gc.disable()  # collecting the garbage of half an hour would delay requests, and then send them all at once
    raise SystemExit(main())
