"""Turn images with YOLO txt files into standard annotations: `tools.antgo extract/yolo --src DIR --tgt DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets.annotation_folders import YOLO, folder_records, read_folder
from datasets.files import check_target
from datasets.images import check_folders
from datasets.outcome import Outcome
from datasets.tags import category_of_tags, parse_tags
from tools.datasets.verb import Verb, add_pictures, add_source, add_tags, add_target, finish_records


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "folder with images/ and labels/, or with both in one")
    add_target(parser)
    add_tags(parser, "the classes to keep, with their new indices; several may share one")
    add_pictures(parser)


def run(args: argparse.Namespace) -> int:
    """Convert the folder; return the exit code. Raises UserError, OSError."""
    source = Path(args.src)
    check_folders(source, args.tgt)
    check_target(args.tgt, args.overwrite)
    found = read_folder(source, YOLO, parse_tags(args.tags, may_share=True) if args.tags else {})
    outcome = Outcome(args.overwrite)
    records = folder_records(source, found, outcome)
    return finish_records(args, records, category_of_tags(found.labels) if found.labels else [], source, outcome)


VERB = Verb("extract/yolo", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
