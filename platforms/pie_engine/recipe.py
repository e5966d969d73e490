"""From a request and its data to the config of the training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.schema import Config
from platforms.pie_engine.files import CLASSES, FILES
from platforms.pie_engine.nets import RECIPES, Net
from platforms.pie_engine.traincfg import SIZE_STEP, TrainRequest
from trainers.config_checks import training_config


def make_config(
    request: TrainRequest,
    task: str,
    net: Net,
    data: Path,
    num_classes: int,
    output: Path,
    gpus: int,
    bands: Mapping[str, Any],
) -> Config:
    """Return the checked config of a training on a folder's data; `bands` are the keys for theirs.

    Raises ConfigError.
    """
    files = output / FILES
    values: dict[str, Any] = {
        **net.keys,
        **bands,
        "num_classes": num_classes,
        "img_width": request.width,
        "img_height": request.height,
        "class_names_file": str(files / CLASSES),
        "train_data_root_dir": str(data / "train"),
        "val_data_root_dir": str(data / "valid"),
        "learning_rate": request.learning_rate,
        "num_epochs": request.epochs,
        "warmup_epochs": min(1.0, request.epochs / 10),
        "early_stopping_epochs": request.patience(),
        "gpu_id": ",".join(map(str, range(gpus))) if gpus else "cpu",
        "save_path": str(files),
        "save_name": f"{request.model_name}.pth",
        **_batch(request, max(1, gpus)),
    }
    if request.width != request.height:
        values["quarter_turns"] = False
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return training_config(RECIPES[task], overrides)


def usable_gpus(wanted: int, log: Callable[[str], None]) -> int:
    """Return how many GPUs to train on, 0 for the CPU, with a warning where there are fewer than asked for."""
    if not wanted:
        return 0
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < wanted:
        instead = f"{there} of them" if there else "the CPU"
        log(f"warning: gpu_num is {wanted}, but torch can use {there} GPUs here: training on {instead}")
    return min(wanted, there)


def _batch(request: TrainRequest, processes: int) -> dict[str, int]:
    """Return the keys for a batch of all processes together; one image alone is joined by the next one's gradient.

    Batch norm cannot do with one image whose deepest map is one pixel: there two make a batch.
    """
    each = -(-request.batch_size // processes)
    if each == 1 and request.width == request.height == SIZE_STEP:
        return {"batch_size": 2}
    return {"batch_size": each, **({"accumulation_steps": 2} if request.batch_size == 1 else {})}
