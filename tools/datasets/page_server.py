"""What the verbs that serve a page share: who may come, where it listens, and its server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from common.cli import named_path, number
from common.formatting import is_utf8
from datasets.errors import DatasetError
from datasets.files import Annotations
from deploy.service.origins import is_loopback
from review.desk import Options
from review.net import ask_net
from review.review import ORDERS, Review
from review.serving import Ask, Place, serve_review
from review.users import LONGEST, Users, parse_white_users

PORT, PORT_FLAG = 8090, "--port"
COMPUTED = ("similarity", "wrong_label")  # orders
WORKERS = min(os.cpu_count() or 1, 4)


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

    def prepare(review: Review) -> None:
        if options.order in COMPUTED:
            from tools.datasets.browser_orders import add_order  # late: other orders need no net

            add_order(review, options.order, args.weights, WORKERS)

    place = Place(args.host, args.port, tuple(args.allowed_hosts), PORT_FLAG)
    return serve_review(place, options, source, users, ask=ask, prepare=prepare)
