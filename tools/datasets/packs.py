"""What package/tfrecord and package/kv share: their flags and their run."""

from __future__ import annotations

import argparse
import functools

from data_loader.packs import ENDING, META_ENDING, masked_checksum
from datasets.errors import DatasetError
from datasets.fetching import fetch_images
from datasets.files import check_target, read_annotations, source_files
from datasets.merge import Merged, merge
from datasets.outcome import Outcome
from datasets.packing import Row, check_room, divide, readable_rows, write_kvs, write_meta, write_tfrecords
from datasets.web_search import PAUSE_S, Client
from tools.datasets.make_lists import SPLIT_NAMES, compile_group, parse_shares
from tools.datasets.package_list import split_records
from tools.datasets.verb import Verb, add_seed, add_source, add_target, config_line, finish


def packing_verb(kind: str, doc: str) -> Verb:
    """Return package/tfrecord or package/kv."""
    return Verb(
        f"package/{kind}", doc.splitlines()[0], functools.partial(_add_flags, kind), functools.partial(_run, kind)
    )


def _add_flags(kind: str, parser: argparse.ArgumentParser) -> None:
    add_source(parser, "annotation files, with commas between")
    add_target(parser)
    parser.add_argument("--prefix", default="", help="beginning of the files' names (the first JSON's folder's name)")
    parser.add_argument("--num", type=int, default=100_000, metavar="N", help="records a shard (default 100000)")
    what = "download images that a record names by image_url alone into P-fetched, a second apart"
    parser.add_argument("--fetch", action="store_true", help=what)
    if kind == "tfrecord":
        what = "write the records without their images, too, which a training that streams the pack reads first"
        parser.add_argument("--heads", action="store_true", help=what)
    add_seed(parser)
    parser.add_argument("--split", default="", help="shares of train,val or train,val,test: packs P-train, P-val, ...")
    parser.add_argument("--stratify", action="store_true", help="split each class of image_label by the shares")
    parser.add_argument("--group", metavar="REGEX", help="keep images whose paths give the same match together")


def _run(kind: str, args: argparse.Namespace) -> int:
    """Pack the records; return the exit code. Raises UserError, OSError."""
    if args.num < 2:
        raise DatasetError(
            f"--num must be at least 2, got {args.num}: the package tfrecord cannot read an index of one"
        )
    shares = parse_shares(args.split) if args.split else []
    pattern = compile_group(args.group) if args.group else None
    files = source_files(args.src)
    prefix = args.prefix or files[0].resolve().parent.name
    if not prefix or "/" in prefix or "*" in prefix:
        raise DatasetError(f'--prefix must be the beginning of a file\'s name, got "{prefix}"')
    names = [f"{prefix}-{name}" for name in SPLIT_NAMES[: len(shares)]] or [prefix]
    for name in names:
        check_target(args.tgt, args.overwrite, name + META_ENDING)
    masked_checksum(b"")  # before the work: its package may be missing
    outcome = Outcome(args.overwrite)
    found = [read_annotations(file) for file in files]
    merged = Merged([(record, found[0].folder) for record in found[0].records], list(found[0].category))
    if len(found) > 1:
        merged = merge(found, "keep", outcome)
    fetched = args.tgt / f"{prefix}-fetched"
    given = fetch_images(merged.rows, fetched, Client(PAUSE_S), outcome) if args.fetch else merged.rows
    rows = readable_rows(given, outcome)
    if not rows:
        finish(f"{args.src}: no record", outcome)
        raise DatasetError(f"--src {args.src}: no record is left; nothing was written")
    check_room(rows, args.tgt)
    packs = [rows]
    if shares:
        folders = {id(record): folder for record, folder in rows}
        records = [record for record, _ in rows]
        splits = split_records(records, shares, args.seed, stratify=args.stratify, pattern=pattern)
        packs = [[(record, folders[id(record)]) for record in chosen] for chosen in splits.values()]
    args.tgt.mkdir(parents=True, exist_ok=True)
    lines = [_write(kind, args, pack, name, merged.category, outcome) for pack, name in zip(packs, names, strict=True)]
    if kind == "tfrecord":
        lines += ["", "Lines for the config:", config_line("num_classes", len(merged.category))]
        keys = zip(SPLIT_NAMES[:2], names, strict=False)
        lines += [config_line(f"{key}_data_file", f"{args.tgt.as_posix()}/{name}-*{ENDING}") for key, name in keys]
    return finish("\n".join(lines), outcome)


def _write(
    kind: str, args: argparse.Namespace, rows: list[Row], prefix: str, category: list[str], outcome: Outcome
) -> str:
    """Write one pack; return the line about it."""
    shards = divide(len(rows), args.num, prefix)
    if kind == "kv":
        entries = write_kvs(rows, args.tgt, shards, category)
    else:
        entries = write_tfrecords(rows, args.tgt, shards, with_heads=args.heads)
    path = write_meta(args.tgt, shards, entries, category, outcome)
    return f"{path}: {len(rows):,} records in {len(shards.sizes)} shards, {len(category)} classes"
