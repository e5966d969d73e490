"""Turn standard annotations into Label Studio's tasks (--to), or its JSON export into standard annotations (--from)."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from common.atomic_io import write_atomic
from datasets.errors import DatasetError
from datasets.files import check_target, free_name, read_annotations
from datasets.outcome import Outcome
from datasets.pictures import FOLDERS
from datasets.records import Record, value
from datasets.studio_reader import PLACES, WHICH, class_names, read_export, studio_records
from datasets.studio_writer import studio_interface, studio_items
from datasets.tags import category_of_tags, parse_tags
from tools.datasets.verb import (
    Verb,
    add_pictures,
    add_source,
    add_tags,
    add_target,
    check_classes,
    check_source,
    finish,
    finish_records,
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "annotation.json (--to), or Label Studio's JSON export (--from)")
    add_target(parser)
    add_tags(parser, "the classes with their indices (--from: all that are used, in natural order)")
    add_pictures(parser)
    parser.add_argument("--prefix", default="", help="folder before the images' paths")
    parser.add_argument("--from", action="store_true", dest="is_from", help="read an export")
    parser.add_argument("--to", action="store_true", dest="is_to", help="write tasks and the labelling interface")
    parser.add_argument("--which", choices=WHICH, default=WHICH[0], help="the annotation of several (default newest)")
    parser.add_argument("--keep-unlabelled", action="store_true", help="keep tasks without an annotation")


def run(args: argparse.Namespace) -> int:
    """Convert the file; return the exit code. Raises UserError, OSError."""
    if args.is_from == args.is_to:
        raise DatasetError("name one of --from (read an export) and --to (write tasks)")
    args.prefix = args.prefix.strip("/")
    return _read(args) if args.is_from else _write(args)


def _write(args: argparse.Namespace) -> int:
    stem = Path(args.src).stem
    for ending in ("json", "xml"):
        check_target(args.tgt, args.overwrite, f"{stem}_studio.{ending}")
    found = read_annotations(check_source(args.src))
    if args.tags:
        found = replace(found, category=tuple(category_of_tags(parse_tags(args.tags))))
    outcome = Outcome(args.overwrite)
    items = studio_items(found, args.prefix, outcome)
    joints = max((item["data"].get("joints", 0) for item in items), default=0)
    args.tgt.mkdir(parents=True, exist_ok=True)
    write_atomic(args.tgt / f"{stem}_studio.xml", studio_interface(found.category, joints))
    path = args.tgt / f"{stem}_studio.json"
    write_atomic(path, json.dumps(items, ensure_ascii=False, indent=1) + "\n")
    return finish(f"{path}: {len(items):,} tasks; {stem}_studio.xml is the labelling interface", outcome)


def _read(args: argparse.Namespace) -> int:
    file = check_source(args.src)
    tasks = read_export(file)
    labels = parse_tags(args.tags) if args.tags else {name: label for label, name in enumerate(class_names(tasks))}
    category = category_of_tags(labels) if labels else []
    meta = check_classes(args.tgt, category, args.overwrite)
    outcome = Outcome(args.overwrite)
    kept, folders = args.keep_unlabelled, (file.parent, args.tgt)
    records = studio_records(
        file, tasks, labels, args.prefix, args.which, outcome, keep_unlabelled=kept, folders=folders
    )
    args.no_pictures = args.no_pictures or not _are_beside(records, file.parent, args.tgt, outcome)
    name = free_name(args.tgt, f"{file.stem}_label")
    return finish_records(args, records, category, file.parent, outcome, meta, name=name)


def _are_beside(records: list[Record], source: Path, target: Path, outcome: Outcome) -> bool:
    """Return whether the images lie beside the export and are to be taken along; note those that lie nowhere."""
    paths = [record[key] for record in records for key in FOLDERS if value(record, key)]
    if all((target / path).is_file() for path in paths):
        return False
    if all((source / path).is_file() for path in paths):
        return True
    missing = [path for path in paths if not (source / path).is_file() and not (target / path).is_file()]
    places = f"lie neither in {source} nor in {target}" if missing else f"are partly in {source} and partly in {target}"
    first = f"; the first, {missing[0]}, was looked for {PLACES}" if missing else ""
    outcome.leave_out("the images", f"{len(missing) or len(paths):,} of {len(paths):,} {places}{first}")
    return False


VERB = Verb("label/studio", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
