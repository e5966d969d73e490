"""The platform's files: the metric file, evaluations, the model's folder and name. Each is complete or not there."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic
from common.errors import UserError

if sys.platform != "win32":
    import fcntl

FGVC_PIM, SIMSIAM = "FGVC_PIM", "SimSiam"
MODULES = {FGVC_PIM: "pim_module", SIMSIAM: "simsiam_module"}  # of nets/, by the platform's names
PERCENT = {FGVC_PIM: 100, SIMSIAM: 1}  # what the accuracy 1 is written as
DIGITS = 4  # behind the point, of accuracies and seconds
MOST_NAME_BYTES = 200  # of 255 that a file system takes: endings and temporary names are added


class PlatformError(UserError):
    """A mistake of the user's; the message is the sentence to show."""


@dataclass(frozen=True)
class Runs:
    """The folder that the platform reads: `models/<uuid>/`, and `metric/trial.txt` of the newest run."""

    root: Path

    @property
    def metric(self) -> Path:
        """Give the path of the metric file."""
        return self.root / "metric" / "trial.txt"

    def make_model_folder(self) -> Path:
        """Make the folder of a new model. Raises PlatformError."""
        folder = Path(os.path.abspath(self.root)) / "models" / str(uuid.uuid4())  # noqa: PTH100  # links stay as named
        with _writing(folder):
            folder.mkdir(parents=True)
        return folder

    @contextmanager
    def of_this_run(self) -> Iterator[None]:
        """Hold the metric file for one run, and take an older run's away. Raises PlatformError where another holds it.

        The lock ends with the process, however that ends.
        """
        with _writing(self.metric):
            self.metric.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.metric.with_name(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            if not _try_lock(lock):
                hint = "its metric file tells of one run; wait for it, or choose another --runs_dir"
                raise PlatformError(f"{self.root}: another training or test is at work there; {hint}")
            with _writing(self.metric):
                self.metric.unlink(missing_ok=True)
            yield
        finally:
            os.close(lock)


def trained_metric(model: str, name: str, folder: Path, top1: float, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Give the metric file of a training: `top1` from 0 to 1, seconds "total", "train_time" and "valid_time"."""
    accuracy = written_accuracy(model, top1)
    return {
        "recom_model": model,
        "gened_model_name": name,
        "metric_type": "acc",
        "metric_value": accuracy,
        "used_models": model,
        "model_path": str(folder),
        "model_params": {},
        "eval_result": {model: {"eval": {"acc": accuracy}}},
        "predict_prob": {},
        "train_consuming": {model: {key: round(seconds[key], DIGITS) for key in ("total", "train_time", "valid_time")}},
    }


def failed_training_metric(model: str | None, folder: Path | None, error: str) -> dict[str, Any]:
    """Give the metric file of a training that has no accuracy (yet): null or empty where there is nothing to say."""
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


def tested_metric(model: str, folder: Path, file_name: str, top1: float, seconds: float) -> dict[str, Any]:
    """Give the evaluation of a model on `test`: `top1` from 0 to 1."""
    return {
        "model_path": str(folder),
        "predict_result_filename": file_name,
        "preview_data": {},
        "test_result": {model: {"test": {"acc": written_accuracy(model, top1)}}},
        "predict_prob": {},
        "test_consuming": {model: {"test": round(seconds, DIGITS)}},
    }


def failed_test_metric(folder: Path, error: str) -> dict[str, Any]:
    """Give the metric file of a test that has no accuracy (yet)."""
    return {
        "model_path": str(folder),
        "predict_result_filename": None,
        "preview_data": {},
        "test_result": {},
        "predict_prob": {},
        "test_consuming": {},
        "error": error,
    }


def written_accuracy(model: str, top1: float) -> float:
    """Give an accuracy from 0 to 1 as the platform has it: PIM's in percent, SimSiam's as a share."""
    return round(PERCENT[model] * top1, DIGITS)


def generated_name(model: str, trial_name: str) -> str:
    """Give the name of a trained model, and of its file without .pth. Raises PlatformError where no file can have it.

    It is never changed into another: the platform asks for the name that it made itself.
    """
    wrong = sorted({character for character in trial_name if character in "/\\" or not character.isprintable()})
    if wrong:
        shown = " ".join(map(ascii, wrong))
        raise PlatformError(f"--trial_name {trial_name!a}: it becomes a file's name, which cannot hold {shown}")
    name = f"{model}_{trial_name}"
    if not trial_name or len(name.encode()) > MOST_NAME_BYTES:
        most = MOST_NAME_BYTES - len(model) - 1
        raise PlatformError(f"--trial_name must have 1 to {most} bytes in UTF-8, got {len(trial_name.encode())}")
    return name


def find_model(folder: Path, used_model: str) -> Path:
    """Give the file that `--model_path` and `--used_model` name, with or without .pth. Raises PlatformError."""
    if not folder.is_dir():
        raise PlatformError(f"--model_path {folder}: no such folder (relative paths start from {Path.cwd()})")
    if not used_model or Path(used_model).name != used_model:
        raise PlatformError(f'--used_model names a file inside --model_path, without folders, got "{used_model}"')
    for path in (folder / used_model, folder / f"{used_model}.pth"):
        if path.is_file():
            return path
    there = sorted(path.name for path in folder.iterdir() if path.suffix in (".pth", ".onnx", ".pt", ".pt2"))
    raise PlatformError(f"{folder / used_model}: no such file; in that folder: {', '.join(there) or 'no model'}")


def new_evaluation_path(folder: Path) -> Path:
    """Give evaluation_<unix time>.json; where this second has one already, wait for the next."""
    while (path := folder / f"evaluation_{int(time.time())}.json").exists():
        time.sleep(0.05)
    return path


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file complete or not at all, in ASCII. Raises PlatformError; an earlier file then stays."""
    write_text(path, json.dumps(values))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file complete or not at all. Raises PlatformError; an earlier file then stays."""
    with _writing(path):
        write_atomic(path, text)


def _try_lock(file: int) -> bool:
    """Lock a file; False where another process holds it. Where the disk knows no locks, nobody holds it."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PlatformError(f"{path}: cannot write it: {error.strerror or error}") from error
