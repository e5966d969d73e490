"""Cut the objects of standard annotations out: `python -m tools.antgo extract/crop --src annotation.json --tgt DIR`."""

from __future__ import annotations

import argparse

from datasets.crop import crop_objects
from datasets.errors import DatasetError
from datasets.files import check_target, read_annotations
from datasets.outcome import Outcome
from tools.datasets.verb import Verb, add_source, add_target, check_elsewhere, check_source, finish_records


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "annotation.json")
    add_target(parser)
    what = "how much larger than the box's larger side a crop is (default 0.35)"
    parser.add_argument("--ext-ratio", type=float, default=0.35, metavar="R", help=what)
    parser.add_argument("--no-square", action="store_true", help="crops of the boxes' own shapes")


def run(args: argparse.Namespace) -> int:
    """Cut the objects out; return the exit code. Raises UserError, OSError."""
    if not 0 <= args.ext_ratio <= 10:
        raise DatasetError(f"--ext-ratio must be from 0 to 10, got {args.ext_ratio:g}")
    source = check_source(args.src)
    check_elsewhere(source, args.tgt)
    check_target(args.tgt, args.overwrite)
    found, outcome = read_annotations(source), Outcome(args.overwrite)
    crops = crop_objects(found, args.tgt, args.ext_ratio, is_square=not args.no_square, outcome=outcome)
    args.no_pictures = True  # they are written already
    return finish_records(args, list(crops), found.category, source.parent, outcome, found.meta)


VERB = Verb("extract/crop", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
