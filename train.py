"""Train the classifier that a config describes: `python train.py --config configs/config.json`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from configs.schema import DEFAULT_CONFIG, Config, ConfigError, describe_config, process_config
from nets.net_interface import NetError, check_model_args, check_names

NEED_LABELS = ("label_smoothing", "class_weights", "balanced_sampling", "mixup_alpha", "cutmix_alpha")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and give the exit code: 0 done, 1 the training failed, 2 a mistake of the user, 128 + n signal n."""
    args = _parser().parse_args(argv)
    try:
        config = process_config(args.config, args.set, check_files=not args.print_config, checks=[_net_problems])
        if args.stage == 2 and not config.next_stage:
            raise ConfigError([f"{args.config}: it has one stage, no next_stage for --stage 2"])
        if args.print_config:
            print(describe_config(config, args.config, args.set, stage=args.stage))
            return 0
        from trainers.run import run, run_stages  # late: --help and a mistake in the config answer without torch

        if args.earlier:
            return run(config, resume=args.resume, earlier=args.earlier)
        return run_stages(config, resume=args.resume, stage=args.stage)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        print(f"train.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        # Every mistake of the user's is a ValueError of a kind of ours, and its message the sentence to show.
        if type(error) is ValueError or isinstance(error, UnicodeError):
            raise
        if os.environ.get("RANK", "0") == "0" or getattr(error, "one_process", False):
            print(f"train.py: {error}", file=sys.stderr)
        return 2


def _net_problems(config: Config) -> list[str]:
    try:
        check_names(config.model_module_name, config.model_net_name)
        check_model_args(config.model_module_name, config.model_net_name, config.net_args())
    except NetError as error:
        return str(error).splitlines()
    problems = []
    if config.learns_without_labels():
        given = [key for key in NEED_LABELS if getattr(config, key)]
        mend = "leave it out, or put it into next_stage"
        problems = [f"{key} needs labels, which SimSiam does not learn from; {mend}" for key in given]
        if not config.data_aug:
            problems.append("data_aug cannot be off: SimSiam learns from two different views of a picture")
    if config.compile and (config.learns_without_labels() or config.model_module_name == "pim_module"):
        name = config.model_net_name
        problems.append(f"compile is for nets that are trained by their logits alone, not for {name}")
    return problems


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
