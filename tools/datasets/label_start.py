"""Label images on a page: `python -m tools.antgo label/start --src F.json --tgt DIR --tags a,b --type RECT`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.console import printable
from datasets.errors import DatasetError
from datasets.files import META, category_of, read_meta
from datasets.outcome import Outcome
from datasets.tags import category_of_tags, parse_tags
from review.desk import Options
from review.label_task import LabelTask
from review.labels import KINDS
from tools.datasets.page_server import add_server_flags, ask_with, check_names, serve_page, users_of
from tools.datasets.verb import (
    Verb,
    add_pictures,
    add_source,
    add_tags,
    add_target,
    check_classes,
    check_source,
    finish,
)

OUTPUTS = {"CLASS": "logits", "RECT": "boxes"}  # of the nets that can be asked, by --type


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "annotation.json")
    add_target(parser, "folder of F_label.json, its journal and images")
    add_tags(parser, "the classes with their indices (default: those of meta.json)")
    what = "what is labelled: the image's class (default), boxes, polygons or points"
    parser.add_argument("--type", type=str.upper, choices=KINDS, default=KINDS[0], help=what)
    what = "Finish at any time, and leave out images that have no label"
    parser.add_argument("--ignore-incomplete", action="store_true", help=what)
    add_pictures(parser)
    add_server_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the page, and say what came out; return the exit code. Raises UserError, OSError."""
    users = users_of(args)
    source = check_source(args.src).resolve()
    category = _classes(args, source)
    if args.weights and args.type not in OUTPUTS:
        raise DatasetError(f"--weights goes with --type {' or '.join(OUTPUTS)}, got {args.type}")
    check_classes(args.tgt, category, args.overwrite)
    outcome = Outcome(args.overwrite)
    how = {"ignore_incomplete": args.ignore_incomplete, "no_pictures": args.no_pictures}
    task = LabelTask(args.type, tuple(category), args.tgt, **how, outcome=outcome)
    order = args.order or ("doubt" if args.weights else "file")
    options = Options(feedback=True, overwrite=args.overwrite, order=order, task=task)
    ask = ask_with(args.weights, output=OUTPUTS.get(args.type, ""), all_anew=False)
    code = serve_page(args, options, source, users, ask)
    if code:
        journal = args.tgt / f"{source.stem}_label.log.jsonl"
        print(printable(f"not finished: {journal} holds what was saved; the same command goes on"), file=sys.stderr)
        return code
    return finish(task.summary, outcome)


def _classes(args: argparse.Namespace, source: Path) -> list[str]:
    known = category_of(read_meta(source.parent / META))
    category = category_of_tags(parse_tags(args.tags)) if args.tags else known
    if not category:
        raise DatasetError("name the classes with --tags Car:0,Train:1")
    check_names(category)
    return category


VERB = Verb("label/start", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
