"""The values of trainlog.json from the trainer's validations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from platforms.pie_engine.files import Rows
from trainers.evaluation.detection_metrics import DetectionValidation

OF_CLASS = {"P": "precision", "R": "recall", "F1_score": "f1", "mAP": "ap50", "mAP50_95": "ap50_95"}


def mask_rows(confusion: np.ndarray, names: Sequence[str], loss: float) -> Rows:
    """Return the rows of a split from its pixels (K, K) of label by prediction.

    A class with neither a true nor a predicted pixel has 0.0, and is left out of the means.
    """
    hits = confusion.diagonal().astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    columns = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(true, 1),
        "score": 2 * hits / np.maximum(true + predicted, 1),
        "IoU": hits / np.maximum(true + predicted - hits, 1),
    }
    counts = true + predicted > 0
    means = {key: float(values[counts].mean()) if counts.any() else 0.0 for key, values in columns.items()}
    rows: Rows = [{"class": "all", "values": {**means, "loss": loss}}]
    for index, name in enumerate(names):
        rows.append({"class": name, "values": {key: float(values[index]) for key, values in columns.items()}})
    return rows


def box_rows(validation: DetectionValidation) -> Rows:
    """Return the rows of a split; what does not exist for a class is 0.0."""
    scalars = validation.scalars()
    keys = {"P": "precision", "R": "recall", "F1_score": "f1", "mAP": "map50", "mAP50_95": "map50_95"}
    means: dict[str, Any] = {key: float(scalars[name]) for key, name in keys.items()}
    rows: Rows = [{"class": "all", "values": {**means, "loss": validation.loss}}]
    for row in validation.per_class:
        values = {key: float(row[name] or 0.0) for key, name in OF_CLASS.items()}
        rows.append({"class": row["class"], "values": values})
    return rows
