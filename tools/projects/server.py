"""Run the loop of the projects, or serve their page: `python -m tools.antgo server --root R`, or `server --page`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from common.atomic_io import check_folder, writing
from common.cli import number
from common.console import printable_lines
from common.errors import UserError
from common.file_lock import lock_file
from common.signals import ended_by_signals
from deploy.service.origins import is_loopback
from projects.book import Book
from projects.errors import ProjectError
from tools.datasets.verb import Verb
from tools.projects.flags import add_home
from tools.release_gate import BETTER, EQUAL

if TYPE_CHECKING:
    from tools.loop.work import Options

PORT, PORT_FLAG = 8091, "--port"
LOCK = ".server.lock"  # in root and in the projects' folder, while a server looks
INTERVAL_S, RISK = 600, 0.05


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_argument
    add_home(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--root", metavar="R", help="run the loop: where runs, data and label tasks lie")
    what.add_argument("--page", action="store_true", help="serve the page of projects and runs")
    add = parser.add_argument_group("the loop").add_argument
    wait = f"seconds between two looks (default {INTERVAL_S})"
    add("--interval", type=number(1, 10**6), default=INTERVAL_S, metavar="S", help=wait)
    add("--once", action="store_true", help="look once, as for cron")
    takes = "which net becomes the best: one that is better (default), or one that is not worse, too"
    add("--gate", choices=(BETTER, EQUAL), default=BETTER, help=takes)
    risk = f"share of wrong predictions among the accepted (default {RISK})"
    add("--target-risk", type=number(0.001, 0.5), default=RISK, metavar="P", help=risk)
    add("--gpu-id", default="", metavar="N", help="of trainings and nets: -1 for the CPU (default: the project's GPUs)")
    add = parser.add_argument_group("the page").add_argument
    add("--host", default="127.0.0.1", help="address of this machine to listen on (default 127.0.0.1)")
    add(PORT_FLAG, type=number(0, 65535), default=PORT, metavar="N", help=f"(default {PORT}; 0: any that is free)")


def run(args: argparse.Namespace) -> int:
    """Look at the projects, or serve until a signal comes; return the exit code. Raises UserError, OSError, Stopped."""
    if args.page:
        return _serve(args)
    if "://" in args.root:
        raise ProjectError(f"--root {args.root}: the loop needs a folder; copy or mount the address, and name its path")
    root = Path(args.root)
    for folder in (root, args.home):
        check_folder(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    from tools.loop.work import Options  # late: --help and mistakes answer without torch

    options = Options(root, args.target_risk, args.gate, args.gpu_id)
    try:
        with lock_file(root / LOCK), lock_file(args.home / LOCK), ended_by_signals():
            while True:
                code = look_at_all(Book(args.home), options)
                if args.once:
                    return code
                time.sleep(args.interval)
    except BlockingIOError as error:
        raise ProjectError(f"{Path(error.filename).parent}: another server is looking there; end it first") from error


def look_at_all(book: Book, options: Options) -> int:
    """Look at each project with `auto`; return 0, or 1 where something could not be done. Raises Stopped, OSError."""
    from tools.loop.look import look
    from tools.loop.work import Work

    code, looked_at = 0, 0
    for name in book.names():
        try:
            if not book.read(name).auto:
                continue
            looked_at += 1
            if not look(Work(book, name, options)):
                code = 1
        except UserError as error:
            print(printable_lines(f"{name}: {error}"), file=sys.stderr, flush=True)
            code = 1
    if not looked_at and not code:
        print(f"{printable_lines(str(book.home))}: no project was created with --auto: nothing to look at", flush=True)
    return code


def _serve(args: argparse.Namespace) -> int:
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
