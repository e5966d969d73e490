"""The processes of an experiment: its training, its test, its export, and the pick of images to label."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from artifacts.archive import remove_backups
from common.atomic_io import write_atomic, writing
from common.errors import UserError
from configs.schema import Config
from data_loader.samples import HELD_OUT_NAMES, current_folder
from datasets.cifar import ENDING, unpack_cifar10
from datasets.pictures import place_file
from deploy.export.exporter import export_formats
from deploy.export.request import ExportRequest
from tools.experiment.experiment import Experiment
from tools.experiment.hooks import ExperimentHooks
from tools.experiment.places import Places, score
from tools.select.__main__ import main as select_images
from trainers.builder import build_start_net, build_trainer
from trainers.config_checks import training_config
from trainers.data.reading import read_data, read_unlabelled_data
from trainers.reporting.reporter import Reporter, log_nothing
from trainers.runner import log_line, processes_wanted, run_rank
from trainers.runtime.device import Runtime, choose_device, choose_precision
from trainers.runtime.distributed import launch, world_from_environment

MODEL = "model.onnx"


class ProcessError(UserError):
    """Data or a config that a process cannot use; the message is one sentence for the user."""


def train(experiment: Experiment, args: argparse.Namespace, places: Places, words: Sequence[str]) -> int:
    """Train, on as many processes as the GPUs named; return the exit code. `words` are the program's flags."""
    config = _config(experiment, args, places, _start(args.checkpoint, "finetune") if args.checkpoint else [])
    if config.next_stage:
        raise ProcessError("next_stage: an experiment trains one stage; leave it out, or use train.py")
    if args.resume_from:
        with writing(config.last_checkpoint()):
            place_file(args.resume_from, config.last_checkpoint(), overwrite=True)
    world, count = world_from_environment(), processes_wanted(config)
    if "RANK" not in os.environ and count > 1:
        code = launch([str(experiment.file), *words], count)
    else:
        hooks = ExperimentHooks(experiment, places)
        code = run_rank(config, world, resume=args.resume_from is not None, hooks=hooks)
    if world.is_main and places.latest.is_file():
        remove_backups(config.last_checkpoint())
        config.last_checkpoint().unlink(missing_ok=True)  # latest.pth is the same file
    if args.json and not code and world.is_main:
        _write_json(args.json, json.loads((places.metric / "best.json").read_text(encoding="utf-8")))
    return code


def test(experiment: Experiment, args: argparse.Namespace, places: Places) -> int:
    """Measure a checkpoint on the validation images; print the score, and return 0. Raises UserError."""
    weights = _checkpoint(args, places)
    config = _config(experiment, args, places, [*_start(weights, "update"), "fit_head=false"])
    hooks = ExperimentHooks(experiment, places)
    device, _ = choose_device(config.gpu_ids()[:1])
    runtime = Runtime(device, choose_precision(config.precision, device))
    train_list, val_list, _ = read_data(config, runtime.world, log_line, hooks.lists_read)
    unlabelled, _ = read_unlabelled_data(config, train_list, val_list, runtime.world, log_line)
    net = build_start_net(config, log_line, train_list.class_names)
    reporter = Reporter(log_nothing, show_progress=True)
    lists = train_list, val_list
    trainer = build_trainer(config, net, *lists, runtime=runtime, reporter=reporter, unlabelled=unlabelled)
    validation = trainer.validator.validate()
    numbers = score({**validation.scalars(), **hooks.further_numbers(validation)})
    _write_json(args.json, {"score": numbers, "loss": validation.loss, "num": len(val_list.samples)})
    log_line(f"{weights}: loss {validation.loss:.4f}, " + ", ".join(f"{key} {x:.4f}" for key, x in numbers.items()))
    return 0


def export(args: argparse.Namespace, places: Places) -> int:
    """Export a checkpoint to ONNX, verified; return 0, or 3 where the file was refused. Raises UserError."""
    weights = _checkpoint(args, places)
    device = "cpu" if args.gpu_id == "cpu" else "auto"
    request = ExportRequest(weights=weights, formats=["onnx"], output_dir=places.export / weights.stem, device=device)
    code = export_formats(request)
    if not code:
        name = places.export / f"{args.exp}-{weights.stem}-model.onnx"
        with writing(name):
            place_file(request.output_dir / MODEL, name, overwrite=True)
        log_line(f"{name}")
    return code


def pick(args: argparse.Namespace, places: Places) -> int:
    """Pick the images to label next with a trained net, into `activelearning/`; return the exit code."""
    words = ["--weights", str(_checkpoint(args, places)), "--unlabelled", str(args.unlabelled)]
    for flag in ("num", "strategy", "sampling_fn", "labelled"):
        words += [f"--{flag}", str(getattr(args, flag))] if getattr(args, flag) else []
    words += ["--device", "cpu"] if args.gpu_id == "cpu" else []
    return select_images([*words, "--output", str(args.output or places.root / "activelearning")])


def _config(experiment: Experiment, args: argparse.Namespace, places: Places, changes: list[str]) -> Config:
    """Return the checked config of a training or test. Raises UserError."""
    file = args.config or experiment.folder / "configs" / "config.json"
    keys = places.config_keys() | {"gpu_id": args.gpu_id} | (_data_keys(args.data) if args.data else {})
    overrides = [*args.set, *(f"{key}={value}" for key, value in keys.items()), *changes]
    if args.max_epochs:
        overrides.append(f"num_epochs={args.max_epochs}")
    config = training_config(file, overrides)
    return config.model_copy(update={"validation_interval": config.num_epochs}) if args.no_validate else config


def _start(weights: Path, mode: str) -> list[str]:
    """Return the changes of a config that starts from weights."""
    return [f"train_mode={mode}", f"pretrained_path={weights.parent}", f"pretrained_file={weights.name}"]


def _data_keys(data: Path) -> dict[str, str]:
    """Return the config's keys for the data of a flag. Raises UserError."""
    if data.name.endswith(ENDING):
        folder = data.with_name(data.name.removesuffix(ENDING))
        unpack_cifar10(data, folder)
    else:
        folder = data
    held_out = next((name for name in sorted(HELD_OUT_NAMES, reverse=True) if (folder / name).is_dir()), "")
    if not (folder / "train").is_dir() or not held_out:
        hint = f"a folder must have train and val or test, and an archive end in {ENDING}"
        raise ProcessError(f"--data {data}: {hint}{current_folder(str(data))}")
    roots = {"train_data_root_dir": str(folder / "train"), "val_data_root_dir": str(folder / held_out)}
    return {**roots, "train_data_file": "", "val_data_file": ""}


def _checkpoint(args: argparse.Namespace, places: Places) -> Path:
    """Return the checkpoint to use. Raises ProcessError where it is not there."""
    path: Path = args.checkpoint or places.best
    if not path.is_file():
        raise ProcessError(f"{path}: the experiment has no trained net yet; train it first, or name a --checkpoint")
    return path


def _write_json(path: Path | None, content: object) -> None:
    if path is not None:
        with writing(path):
            write_atomic(path, json.dumps(content, indent=1) + "\n")
