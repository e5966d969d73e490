"""Turn a folder of images into standard annotations: `python -m tools.antgo extract/images --src DIR --tgt DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets.errors import DatasetError
from datasets.files import ANNOTATION, check_target, write_annotations
from datasets.images import (
    ImageChoice,
    check_folders,
    check_side,
    choose_images,
    extract_images,
    label_by_folder,
    parse_endings,
)
from datasets.outcome import Outcome
from tools.datasets.verb import Verb, add_seed, add_source, add_target, finish


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "folder with images at any depth")
    add_target(parser)
    add_seed(parser)
    parser.add_argument("--prefix", default="", help="beginning of the names without ending")
    parser.add_argument("--suffix", default="", help="end of the names without ending")
    parser.add_argument("--ext", default="", metavar="jpg,png", help="endings (all that are known)")
    parser.add_argument("--shuffle", action="store_true", help="in random order")
    parser.add_argument("--num", type=int, default=0, metavar="N", help="so many images (0: all)")
    parser.add_argument("--max-size", type=int, default=0, metavar="PX", help="shrink to this longer side (0: no)")
    parser.add_argument("--labels", choices=("none", "folders"), default="none", help="folders: the first is the class")


def run(args: argparse.Namespace) -> int:
    """Extract the images; return the exit code. Raises UserError, OSError."""
    source = Path(args.src)
    check_folders(source, args.tgt)
    check_target(args.tgt, args.overwrite)
    check_side(args.max_size)
    choice = ImageChoice(args.prefix, args.suffix, parse_endings(args.ext), args.shuffle, max(0, args.num), args.seed)
    paths = choose_images(source, choice)
    outcome = Outcome(args.overwrite)
    records = list(extract_images(source, args.tgt, paths, args.max_size, outcome))
    if not records:
        finish(f"{source}: no record", outcome)
        raise DatasetError(f"--src {source}: none of its {len(paths)} images can be read; nothing was written")
    category = label_by_folder(records, paths) if args.labels == "folders" else []
    write_annotations(args.tgt, records, category)
    classes = f", {len(category)} classes" if category else ""
    return finish(f"{args.tgt / ANNOTATION}: {len(records):,} records{classes}", outcome)


VERB = Verb("extract/images", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
