"""Write the lists that a training reads: `python -m tools.antgo package/list --src F.json --tgt DIR`.

Labels and label images become train.txt and val.txt, boxes train.json and val.json in COCO's form; the images stay
where they are. Records of one clip stay in one split.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from common.atomic_io import write_atomic
from data_loader.samples import CLASS_NAMES_FILE
from datasets.coco import write_coco
from datasets.errors import DatasetError
from datasets.files import Annotations, check_target, read_annotations
from datasets.outcome import Outcome
from datasets.records import NO_LABEL, Record, value
from tools.datasets.make_lists import SPLIT_NAMES, compile_group, parse_shares, split_images
from tools.datasets.verb import Verb, add_seed, add_source, add_target, check_source, config_line, finish

SEPARATOR = "----"
LABELS, MASKS, BOXES = "labels", "masks", "boxes"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "annotation.json")
    add_target(parser)
    add_seed(parser)
    what = "what is learned (the first of these that the records have)"
    parser.add_argument("--target", choices=(LABELS, MASKS, BOXES), help=what)
    parser.add_argument("--split", default="0.9,0.1", help="shares of train,val or train,val,test (default 0.9,0.1)")
    parser.add_argument("--stratify", action="store_true", help="split each class by the shares")
    parser.add_argument("--group", metavar="REGEX", help="keep images whose paths give the same match together")


def run(args: argparse.Namespace) -> int:
    """Write the lists; return the exit code. Raises UserError, OSError."""
    shares = parse_shares(args.split)
    pattern = compile_group(args.group) if args.group else None
    source = check_source(args.src)
    for name in (*(f"{split}{ending}" for split in SPLIT_NAMES for ending in (".txt", ".json")), CLASS_NAMES_FILE):
        check_target(args.tgt, args.overwrite, name)
    found, outcome = read_annotations(source), Outcome(args.overwrite)
    kind = args.target or target_of(found)
    if args.stratify and kind != LABELS:
        raise DatasetError(
            f"--stratify splits by labels, and these records are split by images: leave it out for {kind}"
        )
    kept = usable_records(found, kind, outcome)
    splits = split_records(kept, shares, args.seed, stratify=args.stratify, pattern=pattern)
    args.tgt.mkdir(parents=True, exist_ok=True)
    write_atomic(args.tgt / CLASS_NAMES_FILE, "".join(f"{name}\n" for name in found.category))
    for name, records in splits.items():
        _write(args.tgt, name, kind, replace(found, records=records), outcome)
    counts = ", ".join(f"{name} {len(records):,}" for name, records in splits.items())
    lines = "\n".join(config_lines(found, args.tgt, kind))
    return finish(f"{args.tgt}: {kind}: {counts}\n\nLines for the config:\n{lines}", outcome)


def target_of(found: Annotations) -> str:
    """Return what the records can teach: labels where all have one, else masks, else boxes. Raises DatasetError."""
    records = found.records
    if records and all(value(record, "image_label") != NO_LABEL for record in records):
        return LABELS
    if any(value(record, "semantic_file") for record in records):
        return MASKS
    if any(value(record, "bboxes") for record in records):
        return BOXES
    if any(value(record, "image_label") != NO_LABEL for record in records):
        return LABELS
    raise DatasetError(f"{found.path}: no record has image_label, semantic_file or bboxes: there is nothing to learn")


def usable_records(found: Annotations, kind: str, outcome: Outcome) -> list[Record]:
    """Return the records that have what is learned, and an image whose path a list can hold."""
    kept = []
    for index, record in enumerate(found.records):
        path, mask = value(record, "image_file"), value(record, "semantic_file")
        lacks_label = kind == LABELS and value(record, "image_label") == NO_LABEL
        if not path:
            outcome.leave_out(found.name(index), "it has no image_file")
        elif lacks_label or (kind == MASKS and not mask):
            outcome.leave_out(path, "it has no image_label" if lacks_label else "it has no semantic_file")
        elif kind != BOXES and (set(path + mask) & set("\r\n") or SEPARATOR in mask or path != path.strip()):
            outcome.leave_out(path, f"a list cannot hold line breaks, {SEPARATOR}, or spaces around a path; rename it")
        else:
            kept.append(record)
    return kept


def split_records(
    records: Sequence[Record],
    shares: Sequence[Fraction],
    seed: int,
    *,
    stratify: bool = False,
    pattern: re.Pattern[str] | None = None,
) -> dict[str, list[Record]]:
    """Return the records of each split, in order; those of one clip together. Raises ToolError, DatasetError."""
    if not records:
        raise DatasetError("no record is left")
    by_path = {value(record, "image_file"): record for record in records}
    if len(by_path) != len(records):
        raise DatasetError("an image has several records; unite them with label/merge first")
    entries = [(path, value(record, "image_label")) for path, record in by_path.items()]
    keys = [value(record, "clip_tag") for record in records]
    splits = split_images(entries, shares, seed, stratify=stratify, pattern=pattern, keys=keys)
    return {name: [by_path[path] for path, _ in chosen] for name, chosen in splits.items()}


def config_lines(found: Annotations, target: Path, kind: str) -> list[str]:
    """Return the lines about this data to paste into a config."""
    ending = ".json" if kind == BOXES else ".txt"
    lines = [config_line("num_classes", len(found.category))]
    lines += [config_line("file_label_separator", SEPARATOR)] if kind != BOXES else []
    lines.append(config_line("class_names_file", target / CLASS_NAMES_FILE))
    for name in SPLIT_NAMES[:2]:
        lines.append(config_line(f"{name}_data_root_dir", found.folder))
        lines.append(config_line(f"{name}_data_file", target / f"{name}{ending}"))
    return lines


def _write(target: Path, name: str, kind: str, found: Annotations, outcome: Outcome) -> None:
    if kind == BOXES:
        write_coco(target / f"{name}.json", found, outcome)
        return
    key = "image_label" if kind == LABELS else "semantic_file"
    lines = [f"{value(record, 'image_file')}{SEPARATOR}{value(record, key)}\n" for record in found.records]
    write_atomic(target / f"{name}.txt", "".join(lines))


VERB = Verb("package/list", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
