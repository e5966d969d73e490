"""The platform's files: the metric file, evaluations, the model's folder and name."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.atomic_io import writing
from common.file_lock import try_lock
from platforms.base import PlatformError

FGVC_PIM, SIMSIAM = "FGVC_PIM", "SimSiam"
MODULES = {FGVC_PIM: "pim_module", SIMSIAM: "simsiam_module"}  # of nets/, by the platform's names
SCALE = {FGVC_PIM: 100, SIMSIAM: 1}  # of an accuracy from 0 to 1
DIGITS = 4  # decimals of accuracies and seconds
MAX_NAME_BYTES = 200  # of 255 that a file system allows: suffixes and temporary names are added


@dataclass(frozen=True)
class Runs:
    """The folder that the platform reads: `models/<uuid>/`, and `metric/trial.txt` of the newest run."""

    root: Path

    @property
    def metric(self) -> Path:
        """The path of the metric file."""
        return self.root / "metric" / "trial.txt"

    def make_model_folder(self) -> Path:
        """Make the folder of a new model and return its absolute path. Raises ResultsError."""
        folder = Path(os.path.abspath(self.root)) / "models" / str(uuid.uuid4())  # noqa: PTH100  # links stay as named
        with writing(folder):
            folder.mkdir(parents=True)
        return folder

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the metric file for one run, and remove an older run's. The lock ends with the process in any case.

        Raises PlatformError where another run has it locked, and ResultsError.
        """
        with writing(self.metric):
            self.metric.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.metric.with_name(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                try_lock(lock)
            except BlockingIOError as error:
                hint = "its metric file is for one run at a time; wait for it, or choose another --runs_dir"
                raise PlatformError(f"{self.root}: another training or test is running there; {hint}") from error
            with writing(self.metric):
                self.metric.unlink(missing_ok=True)
            yield
        finally:
            os.close(lock)


def trained_metric(
    model: str, name: str, folder: Path, accuracy: float, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return the metric file of a training: accuracy from 0 to 1, seconds "total", "train_time" and "valid_time"."""
    acc = scale_accuracy(model, accuracy)
    return {
        "recom_model": model,
        "gened_model_name": name,
        "metric_type": "acc",
        "metric_value": acc,
        "used_models": model,
        "model_path": str(folder),
        "model_params": {},
        "eval_result": {model: {"eval": {"acc": acc}}},
        "predict_prob": {},
        "train_consuming": {model: {key: round(seconds[key], DIGITS) for key in ("total", "train_time", "valid_time")}},
    }


def failed_training_metric(model: str | None, folder: Path | None, error: str) -> dict[str, Any]:
    """Return the metric file of a training that has no accuracy (yet): null or empty where nothing is known."""
    return {
        "recom_model": model,
        "gened_model_name": None,
        "metric_type": "acc",
        "metric_value": None,
        "used_models": model,
        "model_path": None if folder is None else str(folder),
        "model_params": {},
        "eval_result": {},
        "predict_prob": {},
        "train_consuming": {},
        "error": error,
    }


def tested_metric(model: str, folder: Path, file_name: str, accuracy: float, seconds: float) -> dict[str, Any]:
    """Return the evaluation of a model on `test`: accuracy from 0 to 1."""
    return {
        "model_path": str(folder),
        "predict_result_filename": file_name,
        "preview_data": {},
        "test_result": {model: {"test": {"acc": scale_accuracy(model, accuracy)}}},
        "predict_prob": {},
        "test_consuming": {model: {"test": round(seconds, DIGITS)}},
    }


def failed_test_metric(folder: Path, error: str) -> dict[str, Any]:
    """Return the metric file of a test that has no accuracy (yet)."""
    return {
        "model_path": str(folder),
        "predict_result_filename": None,
        "preview_data": {},
        "test_result": {},
        "predict_prob": {},
        "test_consuming": {},
        "error": error,
    }


def scale_accuracy(model: str, accuracy: float) -> float:
    """Return an accuracy from 0 to 1 as the platform has it: PIM's in percent, SimSiam's as a share."""
    return round(SCALE[model] * accuracy, DIGITS)


def generated_name(model: str, trial_name: str) -> str:
    """Return the name of a trained model, and of its file without .pth. Raises PlatformError for an invalid file name.

    It is never replaced by another name: the platform uses the name that it composed itself.
    """
    wrong = sorted({character for character in trial_name if character in "/\\" or not character.isprintable()})
    if wrong:
        shown = " ".join(map(ascii, wrong))
        raise PlatformError(f"--trial_name {trial_name!a}: it becomes a file's name, which cannot contain {shown}")
    name = f"{model}_{trial_name}"
    if not trial_name or len(name.encode()) > MAX_NAME_BYTES:
        limit = MAX_NAME_BYTES - len(model) - 1
        raise PlatformError(f"--trial_name must have 1 to {limit} bytes in UTF-8, got {len(trial_name.encode())}")
    return name


def find_model(folder: Path, used_model: str) -> Path:
    """Return the file that `--model_path` and `--used_model` name, with or without .pth. Raises PlatformError."""
    if not folder.is_dir():
        raise PlatformError(f"--model_path {folder}: no such folder (relative paths start from {Path.cwd()})")
    if not used_model or Path(used_model).name != used_model:
        raise PlatformError(f'--used_model names a file inside --model_path, without folders, got "{used_model}"')
    for path in (folder / used_model, folder / f"{used_model}.pth"):
        if path.is_file():
            return path
    models = sorted(path.name for path in folder.iterdir() if path.suffix in (".pth", ".onnx", ".pt", ".pt2"))
    raise PlatformError(f"{folder / used_model}: no such file; in that folder: {', '.join(models) or 'no model'}")


def new_evaluation_path(folder: Path) -> Path:
    """Return evaluation_<unix time>.json; where this second has one already, wait for the next."""
    while (path := folder / f"evaluation_{int(time.time())}.json").exists():
        time.sleep(0.05)
    return path
