"""Train the classifier that a config describes: `python train.py --config configs/config.json`."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import Sequence

from configs.loading import ConfigError, describe_config, process_config
from configs.schema import DEFAULT_CONFIG
from trainers.config_checks import net_problems

FIRST_TELLS_S = 3.0


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and give the exit code: 0 done, 1 the training failed, 2 a mistake of the user, 128 + n signal n."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console that lacks a letter is no reason to stop
    try:
        config = process_config(args.config, args.set, check_files=not args.print_config, checks=[net_problems])
        if args.stage == 2 and not config.next_stage:
            raise ConfigError([f"{args.config}: it has one stage, no next_stage for --stage 2"])
        if args.print_config:
            print(describe_config(config, args.config, args.set, stage=args.stage))
            return 0
        from trainers.runner import run, run_stages  # late: --help and a mistake in the config answer without torch

        if args.earlier:
            return run(config, resume=args.resume, earlier=args.earlier)
        return run_stages(config, resume=args.resume, stage=args.stage)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"train.py: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except ValueError as error:
        # Every mistake of the user's is a ValueError of a kind of ours, and its message the sentence to show.
        if type(error) is ValueError or isinstance(error, UnicodeError):
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0" or getattr(error, "one_process", False):
            print(f"train.py: {error}", file=sys.stderr)
        else:  # a mistake of all is for the machine's first to tell, whom torchrun would end if another left before
            time.sleep(FIRST_TELLS_S)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train.py", description="Train the image classifier a config describes.")
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
