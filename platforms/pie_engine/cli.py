"""The platform's program: `python -m platforms.pie_engine`, in a folder with traincfg.json."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import FlagParser, named_path, run_program
from platforms.pie_engine.addresses import Addresses, with_addresses
from platforms.pie_engine.package import make_package
from platforms.pie_engine.train import run_training, run_worker
from platforms.pie_engine.traincfg import FILE

EXIT_CODES = "exit codes: 0 done; 1 failed; 2 a mistake of the user's, or a full disk; 128 + n stopped by signal n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    args = _parser().parse_args(argv)
    addresses: Addresses = {}

    def report(line: str, error: BaseException) -> None:
        is_main = not args.worker or os.environ.get("LOCAL_RANK", "0") == "0"
        if is_main or getattr(error, "one_process", False):  # a mistake that all processes meet is printed once
            print(with_addresses(line, addresses), file=sys.stderr)

    return run_program("pie_engine", lambda: _run(args, addresses), report=report)


def _run(args: argparse.Namespace, addresses: Addresses) -> int:
    if args.make_package:
        return make_package(args.make_package)
    return run_worker(args.worker, addresses) if args.worker else run_training(args.traincfg, addresses)


def _parser() -> argparse.ArgumentParser:
    parser = FlagParser(
        prog="python -m platforms.pie_engine",
        description="Train what the PIE-Engine platform asks for: traincfg.json in, output/ out, both in this folder.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--traincfg", metavar="FILE", type=named_path, default=Path(FILE), help=f"default: {FILE} in this folder")
    add("--make_package", metavar="DIR", type=named_path, help="write the folder to upload to the platform, and stop")
    add("--worker", type=Path, help=argparse.SUPPRESS)  # for the processes that a training on several GPUs starts
    return parser
