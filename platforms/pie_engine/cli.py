"""The platform's program: `python -m platforms.pie_engine`, in a folder with traincfg.json."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.cli import FlagParser, named_path, run_program
from platforms.pie_engine.package import make_package
from platforms.pie_engine.train import run_training, run_worker
from platforms.pie_engine.traincfg import FILE

EXIT_CODES = "exit codes: 0 done; 1 failed; 2 a mistake of the user's, or a full disk; 128 + n stopped by signal n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    args = _parser().parse_args(argv)
    return run_program("pie_engine", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if args.make_package:
        return make_package(args.make_package)
    return run_worker(args.worker) if args.worker else run_training(args.traincfg)


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
