"""Unite files of standard annotations: `python -m tools.antgo label/merge --src A.json,B.json --tgt DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets.errors import DatasetError
from datasets.files import free_name, read_annotations, source_files, write_annotations
from datasets.merge import CONFLICTS, joint_details, merge, merged_records
from datasets.outcome import Outcome
from tools.datasets.verb import Verb, add_pictures, add_source, check_classes, finish


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "files or folders of annotations, with commas between")
    parser.add_argument("--tgt", "--to", required=True, type=Path, metavar="DIR", help="folder to write into")
    add_pictures(parser)
    what = "the same image with other labels: refuse (default), or which record counts"
    parser.add_argument("--conflict", choices=CONFLICTS, default=CONFLICTS[0], help=what)


def run(args: argparse.Namespace) -> int:
    """Merge the files; return the exit code. Raises UserError, OSError."""
    files = source_files(args.src)
    if len(files) < 2:
        raise DatasetError(f'--src "{args.src}" is one file; name those to unite, A.json,B.json')
    outcome = Outcome(args.overwrite)
    found = [read_annotations(file) for file in files]
    merged = merge(found, args.conflict, outcome)
    meta = check_classes(args.tgt, merged.category, args.overwrite) or {"meta": joint_details(found)}
    records = merged_records(merged, args.tgt, outcome, no_pictures=args.no_pictures)
    name = free_name(args.tgt, "annotation_merge")
    path = write_annotations(args.tgt, records, merged.category, meta, name=name)
    return finish(f"{path}: {len(records):,} records of {len(files)} files, {len(merged.category)} classes", outcome)


VERB = Verb("label/merge", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
