"""Logits, labels and calibrated metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from PIL import Image

from artifacts.calibration import Calibration
from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess

CALIBRATION = Calibration("least_confidence", 0.01, 0.95, 0.05, 1000, 900, 3, 0.008)
NAMES = ("猫", "dog", "bird/s")


def metadata_with(score: str = "least_confidence", **changes: Any) -> ModelMetadata:
    net = {"module": "resnet_module", "name": "resnet18", "args": {}}
    calibrated = {
        "temperature": 1.6,
        "thresholds": {"accept": 0.2, "conformal": 0.88},
        "calibration": replace(CALIBRATION, score=score),
    }
    return ModelMetadata(NAMES, Preprocess(8, 8), net, **(calibrated | changes))


def some_logits(count: int = 300, classes: int = 7, seed: int = 0, spread: float = 4.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (count, classes)).astype(np.float32)


def true_labels(logits: np.ndarray, temperature: float, seed: int = 1) -> np.ndarray:
    """Draw each label from softmax(logits / temperature): that is the temperature that fits."""
    scores = scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1)
    draws = np.random.default_rng(seed).random((len(logits), 1))
    return np.minimum((draws > scores.cumsum(axis=1)).sum(axis=1), logits.shape[1] - 1)


def grey(path: Path, value: int, size: tuple[int, int] = (12, 10)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return str(path)
