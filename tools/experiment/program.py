"""The main program of an experiment that `create mvp` has written: train, test, export and pick images to label."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.atomic_io import check_spares
from common.cli import named_path, number, run_program
from common.errors import UserError
from data_loader.samples import current_folder
from nets.net_interface import add_folder
from tools.datasets.verb import VerbParser
from tools.experiment.experiment import Experiment
from tools.experiment.places import Places
from tools.experiment.scaffold import check_name

__all__ = ["Experiment", "main"]

PROCESSES = ("train", "test", "export", "activelearning")


class ProgramError(UserError):
    """Flags that do not go together; the message is one sentence for the user."""


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> int:
    """Run a process of an experiment; return its exit code, as train.py or deploy.export do."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser(experiment).parse_args(words)
    return run_program(f"{experiment.folder.name}/{experiment.file.name}", lambda: _run(experiment, args, words))


def _run(experiment: Experiment, args: argparse.Namespace, words: Sequence[str]) -> int:
    _check(args)
    add_folder(experiment.folder / "models")
    places = Places(args.root / args.exp / "output")
    from tools.experiment import processes  # late: --help answers without torch

    if args.process == "train":
        return processes.train(experiment, args, places, words)
    if args.process == "test":
        return processes.test(experiment, args, places)
    if args.process == "export":
        return processes.export(args, places)
    return processes.pick(args, places)


def _check(args: argparse.Namespace) -> None:
    """Raise ProgramError for a flag of another process, and for files that are not there."""
    of_process = {
        "resume_from": ("train",),
        "max_epochs": ("train",),
        "no_validate": ("train",),
        "json": ("train", "test"),
        "data": ("train", "test"),
        "unlabelled": ("activelearning",),
        "num": ("activelearning",),
        "strategy": ("activelearning",),
        "sampling_fn": ("activelearning",),
        "labelled": ("activelearning",),
        "output": ("activelearning",),
    }
    for name, processes in of_process.items():
        if getattr(args, name) and args.process not in processes:
            hint = f"it is for {' and '.join(processes)}"
            raise ProgramError(f"--{name.replace('_', '-')} is not for --process {args.process}; {hint}")
    for path in (args.checkpoint, args.resume_from, args.config):
        if path is not None and not path.is_file():
            raise ProgramError(f"{path}: no such file{current_folder(str(path))}")
    check_spares(args.json, args.checkpoint, args.resume_from, args.config)
    if args.checkpoint and args.resume_from:
        raise ProgramError("--checkpoint begins a training from weights, --resume-from goes on with one; name one")
    if args.process == "activelearning" and not (args.unlabelled and (args.num or args.sampling_fn)):
        raise ProgramError("name the images without labels with --unlabelled DIR and how many to pick with --num N")


def _parser(experiment: Experiment) -> argparse.ArgumentParser:
    name = experiment.folder.name
    parser = VerbParser(prog=f"{name}/{experiment.file.name}", description="Train, test and export the experiment.")
    add = parser.add_argument
    add("--exp", default=name, type=_name, help=f"the experiment, whose results lie in ROOT/EXP (default {name})")
    add("--process", choices=PROCESSES, default="train", help="what to do (default train)")
    add("--gpu-id", default="0", metavar="N", type=_gpu_id, help="0 (default), 0,1 for two GPUs, -1 for the CPU")
    add("--config", type=named_path, metavar="F", help="the recipe (default configs/config.json of the experiment)")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="change a key of the config; repeatable")
    add("--root", type=named_path, default=Path("output"), metavar="DIR", help="where results go (default output)")
    add("--data", type=named_path, metavar="PATH", help="cifar-10-binary.tar.gz, or a folder with train and val")
    add("--max-epochs", type=number(1, 10**9), metavar="N", help="epochs, in place of the config's")
    add("--no-validate", action="store_true", help="validate after the last epoch alone")
    add("--resume-from", type=named_path, metavar="F", help="go on from this checkpoint/latest.pth")
    add(
        "--checkpoint",
        type=named_path,
        metavar="F",
        help="start weights of train; else the net (default metric/best.pth)",
    )
    add("--json", type=named_path, metavar="F", help="write the score of train or test into this file, too")
    add("--unlabelled", type=named_path, metavar="DIR", help="of activelearning: images without labels")
    add("--num", type=number(1, 10**9), metavar="N", help="of activelearning: images to pick")
    what = "of activelearning: a JSON file with sampling_fn and sampling_num, instead of --num and --strategy"
    add("--sampling-fn", type=named_path, metavar="F", help=what)
    add("--labelled", type=named_path, metavar="LIST", help="of activelearning: images that have labels already")
    add("--output", type=named_path, metavar="DIR", help="of activelearning: where the picks go")
    add("--strategy", metavar="S", default="", help="of activelearning: as tools.select has them (default random)")
    return parser


def _name(text: str) -> str:
    try:
        return check_name(text, "it")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _gpu_id(text: str) -> str:
    """Return a flag's GPUs as a config has them."""
    if text == "-1":
        return "cpu"
    if not all(part.isdecimal() and part.isascii() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f'must be -1 for the CPU, or numbers with commas between, got "{text}"')
    return text
