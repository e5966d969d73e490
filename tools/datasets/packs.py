"""What package/tfrecord and package/kv share: their flags and their run."""

from __future__ import annotations

import argparse
import functools

from data_loader.packs import ENDING, META_ENDING, masked_checksum
from datasets.errors import DatasetError
from datasets.files import check_target, read_annotations, source_files
from datasets.merge import Merged, merge
from datasets.outcome import Outcome
from datasets.packing import check_room, divide, readable_rows, write_kvs, write_meta, write_tfrecords
from tools.datasets.verb import Verb, add_source, add_target, config_line, finish


def packing_verb(kind: str, doc: str) -> Verb:
    """Return package/tfrecord or package/kv."""
    return Verb(f"package/{kind}", doc.splitlines()[0], add_flags, functools.partial(_run, kind))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "annotation files, with commas between")
    add_target(parser)
    parser.add_argument("--prefix", default="", help="beginning of the files' names (the first JSON's folder's name)")
    parser.add_argument("--num", type=int, default=100_000, metavar="N", help="records a shard (default 100000)")


def _run(kind: str, args: argparse.Namespace) -> int:
    """Pack the records; return the exit code. Raises UserError, OSError."""
    if args.num < 2:
        raise DatasetError(
            f"--num must be at least 2, got {args.num}: the package tfrecord cannot read an index of one"
        )
    files = source_files(args.src)
    prefix = args.prefix or files[0].resolve().parent.name
    if not prefix or "/" in prefix or "*" in prefix:
        raise DatasetError(f'--prefix must be the beginning of a file\'s name, got "{prefix}"')
    check_target(args.tgt, args.overwrite, prefix + META_ENDING)
    masked_checksum(b"")  # before the work: its package may be missing
    outcome = Outcome()
    found = [read_annotations(file) for file in files]
    merged = Merged([(record, found[0].folder) for record in found[0].records], list(found[0].category))
    if len(found) > 1:
        merged = merge(found, "keep", outcome)
    rows = readable_rows(merged.rows, outcome)
    if not rows:
        finish(f"{args.src}: no record", outcome)
        raise DatasetError(f"--src {args.src}: no record is left; nothing was written")
    check_room(rows, args.tgt)
    args.tgt.mkdir(parents=True, exist_ok=True)
    shards = divide(len(rows), args.num, prefix)
    if kind == "kv":
        entries = write_kvs(rows, args.tgt, shards, merged.category)
    else:
        entries = write_tfrecords(rows, args.tgt, shards)
    path = write_meta(args.tgt, shards, entries, merged.category, outcome)
    lines = [f"{path}: {len(rows):,} records in {len(shards.sizes)} shards, {len(merged.category)} classes"]
    if kind == "tfrecord":
        lines += ["", "Lines for the config:", config_line("num_classes", len(merged.category))]
        lines.append(config_line("train_data_file", f"{args.tgt.as_posix()}/{prefix}-*{ENDING}"))
    return finish("\n".join(lines), outcome)
