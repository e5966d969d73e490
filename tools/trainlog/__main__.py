"""Show a trainlog.json as a page: `python -m tools.trainlog output/trainlog.json`.

Curves of every figure for training and validation, the classes of the best and the last epoch, and the latest pictures.
With --follow the page is written again whenever the file changes, and reloads itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from common.atomic_io import check_spares
from common.cli import FlagParser, named_path, number, run_program
from common.signals import ended_by_signals

PROGRAM = "tools.trainlog"
POLL_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; return 0, 2 for a mistake of the user's, 128 + n for signal n."""
    args = _parser().parse_args(argv)
    return run_program(PROGRAM, lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    from tools.trainlog.page import read_log, write_page  # late: --help answers without numpy

    check_spares(args.output, args.file)
    if not args.follow:
        write_page(read_log(args.file), args.file, args.output)
        print(args.output)
        return 0
    seen = None
    with ended_by_signals():
        while True:
            stamp = args.file.stat().st_mtime_ns if args.file.is_file() else None
            if stamp is not None and stamp != seen:
                write_page(read_log(args.file), args.file, args.output, refresh_s=args.follow)
                if seen is None:
                    print(args.output, flush=True)
                seen = stamp
            time.sleep(POLL_S)


def _parser() -> argparse.ArgumentParser:
    parser = FlagParser(prog=f"python -m {PROGRAM}", description="Show a trainlog.json as a page.", allow_abbrev=False)
    add = parser.add_argument
    add("file", metavar="FILE", type=named_path, help="trainlog.json; pictures are taken from picture/ beside it")
    add("--output", metavar="PAGE", type=named_path, default=Path("trainlog.html"), help="default: %(default)s")
    add(
        "--follow",
        metavar="SECONDS",
        type=number(1, 3600),
        nargs="?",
        const=5,
        default=0,
        help="go on until Ctrl-C; the page reloads every so many seconds (5)",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
