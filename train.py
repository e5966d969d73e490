"""Train the net that a config describes: `python train.py --config configs/config.json`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from common.cli import FlagParser, run_program
from configs.loading import ConfigError, describe_config
from configs.schema import DEFAULT_CONFIG
from trainers.config_checks import training_config

WAIT_FOR_MAIN_S = 3.0


def main(argv: Sequence[str] | None = None) -> int:
    """Train; return the exit code: 0 done, 1 the training failed, 2 a mistake of the user's, 128 + n signal n."""
    args = _parser().parse_args(argv)
    return run_program("train.py", lambda: _train(args), report=_report)


def _train(args: argparse.Namespace) -> int:
    config = training_config(args.config, args.set, check_files=not args.print_config)
    if args.stage == 2 and not config.next_stage:
        raise ConfigError([f"{args.config}: it has one stage, no next_stage for --stage 2"])
    if args.print_config:
        print(describe_config(config, args.config, args.set, stage=args.stage))
        return 0
    from trainers.runner import run, run_stages  # late: --help and a mistake in the config answer without torch

    if args.earlier:
        return run(config, resume=args.resume, earlier=args.earlier)
    return run_stages(config, resume=args.resume, stage=args.stage)


def _report(line: str, error: BaseException) -> None:
    """Print an error: a mistake that every process meets once on each machine, by its main process."""
    if os.environ.get("LOCAL_RANK", "0") == "0" or getattr(error, "one_process", False):
        print(line, file=sys.stderr)
    else:  # torchrun would end the main process before it has printed, if this one left first
        time.sleep(WAIT_FOR_MAIN_S)


def _parser() -> argparse.ArgumentParser:
    parser = FlagParser(prog="train.py", description="Train the image classifier a config describes.")
    parser.add_argument("--config", "-cfg", metavar="F", default=DEFAULT_CONFIG, help=f"default: {DEFAULT_CONFIG}")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of the config; repeatable"
    )
    parser.add_argument(
        "--stage", type=int, choices=(1, 2), default=0, help="only this stage of a config with next_stage"
    )
    parser.add_argument("--earlier", help=argparse.SUPPRESS)  # for the processes that a second stage starts
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, as if never stopped")
    parser.add_argument("--print_config", action="store_true", help="show every value and where it came from, and stop")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
