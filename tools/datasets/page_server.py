"""What the verbs that serve a page share: who may come, where it listens, and its server."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from common.cli import named_path, number
from common.console import printable
from common.formatting import is_utf8
from datasets.errors import DatasetError
from datasets.files import Annotations
from deploy.service.listener import address_of, bind, listen
from deploy.service.origins import AllowedOrigins, is_address, is_loopback
from review.desk import Desk, OpenReviews, Options
from review.images import ImageShow
from review.net import ask_net
from review.review import ORDERS, open_review
from review.users import LONGEST, Users, parse_white_users

PORT, PORT_FLAG = 8090, "--port"
COMPUTED = ("similarity", "wrong_label")  # orders
WORKERS = min(os.cpu_count() or 1, 4)
Ask = Callable[[Annotations], None]  # puts predictions into records


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add --order, --weights, and who may come and where it listens."""
    add = parser.add_argument
    what = "similarity and wrong_label need a net's features: of --weights, else of start weights"
    add("--order", choices=ORDERS, help=f"{what} (default file; with --weights doubt)")
    add("--weights", type=named_path, metavar="net.pth", help="ask a net; its doubtful images come first")
    add("--white-users", default="", metavar="ann:pw,bo:pw", help="who may log in; or @FILE with name:password a line")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add(PORT_FLAG, type=number(0, 65535), default=PORT, metavar="N", help=f"(default {PORT}; 0: any that is free)")
    add("--allowed-hosts", nargs="+", type=str.lower, default=[], metavar="NAME", help="names beside localhost")


def users_of(args: argparse.Namespace) -> Users:
    """Return who may log in. Raises ReviewError, and DatasetError for a host that others reach without users."""
    users = Users(parse_white_users(args.white_users))
    if not users and not is_loopback(args.host.lower()):
        raise DatasetError(f"--host {args.host} lets others connect; name who may, with --white-users ann:PASSWORD")
    return users


def check_names(names: Iterable[str]) -> None:
    """Raise DatasetError for tags that are too long, or not UTF-8."""
    for name in names:
        if len(name) > LONGEST:
            raise DatasetError(f'--tags: "{name[:20]}..." is longer than {LONGEST} letters')
        if not is_utf8(name):
            raise DatasetError(f"--tags: {name!r} is not UTF-8")


def ask_with(weights: Path | None, *, output: str = "logits", all_anew: bool = True) -> Ask:
    """Return what asks a net, as `ask_net` does, and tells of images without an answer."""

    def ask(found: Annotations) -> None:
        if weights and (without := ask_net(found, weights, WORKERS, output=output, all_anew=all_anew)):
            print(f"note: {without:,} images without an answer of the net", file=sys.stderr)

    return ask


def serve_page(args: argparse.Namespace, options: Options, source: Path | None, users: Users, ask: Ask) -> int:
    """Serve the page until it is finished or a signal comes; return the exit code. Raises UserError, OSError."""
    with ExitStack() as stack:
        listener = stack.enter_context(bind(args.host, args.port, PORT_FLAG))
        reviews = stack.enter_context(OpenReviews(options))
        if source:
            _open(reviews, source, options, ask)
            if options.order in COMPUTED:
                from tools.datasets.browser_orders import add_order  # late: other orders need no net

                add_order(reviews.get(source), options.order, args.weights, WORKERS)
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


def _open(reviews: OpenReviews, source: Path, options: Options, ask: Ask) -> None:
    stack = ExitStack()
    feedback, overwrite, task = options.feedback, options.overwrite, options.task
    opened = open_review(source, options.tags, feedback=feedback, overwrite=overwrite, task=task, ask=ask)
    reviews.add(source, stack, stack.enter_context(opened))


def _tell(listener: socket.socket, source: Path | None, reviews: OpenReviews) -> None:
    what = "no file yet"
    if source:
        review = reviews.get(source)
        done = "labelled" if review.task else "reviewed"
        what = f"{source.name}: {len(review):,} images, {review.num_reviewed:,} {done}"
    print(f"{printable(what)}\n  address  {address_of(listener)}\n  Ctrl-C ends it", flush=True)
