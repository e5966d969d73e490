"""Look at annotated images in a browser and tag them: `python -m tools.antgo browser/images --src F.json`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.cli import named_path
from common.console import printable
from data_loader.samples import current_folder
from datasets.errors import DatasetError
from datasets.files import ANNOTATION
from datasets.filters import repeated_names
from datasets.outcome import Outcome
from review.desk import Options
from tools.datasets.page_server import COMPUTED, add_server_flags, ask_with, check_names, serve_page, users_of
from tools.datasets.verb import Verb, check_source

DEFAULT_TAGS = ("valid", "invalid")
REPORT, REPORTS = "doctor.json", ("doctor.json", "doctor.html", "wrong_labels.csv")  # what the doctor writes


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("--src", default="", metavar="F.json", help="annotation.json, or the doctor's doctor.json")
    add("--tags", default="", metavar="a,b", help="tags on keys 1 to 9 (default with --feedback: valid,invalid)")
    add("--feedback", action="store_true", help="end once all is reviewed and Finish pressed, and write F_browser.json")
    add("--user-input", action="store_true", help="a person may name another JSON below --input-root")
    add("--input-root", type=named_path, default=Path(), metavar="DIR", help="(default: the current folder)")
    add_server_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the page; return the exit code. Raises UserError, OSError."""
    tags = parse_review_tags(args.tags) or (DEFAULT_TAGS if args.feedback else ())
    users = users_of(args)
    source = check_start(args)
    order = args.order or ("doubt" if args.weights else "file")
    root = args.input_root if args.user_input else None
    options = Options(tags, args.feedback, args.overwrite, order, root)
    return serve_page(args, options, source, users, ask_with(args.weights))


def parse_review_tags(text: str) -> tuple[str, ...]:
    """Return the tags of `a,b`. Raises DatasetError."""
    tags = tuple(part.strip() for part in text.split(",")) if text else ()
    if "" in tags:
        raise DatasetError(f'--tags "{text}" has an empty tag, and a tag cannot hold a comma; write valid,invalid')
    if twice := sorted(repeated_names(tags)):
        raise DatasetError(f'--tags "{text}" has "{twice[0]}" twice')
    check_names(tags)
    return tags


def check_start(args: argparse.Namespace) -> Path | None:
    """Return the path of --src, if any. Raises DatasetError for flags that do not go together."""
    if not args.src and not args.user_input:
        raise DatasetError("name the annotations with --src F.json, or let a person name them with --user-input")
    if args.weights and not args.src:
        raise DatasetError("--weights asks the net about --src; name it")
    if args.order in COMPUTED and not args.src:
        raise DatasetError(f"--order {args.order} compares the images of --src; name it")
    if args.user_input and not args.input_root.is_dir():
        where = current_folder(str(args.input_root))
        raise DatasetError(f"--input-root {args.input_root}: no such folder{where}")
    return source_of(args).resolve() if args.src else None


def source_of(args: argparse.Namespace) -> Path:
    """Return the annotations of --src; of the doctor's findings those made beside them. Raises UserError, OSError."""
    path = Path(args.src)
    if path.is_dir() and not (path / ANNOTATION).is_file():
        path /= REPORT
    if path.name not in REPORTS or not path.with_name(REPORT).is_file():
        return check_source(args.src)
    from tools.doctor.review_set import review_set  # late: it needs numpy, which other sources do not

    outcome = Outcome(args.overwrite)
    source = review_set(path.with_name(REPORT), outcome)
    for line in outcome.lines():
        print(printable(line), file=sys.stderr)
    return source


VERB = Verb("browser/images", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
