"""Export a checkpoint to deployment files: `python -m deploy.export --weights W --formats jit,onnx --output_dir D`."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence

from common.cli import run_program
from common.signals import Stopped, ended_by_signals
from configs.loading import process_config
from deploy.export.cli_args import make_parser
from deploy.export.console import PROGRAM, log
from deploy.export.exporter import export_formats
from deploy.export.request import ExportRequest


def main(argv: Sequence[str] | None = None) -> int:
    """Export; return the exit code.

    0 all written, 2 a mistake of the user, 3 a file refused, 128 + n stopped by signal n (n 13: nobody reads stdout).
    """
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: _export(args), report=_report)


def _export(args: argparse.Namespace) -> int:
    with ended_by_signals(signal.SIGINT):
        values = vars(args) | {
            "output_dir": args.output_dir or args.weights.parent,
            "config": process_config(args.config, check_files=False) if args.config else None,
        }
        return export_formats(ExportRequest(**values))


def _report(line: str, error: BaseException) -> None:
    log(f"{line}; the files already verified are kept" if isinstance(error, Stopped) else line)


if __name__ == "__main__":
    raise SystemExit(main())
