"""The files of `output/`, and the fields of trainlog.json."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import ResultsError
from platforms.base import warn, write_text
from platforms.pie_engine.nets import DETECTION

OUTPUT, PICTURES, FILES, LOG = "output", "picture", "files", "trainlog.json"
CLASSES, CONFIG = "classes.json", "config.json"
NO_LOSS = 1e9  # stands for a loss that is infinite or no number, which JSON does not have
TIME = "%Y-%m-%d %H:%M:%S"
OF_MASKS = {"recall": "召回率", "precision": "精度", "score": "得分", "IoU": "IoU", "loss": "损失率"}
OF_BOXES = {
    **{"P": "精确度", "R": "召回率", "F1_score": "F1分数", "mAP": "mAP", "mAP50_95": "mAP50-95"},
    "loss": "损失率",
}

Rows = list[dict[str, Any]]  # {"class": name, "values": {...}}, "all" first


def description(task: str) -> dict[str, str]:
    """Return the keys of a task's values with their Chinese titles."""
    return OF_BOXES if task == DETECTION else OF_MASKS


def process_line(epoch: int, epochs: int) -> str:
    """Return the line that the platform waits for."""
    return f"[Process: {epoch}/{epochs}]"


@dataclass
class TrainLog:
    """trainlog.json, which is written whole every time."""

    path: Path
    training_id: str = ""
    create_time: str = field(default_factory=lambda: time.strftime(TIME))
    description: dict[str, str] = field(default_factory=lambda: dict(OF_MASKS))
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float] | str = ""
    end_time: str = ""

    @classmethod
    def read(cls, path: Path) -> TrainLog:
        """Return what an earlier `write` left. Raises OSError, and ValueError or TypeError for another file."""
        return cls(path, **json.loads(path.read_text(encoding="utf-8")))

    def add_epoch(self, epoch: int, train: Rows, valid: Rows, *, is_best: bool) -> None:
        """Add an epoch; where it is the best so far its `all` of valid, without the loss, is `best`."""
        for split, rows in (("train", train), ("valid", valid)):
            values = rows[0]["values"]
            if not math.isfinite(values["loss"]):
                warn(f"the loss of {split} is {values['loss']} in epoch {epoch}; {LOG} has {NO_LOSS:g} for it")
                values["loss"] = NO_LOSS
        self.epochs.append({"epoch": str(epoch), "train": train, "valid": valid})
        if is_best:
            self.best = {key: value for key, value in valid[0]["values"].items() if key != "loss"}
        self.end_time = time.strftime(TIME)

    def write(self) -> None:
        """Write the file, complete or not at all. Raises ResultsError."""
        values = {key: value for key, value in vars(self).items() if key != "path"}
        write_text(self.path, json.dumps(values, ensure_ascii=False, allow_nan=False, indent=4) + "\n")


def clear(output: Path, keep: Iterable[Path] = ()) -> None:
    """Remove what an earlier run left in the output folder, but for some files. Raises ResultsError."""
    kept = {Path(os.path.realpath(path)) for path in keep}
    try:
        output.mkdir(parents=True, exist_ok=True)
        _remove_below(output, kept)
        for name in (PICTURES, FILES):
            (output / name).mkdir(exist_ok=True)
    except OSError as error:
        raise ResultsError(f"{error.filename}: it cannot be cleared for this training: {error.strerror}") from error


def _remove_below(folder: Path, kept: set[Path]) -> None:
    for path in list(folder.iterdir()):
        real = Path(os.path.realpath(path))
        if path.is_symlink() or not path.is_dir():
            if real not in kept:
                path.unlink()
        elif any(real in keep.parents for keep in kept):
            _remove_below(path, kept)
        else:
            shutil.rmtree(path)
