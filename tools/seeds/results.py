"""The results of the trainings of several seeds, read from their folders, and what they say together."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.checkpoint import load_checkpoint
from common.atomic_io import write_atomic
from configs.schema import Config
from data_loader.decode_guard import GUARD
from deploy.backends.loading import load_torch
from deploy.inference.uncertainty_scores import softmax
from deploy.uncertainty.outputs import collect
from trainers.data.sample_lists import read_lists
from trainers.reporting.run_summary import ENDED

PREDICTIONS = "predictions.json"
Predictions = dict[str, tuple[int, float]]  # label and score by an image's path


@dataclass(frozen=True)
class SeedResult:
    """A finished training: its report, and its predictions for the validation images; none without classes."""

    seed: int
    folder: Path
    report: dict[str, Any]
    predictions: Predictions

    @property
    def value(self) -> float:
        """Return the best epoch's measure."""
        value: float = self.report["best"][self.report["primary_measure"]["key"]]
        return value


def finished_report(folder: Path) -> dict[str, Any] | None:
    """Return the report of a finished training; None where there is none yet."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_finished = isinstance(report, dict) and report.get("status") in ENDED and bool(report.get("best"))
    return report if is_finished else None


def predict(config: Config) -> Predictions:
    """Return the best net's predictions for the validation images, computed once and kept beside its checkpoint.

    Raises UserError, OSError.
    """
    weights = config.best_checkpoint()
    file = weights.with_name(PREDICTIONS)
    sha256 = load_checkpoint(weights).metadata.weights_sha256
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["weights_sha256"] == sha256:
            return {path: (label, score) for path, (label, score) in kept["predictions"].items()}
    except (OSError, ValueError, KeyError):
        pass  # not made yet, or of an older training
    backend, metadata = load_torch(weights, "cpu" if config.gpu_id == "cpu" else "auto", None)
    if metadata.output != "logits":
        return {}
    GUARD.timeout_s = config.decode_timeout_s
    outputs = collect(backend, metadata, read_lists(config)[1].samples, batch_size=config.batch_size)
    scores = softmax(outputs.logits)
    rows = zip(outputs.files, scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist(), strict=True)
    predictions = {path: (label, round(score, 6)) for path, label, score in rows}
    text = json.dumps({"weights_sha256": sha256, "predictions": predictions}, ensure_ascii=False)
    write_atomic(file, text + "\n")
    return predictions


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean, standard deviation (of a sample: over n - 1; None for one value), least and largest value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "min": min(values), "max": max(values)}


def summarize(results: Sequence[SeedResult], wanted: Sequence[int], labels: dict[str, int]) -> dict[str, Any]:
    """Return the values of seeds.json beside the config; `labels` has those of the validation images by path."""
    report: dict[str, Any] = {"wanted": list(wanted), "seeds": [_seed_row(result) for result in results]}
    if not results:
        return report
    first = results[0].report
    report |= {
        "net": first["net"],
        "measure": first["primary_measure"],
        "class_names": first["class_names"],
        "num_train": first["num_train"],
        "num_val": first["num_val"],
        "summary": spread([result.value for result in results]),
        "per_class": _per_class(results) if first["task"] == "classification" else [],
    }
    if all(result.predictions for result in results):
        report["images"] = _images(results, labels)
    return report


def _seed_row(result: SeedResult) -> dict[str, Any]:
    best = result.report["best"]
    return {
        "seed": result.seed,
        "value": result.value,
        "loss": best["loss"],
        "epoch": best["epoch"],
        "status": result.report["status"],
        "train_seconds": result.report["train_seconds"],
        "folder": str(result.folder),
    }


def _per_class(results: Sequence[SeedResult]) -> list[dict[str, Any]]:
    """Return the recall of each class over the seeds; None where it has no validation images."""
    rows = []
    for columns in zip(*(result.report["per_class"] for result in results), strict=True):
        recalls = [column["recall"] for column in columns]
        known = None not in recalls
        rows.append(
            {
                "class": columns[0]["class"],
                "support": columns[0]["support"],
                "recall": spread(recalls) if known else None,
            }
        )
    return rows


def _images(results: Sequence[SeedResult], labels: dict[str, int]) -> dict[str, Any]:
    """Return the images whose prediction changes, those least agreed on first, and those that no seed has right."""
    paths = [path for path in labels if all(path in result.predictions for result in results)]
    changing, never_right = [], []
    for path in paths:
        predicted = [result.predictions[path] for result in results]
        row: dict[str, Any] = {
            "path": path,
            "label": labels[path],
            "predictions": [label for label, _ in predicted],
            "scores": [score for _, score in predicted],
            "right": sum(label == labels[path] for label, _ in predicted),
        }
        if len(set(row["predictions"])) > 1:
            changing.append(row)
        if not row["right"]:
            never_right.append(row)
    changing.sort(key=lambda row: max(Counter(row["predictions"]).values()))
    never_right.sort(key=lambda row: -float(np.mean(row["scores"])))
    always = sum(all(result.predictions[path][0] == labels[path] for result in results) for path in paths)
    return {"measured": len(paths), "always_right": always, "changing": changing, "never_right": never_right}
