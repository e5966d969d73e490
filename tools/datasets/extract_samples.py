"""Draw a few records or lines of a file, and look at them: `python -m tools.antgo extract/samples --src F --num 3`."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from typing import Any

from common.atomic_io import write_atomic
from data_loader.samples import read_utf8
from datasets.errors import DatasetError
from datasets.files import check_target, read_annotations, write_records
from datasets.outcome import Outcome
from datasets.records import complete
from tools.datasets.verb import Verb, add_seed, add_source, check_source, finish


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "annotation.json, or a .txt list")
    add_seed(parser)
    parser.add_argument("--num", type=int, default=1, metavar="N", help="how many (default 1)")
    parser.add_argument("--feedback", action="store_true", help="print the total, the keys and the samples")


def run(args: argparse.Namespace) -> int:
    """Write the samples beside the source; return the exit code. Raises UserError, OSError."""
    source = check_source(args.src)
    is_list = source.suffix.lower() == ".txt"
    rows: Sequence[Any] = (
        [line for line in read_utf8(str(source)).split("\n") if line.strip()]
        if is_list
        else read_annotations(source).records
    )
    if not 1 <= args.num <= len(rows):
        raise DatasetError(f"--num must be from 1 to {len(rows)}, the entries of {source}, got {args.num}")
    path = source.with_name(f"{source.stem}_samples_{args.num}{'.txt' if is_list else '.json'}")
    check_target(path.parent, args.overwrite, path.name)
    indices = sorted(random.Random(args.seed).sample(range(len(rows)), args.num))
    chosen = [rows[index] for index in indices]
    if is_list:
        write_atomic(path, "".join(f"{line}\n" for line in chosen))
    else:
        write_records(path, chosen)
    if args.feedback:
        _show(rows, indices)
    return finish(f"{path}: {len(indices)} of {len(rows):,}", Outcome(args.overwrite))


def _show(rows: Sequence[Any], indices: Sequence[int]) -> None:
    print(f"total: {len(rows)}")
    if isinstance(rows[0], dict):
        for key, item in complete(rows[indices[0]]).items():
            print(f"  {key}: {type(item).__name__}")
    for index in indices:
        shown = rows[index] if isinstance(rows[index], str) else json.dumps(rows[index], ensure_ascii=False)
        print(f"{index}: {shown}")


VERB = Verb("extract/samples", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
