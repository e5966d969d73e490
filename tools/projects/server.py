"""Serve the page of all projects: `python -m tools.antgo server --page`."""

from __future__ import annotations

import argparse

from common.cli import number
from deploy.service.origins import is_loopback
from projects.book import Book
from projects.errors import ProjectError
from tools.datasets.verb import Verb
from tools.projects.flags import add_home

PORT, PORT_FLAG = 8091, "--port"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add("--page", action="store_true", required=True, help="serve the page of projects and runs")
    add("--host", default="127.0.0.1", help="address of this machine to listen on (default 127.0.0.1)")
    add(PORT_FLAG, type=number(0, 65535), default=PORT, metavar="N", help=f"(default {PORT}; 0: any that is free)")
    add_home(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes; return the exit code. Raises UserError, OSError."""
    if not is_loopback(args.host.lower()):
        hint = f"use ssh -L {args.port}:localhost:{args.port} from elsewhere"
        raise ProjectError(f"--host {args.host} would let others read the projects; {hint}")
    from projects.app import serve_projects  # late: --help and mistakes answer without the server
    from review.serving import Place

    return serve_projects(Book(args.home), Place(args.host, args.port, port_flag=PORT_FLAG))


VERB = Verb("server", (__doc__ or "").splitlines()[0], add_flags, run, may_overwrite=False)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
