"""Write the lists that a training reads: `python -m tools.antgo package/list --src F.json --tgt DIR`.

Labels and label images become train.txt and val.txt, boxes train.json and val.json in COCO's form; the images stay
where they are. Records of one clip stay in one split.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic
from data_loader.samples import CLASS_NAMES_FILE
from datasets.coco import write_coco
from datasets.errors import DatasetError
from datasets.files import Annotations, check_target, read_annotations
from datasets.outcome import Outcome
from datasets.records import NO_LABEL, Record, value
from datasets.studio_reader import studio_annotations
from tools.datasets.make_lists import SPLIT_NAMES, compile_group, parse_shares, split_images
from tools.datasets.verb import Verb, add_seed, add_source, add_target, check_source, config_line, finish

SEPARATOR = "----"
CONFIG = "config.json"
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
    parser.add_argument("--studio", action="store_true", help="--src is Label Studio's JSON export beside its images")
    parser.add_argument(
        "--config", type=Path, metavar="RECIPE", help="write DIR/config.json: this config with the lines"
    )


def run(args: argparse.Namespace) -> int:
    """Write the lists; return the exit code. Raises UserError, OSError."""
    shares = parse_shares(args.split)
    pattern = compile_group(args.group) if args.group else None
    source = check_source(args.src)
    lists = (f"{split}{ending}" for split in SPLIT_NAMES for ending in (".txt", ".json"))
    for name in (*lists, CLASS_NAMES_FILE, *([CONFIG] if args.config else [])):
        check_target(args.tgt, args.overwrite, name)
    recipe = _read_recipe(args.config) if args.config else {}
    outcome = Outcome(args.overwrite)
    found = studio_annotations(source, outcome) if args.studio else read_annotations(source)
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
    values = config_values(found, args.tgt, kind)
    text = "\n".join(["Lines for the config:", *(config_line(key, item) for key, item in values.items())])
    if args.config:
        values["save_path"] = f"logs/{args.tgt.resolve().name}"
        write_atomic(args.tgt / CONFIG, json.dumps(recipe | values, ensure_ascii=False, indent=2) + "\n")
        text = f"python train.py --config {args.tgt / CONFIG}"
    return finish(f"{args.tgt}: {kind}: {counts}\n\n{text}", outcome)


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


def config_values(found: Annotations, target: Path, kind: str) -> dict[str, int | str]:
    """Return the keys of a config that are about this data, in the order of its lines."""
    ending = ".json" if kind == BOXES else ".txt"
    values: dict[str, int | str] = {"num_classes": len(found.category)}
    if kind != BOXES:
        values["file_label_separator"] = SEPARATOR
    values["class_names_file"] = (target / CLASS_NAMES_FILE).as_posix()
    for name in SPLIT_NAMES[:2]:
        values[f"{name}_data_root_dir"] = found.folder.as_posix()
        values[f"{name}_data_file"] = (target / f"{name}{ending}").as_posix()
    return values


def _read_recipe(path: Path) -> dict[str, Any]:
    """Return a config's keys but `$schema`, whose path is the recipe's own. Raises DatasetError."""
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"--config {path}: expected a config such as configs/finetune_config.json: {error}"
        ) from error
    if not isinstance(recipe, dict):
        raise DatasetError(f"--config {path}: expected a config such as configs/finetune_config.json")
    return {key: item for key, item in recipe.items() if key != "$schema"}


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
