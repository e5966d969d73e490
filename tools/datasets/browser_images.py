"""Look at annotated images in a browser and tag them: `python -m tools.antgo browser/images --src F.json`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from common.cli import named_path, number
from common.console import printable
from common.formatting import is_utf8
from data_loader.samples import current_folder
from datasets.errors import DatasetError
from datasets.files import Annotations
from datasets.filters import repeated_names
from deploy.service.listener import address_of, bind, listen
from deploy.service.origins import AllowedOrigins, is_address, is_loopback
from review.desk import Desk, OpenReviews, Options
from review.images import ImageShow
from review.net import ask_net
from review.review import ORDERS, open_review
from review.users import LONGEST, Users, parse_white_users
from tools.datasets.verb import Verb, check_source

DEFAULT_TAGS, PORT, PORT_FLAG = ("valid", "invalid"), 8090, "--port"
COMPUTED = ("similarity", "wrong_label")  # orders
WORKERS = min(os.cpu_count() or 1, 4)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("--src", default="", metavar="F.json", help="annotation.json; or a person names one (--user-input)")
    add("--tags", default="", metavar="a,b", help="tags on keys 1 to 9 (default with --feedback: valid,invalid)")
    add("--feedback", action="store_true", help="end once all is reviewed and Finish pressed, and write F_browser.json")
    add("--weights", type=named_path, metavar="net.pth", help="ask a classifier; its doubtful images come first")
    what = "similarity and wrong_label need a net's features: of --weights, else of start weights"
    add("--order", choices=ORDERS, help=f"{what} (default file; with --weights doubt)")
    add("--white-users", default="", metavar="ann:pw,bo:pw", help="who may log in; or @FILE with name:password a line")
    add("--user-input", action="store_true", help="a person may name another JSON below --input-root")
    add("--input-root", type=named_path, default=Path(), metavar="DIR", help="(default: the current folder)")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add(PORT_FLAG, type=number(0, 65535), default=PORT, metavar="N", help=f"(default {PORT}; 0: any that is free)")
    add("--allowed-hosts", nargs="+", type=str.lower, default=[], metavar="NAME", help="names beside localhost")


def run(args: argparse.Namespace) -> int:
    """Serve the page; return the exit code. Raises UserError, OSError."""
    tags = parse_review_tags(args.tags) or (DEFAULT_TAGS if args.feedback else ())
    users = Users(parse_white_users(args.white_users))
    source = check_start(args, users)
    order = args.order or ("doubt" if args.weights else "file")
    root = args.input_root if args.user_input else None
    options = Options(tags, args.feedback, args.overwrite, order, root)
    with ExitStack() as stack:
        listener = stack.enter_context(bind(args.host, args.port, PORT_FLAG))
        reviews = stack.enter_context(OpenReviews(options))
        if source:
            _open(reviews, source, options, args.weights)
            if order in COMPUTED:
                from tools.datasets.browser_orders import add_order  # late: other orders need no net

                add_order(reviews.get(source), order, args.weights, WORKERS)
        images = ImageShow()
        stack.callback(images.close)
        names = set() if is_address(args.host) else {args.host.lower()}
        origins = AllowedOrigins(names | set(args.allowed_hosts))
        cookie = f"review_{listener.getsockname()[1]}"  # browsers send a cookie to every port of a host
        desk = Desk(options, source, reviews, images, users, origins, lambda: None, cookie)
        from review.server import serve  # late: --help and mistakes answer without uvicorn

        listen(listener, PORT_FLAG)
        _tell(listener, source, reviews)
        return serve(desk, listener)


def parse_review_tags(text: str) -> tuple[str, ...]:
    """Return the tags of `a,b`. Raises DatasetError."""
    tags = tuple(part.strip() for part in text.split(",")) if text else ()
    if "" in tags:
        raise DatasetError(f'--tags "{text}" has an empty tag, and a tag cannot hold a comma; write valid,invalid')
    if twice := sorted(repeated_names(tags)):
        raise DatasetError(f'--tags "{text}" has "{twice[0]}" twice')
    if long := [tag for tag in tags if len(tag) > LONGEST]:
        raise DatasetError(f'--tags: "{long[0][:20]}..." is longer than {LONGEST} letters')
    if odd := [tag for tag in tags if not is_utf8(tag)]:
        raise DatasetError(f"--tags: {odd[0]!r} is not UTF-8")
    return tags


def check_start(args: argparse.Namespace, users: Users) -> Path | None:
    """Return the path of --src, if any. Raises DatasetError for flags that do not go together."""
    if not args.src and not args.user_input:
        raise DatasetError("name the annotations with --src F.json, or let a person name them with --user-input")
    if not users and not (is_loopback(args.host.lower())):
        raise DatasetError(f"--host {args.host} lets others connect; name who may, with --white-users ann:PASSWORD")
    if args.weights and not args.src:
        raise DatasetError("--weights asks the net about --src; name it")
    if args.order in COMPUTED and not args.src:
        raise DatasetError(f"--order {args.order} compares the images of --src; name it")
    if args.user_input and not args.input_root.is_dir():
        where = current_folder(str(args.input_root))
        raise DatasetError(f"--input-root {args.input_root}: no such folder{where}")
    return check_source(args.src).resolve() if args.src else None


def _open(reviews: OpenReviews, source: Path, options: Options, weights: Path | None) -> None:
    def ask(found: Annotations) -> None:
        if weights and (without := ask_net(found, weights, WORKERS)):
            print(f"note: {without:,} images without an answer of the net", file=sys.stderr)

    stack = ExitStack()
    opened = open_review(source, options.tags, feedback=options.feedback, overwrite=options.overwrite, ask=ask)
    reviews.add(source, stack, stack.enter_context(opened))


def _tell(listener: socket.socket, source: Path | None, reviews: OpenReviews) -> None:
    what = "no file yet"
    if source:
        review = reviews.get(source)
        what = f"{source.name}: {len(review):,} images, {review.num_reviewed:,} reviewed"
    print(f"{printable(what)}\n  address  {address_of(listener)}\n  Ctrl-C ends it", flush=True)


VERB = Verb("browser/images", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
