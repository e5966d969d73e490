"""The platform's training: from a dataset and a few flags to a model's folder and the metric file."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.signals import Stopped, ended_by_signals
from configs.schema import Config
from deploy.backends.devices import parse_device
from platforms.base import (
    UNFINISHED,
    PlatformError,
    TrainingFailedError,
    log,
    metric_file,
    warn,
    write_json,
    write_text,
    write_unfinished,
)
from platforms.tianji.dataset import SEPARATOR, Dataset, list_text, paths_text, read_dataset, split_valid
from platforms.tianji.files import (
    FGVC_PIM,
    SIMSIAM,
    Runs,
    failed_training_metric,
    generated_name,
    scale_accuracy,
    trained_metric,
)
from platforms.tianji.recipes import FixedKeys, Settings, make_config, read_annotation, requested_model

DATASETS = {FGVC_PIM: Path("/data/CUB_200/"), SIMSIAM: Path("/data/flower_classifier/")}
EXPORTS = ("onnx",)
SIGNALS = (130, 138, 143)  # exit codes of a training that SIGINT, SIGUSR1 or SIGTERM ended
# Files of a model's folder:
CLASSES, RECIPE = "classes.txt", "config.json"
PRETRAINING = "pretraining"
PRETRAINING_LIST, LEARNT_LIST, MEASURED_LIST = "pretraining_train.txt", "refinement_train.txt", "refinement_valid.txt"


@dataclass
class Attempt:
    """The model and the folder of a training as far as they are known, for the metric file if it fails."""

    model: str | None = None
    folder: Path | None = None

    def failed(self, error: str) -> dict[str, Any]:
        """Return the metric file of this training if it fails now."""
        return failed_training_metric(self.model, self.folder, error)


def run_training(args: argparse.Namespace, started: float) -> int:
    """Train, export and write the metric file; return 0. Raises UserError and TrainingFailedError.

    `started` is the `time.perf_counter()` that the total time is measured from.
    """
    runs = Runs(args.runs_dir)
    attempt = Attempt()
    with runs.exclusive(), metric_file(runs.metric, attempt.failed):
        settings = read_annotation(args.annotation_data)
        requested, settings = requested_model(args.model, settings)
        parse_device(args.device)
        dataset = read_dataset(args.dataset_path or default_dataset(requested))
        attempt.model = model = choose_model(requested, dataset)
        name = generated_name(model, args.trial_name)
        if dataset.is_labelled and dataset.loose and model == FGVC_PIM:
            warn(f"{len(dataset.loose)} images of train are in no class folder and are left out")
        attempt.folder = folder = runs.make_model_folder()
        write_unfinished(runs.metric, attempt.failed(UNFINISHED))
        with _removed_on_a_mistake(attempt):
            config = prepare(model, name, folder, dataset, args.device, settings)
        with ended_by_signals():
            _train(config)
            accuracy, seconds = read_results(config)
            export(config, args.device)
            seconds["total"] = time.perf_counter() - started
            write_json(runs.metric, trained_metric(model, name, folder, accuracy, seconds))
    log(f"acc {scale_accuracy(model, accuracy)}, model in {folder}, metric in {runs.metric}")
    return 0


def default_dataset(model: str | None) -> Path:
    """Return the platform's own folder for a model; without a model, the one of the two that exists."""
    if model is None:
        return next((path for path in DATASETS.values() if path.is_dir()), DATASETS[FGVC_PIM])
    return DATASETS[model]


def choose_model(requested: str | None, dataset: Dataset) -> str:
    """Return the requested model, else the one that fits the dataset. Raises PlatformError where it does not fit."""
    model = requested or (FGVC_PIM if dataset.is_labelled else SIMSIAM)
    if model == FGVC_PIM and not dataset.is_labelled:
        raise PlatformError(
            f"{dataset.root / 'train' / 'images'}: no class folders, and {FGVC_PIM} learns from labels; "
            f"use --model {SIMSIAM}, or sort the images into one folder a class"
        )
    return model


def prepare(model: str, name: str, folder: Path, dataset: Dataset, device: str, settings: Settings) -> Config:
    """Write class names, lists and recipe into the model's folder; return the checked config. Raises UserError."""
    write_text(folder / CLASSES, "".join(f"{name}\n" for name in dataset.class_names))
    uses_cuda = find_cuda(device)
    gpu_id = _gpu_id(device, uses_cuda=uses_cuda, settings=settings)
    values: Settings = {
        "num_classes": len(dataset.class_names),
        "class_names_file": str(folder / CLASSES),
        "file_label_separator": SEPARATOR,
        "train_data_root_dir": str(dataset.root / "train" / "images"),
        "val_data_root_dir": dataset.valid.root,
        "train_data_file": "",
        "val_data_file": "",
        "log_path": str(folder / "logs"),
        "save_path": str(folder),
        "save_name": f"{name}.pth",
        "model_net_name": "PIM",
        **({"gpu_id": gpu_id} if gpu_id else {}),
    }
    if model == SIMSIAM:
        seed = settings.get("seed", 0)
        values |= _write_simsiam_lists(folder, name, dataset, seed if isinstance(seed, int) else 0)
    else:
        values["next_stage"] = {}
    config = make_config(model, uses_cuda=uses_cuda, fixed=FixedKeys(values), settings=settings, log=log)
    write_text(folder / RECIPE, config.model_dump_json(indent=1) + "\n")  # what train.py --resume needs
    return config


def find_cuda(device: str) -> bool:
    """Return whether to train on a GPU. Raises PlatformError where torch cannot use the requested one."""
    if device == "cpu":
        return False
    import torch

    if torch.cuda.is_available():
        return True
    if device != "auto":
        raise PlatformError(
            f"--device {device}: torch {torch.__version__} can use no CUDA GPU on this machine; "
            "use --device cpu, or --device auto for what is available"
        )
    return False


def read_results(config: Config) -> tuple[float, dict[str, float]]:
    """Return the accuracy of the checkpoint on the disk, 0 to 1, and the seconds of all stages.

    Raises TrainingFailedError where a stage has left no report.
    """
    from artifacts.checkpoint import load_checkpoint

    stages = all_stages(config)
    best = load_checkpoint(stages[-1].best_checkpoint()).progress["best"]
    seconds = {"train_time": 0.0, "valid_time": 0.0}
    for stage in stages:
        report = Path(stage.save_path) / "report.json"
        try:
            values = json.loads(report.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingFailedError(f"{report}: the training left no report with its times: {error}") from error
        seconds["train_time"] += values["train_seconds"]
        seconds["valid_time"] += values["validation_seconds"]
    return best["top1"], seconds


def all_stages(config: Config) -> list[Config]:
    """Return the configs of the stages in their order; the last one's checkpoint is the model."""
    following = config.next_config()
    return [config, following] if following else [config]


def export(config: Config, device: str) -> None:
    """Write the other formats beside the checkpoint, and remove the training states.

    A failed export is only a warning: the accuracy is the checkpoint's, which is complete.
    """
    from artifacts.archive import remove_backups
    from artifacts.formats import REPORT
    from deploy.export.exporter import export_formats
    from deploy.export.request import ExportRequest

    stages = all_stages(config)
    final = stages[-1]
    folder = Path(final.save_path)
    try:
        request = ExportRequest(weights=final.best_checkpoint(), formats=EXPORTS, output_dir=folder, device=device)
        if export_formats(request):
            warn(f"an export was refused, see {folder / REPORT}; the checkpoint itself is complete")
    except UserError as error:
        warn(f"the model was not exported, its checkpoint is complete: {error}")
    for stage in stages:
        remove_backups(stage.last_checkpoint())
        stage.last_checkpoint().unlink(missing_ok=True)  # three times the size, and of no use to a finished training
        log(f"removed, as the training is finished: {stage.last_checkpoint()}")


def _train(config: Config) -> None:
    from trainers.runner import run_stages

    code = run_stages(config)
    if code in SIGNALS:
        raise Stopped(code - 128)
    if code:
        raise TrainingFailedError("the training failed, see the lines above", code)


@contextmanager
def _removed_on_a_mistake(attempt: Attempt) -> Iterator[None]:
    """Remove the model's folder where a mistake ends a training before it has begun."""
    try:
        yield
    except UserError:
        if attempt.folder is not None:
            shutil.rmtree(attempt.folder, ignore_errors=True)
            attempt.folder = None
        raise


def _gpu_id(device: str, *, uses_cuda: bool, settings: Settings) -> str:
    """Return the config's gpu_id for a device; "" where the recipe or the settings choose the GPU."""
    if not uses_cuda:
        return "cpu"
    if settings.get("gpu_id") in ("", "cpu"):
        raise PlatformError("advance_settings: gpu_id selects GPUs; use --device cpu for training without one")
    index = parse_device(device)[1]
    return "" if index is None else str(index)


def _write_simsiam_lists(folder: Path, name: str, dataset: Dataset, seed: int) -> Settings:
    """Write SimSiam's lists, and return the config keys of what its two stages read and where they write.

    The pretraining gets paths without labels. Where `train` has no labels, it is validated on the images that the
    refinement learns from, so that the images that `acc` is measured on have no influence on it.
    """
    train_root = dataset.root / "train" / "images"
    write_text(folder / PRETRAINING_LIST, paths_text(dataset.unlabelled_paths(), train_root))
    values: Settings = {
        "model_net_name": "SimSiam",
        "train_data_file": str(folder / PRETRAINING_LIST),
        "save_path": str(folder / PRETRAINING),
        "save_name": "encoder.pth",
        "next_stage.model_net_name": "SimSiam_probe",
        "next_stage.train_data_file": "",
        "next_stage.val_data_file": "",
        "next_stage.save_path": str(folder),
        "next_stage.save_name": f"{name}.pth",
    }
    if dataset.is_labelled:
        return values
    learnt, measured = split_valid(dataset.valid, seed)
    counts = f"{len(learnt)} images of valid are learnt from, acc is measured on the other {len(measured)}"
    log(f"train has no labels: {counts}")
    write_text(folder / LEARNT_LIST, list_text(learnt, dataset.valid.root))
    write_text(folder / MEASURED_LIST, list_text(measured, dataset.valid.root))
    return values | {
        "val_data_file": str(folder / LEARNT_LIST),
        "next_stage.train_data_root_dir": dataset.valid.root,
        "next_stage.train_data_file": str(folder / LEARNT_LIST),
        "next_stage.val_data_file": str(folder / MEASURED_LIST),
    }
