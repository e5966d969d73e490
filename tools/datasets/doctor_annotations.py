"""Look for what would spoil a training in standard annotations and their images: each file of --src is a split.

The first is the training's. The exit code is 1 where a problem was found.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from common.atomic_io import check_folder, write_atomic
from common.formatting import counted
from data_loader.preprocess import Preprocess
from data_loader.samples import ListError
from datasets.files import read_annotations, source_files
from datasets.records import value
from tools.datasets.verb import Verb, add_source
from tools.doctor.annotations import SHOWN, AnnotationFinding, AnnotationStudy, check_annotations
from tools.doctor.checks import PROBLEM
from tools.doctor.scan import scan

SIDE_PX = 64  # that images are fitted to, for sums that are not used here
REPORT = "doctor.json"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "files of annotations, with commas between: train.json,val.json")
    parser.add_argument("--tgt", type=Path, metavar="DIR", help=f"folder for {REPORT}, which has everything")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read images (default 2)")


def run(args: argparse.Namespace) -> int:
    """Print what was found, and write it; return 1 where there is a problem. Raises UserError, OSError."""
    if args.tgt:
        check_folder(args.tgt)
    wrong: list[str] = []
    files = []
    for path in source_files(args.src):
        of_file: list[str] = []
        files.append(read_annotations(path, of_file))
        wrong += [f"{path}: {sentence}" for sentence in of_file]
    paths = [str(file.folder / value(record, "image_file")) for file in files for record in file.records]
    if not paths and not wrong:
        raise ListError([f"--src {args.src}: no record in it"])
    images = scan(paths, len(paths), Preprocess(SIDE_PX, SIDE_PX), max(0, args.workers))
    findings = check_annotations(AnnotationStudy(files, wrong, images))
    for finding in findings:
        print(_text(finding))
    counts = [counted(len(paths), "record"), counted(len(files), "file"), counted(len(findings), "finding")]
    print(f"{counts[0]} in {counts[1]}, {counts[2]}")
    if args.tgt:
        args.tgt.mkdir(parents=True, exist_ok=True)
        content = {"records": len(paths), "findings": [asdict(finding) for finding in findings]}
        write_atomic(args.tgt / REPORT, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return int(any(finding.level == PROBLEM for finding in findings))


def _text(finding: AnnotationFinding) -> str:
    more = [f"  ... and {len(finding.names) - SHOWN} more"] if len(finding.names) > SHOWN else []
    lines = [f"{finding.level}: {finding.text}", *(f"  {name}" for name in finding.names[:SHOWN]), *more]
    return "\n".join(lines)


VERB = Verb("doctor/annotations", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
