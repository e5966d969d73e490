"""Merge the shards of `inference.py --shard`: `python -m deploy.batch.merge --output results.csv`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import FlagParser, named_path, run_program
from common.formatting import counted

PROGRAM = "deploy.batch.merge"


def main(argv: Sequence[str] | None = None) -> int:
    """Merge; return the exit code: 0 every image has a prediction, 1 some failed, 2 shards are missing or differ."""
    parser = FlagParser(
        prog=f"python -m {PROGRAM}",
        description="Make one results file of the shards beside it, each image once. The shards stay.",
        allow_abbrev=False,
    )
    text = "the results file that inference.py --output named; its shards lie beside it"
    parser.add_argument("--output", metavar="F", type=named_path, required=True, help=text)
    args = parser.parse_args(argv)
    return run_program(PROGRAM, lambda: merge(args.output))


def merge(output: Path) -> int:
    """Merge, print how many images there are, and return the exit code. Raises UserError."""
    from deploy.batch.merging import merge_shards

    merged = merge_shards(output)
    if len(merged.runs_on) > 1:
        text = f"the shards ran on {' and '.join(merged.runs_on)}, whose scores differ by rounding"
        print(f"{PROGRAM}: note: {text}", file=sys.stderr)
    sums = f"{counted(merged.images)} of {counted(merged.shards, 'shard')}, each once"
    print(f"{sums}: {merged.images - merged.failed} answered, {merged.failed} failed; results in {output}")
    return 1 if merged.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
