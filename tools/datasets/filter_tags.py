"""Choose records by the tags of a review: `python -m tools.antgo filter/tags --src F.json --tgt F_browser.json`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_loader.samples import current_folder
from datasets.errors import DatasetError
from datasets.files import check_target, read_annotations, write_records
from datasets.filters import TagChoice, check_choice, filter_by_tags, parse_names
from datasets.outcome import Outcome
from tools.datasets.verb import Verb, add_source, check_source, finish


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "annotation.json")
    parser.add_argument("--tgt", required=True, type=Path, metavar="F_browser.json", help="the review")
    parser.add_argument("--tags", default="", metavar="a,b", help="a record must have all of them")
    parser.add_argument("--no-tags", default="", metavar="c", help="and none of these")
    parser.add_argument("--any", action="store_true", help="one of --tags is enough")
    parser.add_argument("--unreviewed", choices=("leave_out", "keep"), default="leave_out", help="(default leave_out)")


def run(args: argparse.Namespace) -> int:
    """Filter the records; return the exit code. Raises UserError, OSError."""
    choice = TagChoice(parse_names(args.tags), parse_names(args.no_tags), args.any)
    check_choice(choice)
    source = check_source(args.src)
    if not args.tgt.is_file():
        raise DatasetError(f"--tgt {args.tgt}: the review is not there{current_folder(str(args.tgt))}")
    name = f"{source.stem}_filter{choice.name}.json"
    check_target(source.parent, args.overwrite, name)
    found, outcome = read_annotations(source), Outcome(args.overwrite)
    keep = args.unreviewed == "keep"
    records = filter_by_tags(found, args.tgt, choice, outcome, keep_unreviewed=keep)
    write_records(source.parent / name, records)
    return finish(f"{source.parent / name}: {len(records):,} of {len(found.records):,} records", outcome)


VERB = Verb("filter/tags", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
