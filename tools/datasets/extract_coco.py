"""Turn a COCO file into standard annotations: `python -m tools.antgo extract/coco --src F.json --tgt DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets.coco import coco_records, read_coco_records
from datasets.files import check_target
from datasets.outcome import Outcome
from datasets.tags import parse_tags
from tools.datasets.verb import (
    Verb,
    add_pictures,
    add_source,
    add_tags,
    add_target,
    check_elsewhere,
    check_source,
    finish_records,
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "COCO's JSON file")
    add_target(parser)
    add_tags(parser, "the categories to keep, with their new indices; several may share one")
    add_pictures(parser)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (the JSON's)")
    parser.add_argument("--keep-empty", action="store_true", help="keep images without objects")
    parser.add_argument("--image-label", action="store_true", help="images of one class get it as their own")


def run(args: argparse.Namespace) -> int:
    """Convert the file; return the exit code. Raises UserError, OSError."""
    file = check_source(args.src)
    check_elsewhere(file, args.tgt)
    check_target(args.tgt, args.overwrite)
    tags = parse_tags(args.tags, may_share=True) if args.tags else {}
    outcome = Outcome(args.overwrite)
    found = read_coco_records(file, tags, outcome)
    images = args.images or file.parent
    records = coco_records(found, images, outcome, keep_empty=args.keep_empty, image_label=args.image_label)
    return finish_records(args, records, found.category, images, outcome, {"meta": found.details})


VERB = Verb("extract/coco", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
