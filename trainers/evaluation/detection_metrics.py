"""The validation of a net that gives boxes: loss, COCO's mAP, and precision, recall and F1 at the best threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from artifacts.box_matching import HIT, MISS, matched
from artifacts.coco_map import average_precision
from artifacts.detections import LEAST_SCORE, SCORE_THRESHOLDS, Detections, find_objects
from artifacts.voc_ap import voc_average_precision
from data_loader.box_geometry import unfitted
from data_loader.box_target import Boxes
from data_loader.preprocess import Preprocess
from data_loader.samples import SampleList
from trainers.evaluation.class_curves import class_curves
from trainers.evaluation.segmentation_metrics import mean_of
from trainers.evaluation.validation import Measure, Validation
from trainers.runtime.distributed import gather_over_processes
from visualization.html_page import percent

MAP50 = Measure("map50", "mAP at IoU 0.5", is_share=True)


@dataclass(frozen=True)
class WorstBoxes:
    """An image of a low F1 at the best threshold: its objects that were found, and not, and what is none of them."""

    path: str
    f1: float
    hits: int
    missed: int
    wrong: int
    loss: float


@dataclass(frozen=True)
class DetectionValidation(Validation):
    """`average` is COCO's, as `AveragePrecision.means`, and `voc_map50`; all else is at IoU 0.5 and `score_threshold`.

    `best_image` is the path of the image of the highest F1, of those that hold objects; `precision_recall` as
    `AveragePrecision.precision50`.
    """

    average: dict[str, float]
    score_threshold: float
    precision: float
    recall: float
    f1: float
    per_class: list[dict[str, Any]]
    worst: list[WorstBoxes]
    best_image: str = ""
    precision_recall: list[list[float]] = field(default_factory=list)  # older checkpoints have none

    def scalars(self) -> dict[str, float]:
        """Return mAP, and the means of F1, precision and recall over the classes."""
        keys = ("map50", "map50_95")
        means = {key: self.average.get(key, 0.0) for key in keys}
        return {**means, "f1": self.f1, "precision": self.precision, "recall": self.recall}

    def parts(self) -> dict[str, float]:
        """Return AP of each class, COCO's other figures, and the threshold."""
        classes = {f"ap50_{tag}": value for tag, value in class_curves(self.per_class, "ap50").items()}
        return {**classes, **self.average, "score_threshold": self.score_threshold}

    def report_rows(self) -> Sequence[tuple[str, str]]:
        """Return the figures beside the measure."""
        names = {"map50_95": "mAP at IoU 0.5 to 0.95", "f1": "F1", "precision": "precision", "recall": "recall"}
        scalars = self.scalars()
        rows = [(name, percent(scalars[key])) for key, name in names.items()]
        return [*rows, ("score threshold", f"{self.score_threshold:.2f}")]

    def report_fields(self) -> dict[str, Any]:
        """Return the classes, their curves, and the worst images."""
        return {"per_class": self.per_class, "precision_recall": self.precision_recall, "worst": self.worst}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetectionValidation:
        """Return what `to_dict` was made of. Raises TypeError for other values."""
        return cls(**{**values, "worst": [WorstBoxes(**row) for row in values["worst"]]})


class _Row(NamedTuple):
    """What was found in one image, in its own pixels."""

    place: int  # in the samples
    loss: float
    found: Detections


class DetectionMetrics:
    """Gathers one validation over all processes; each image must be given to exactly one of them."""

    def __init__(self, samples: SampleList, preprocess: Preprocess, num_worst: int = 24) -> None:
        self.samples, self.preprocess, self.num_worst = samples, preprocess, num_worst
        self._rows: list[_Row] = []

    def update(self, outputs: torch.Tensor, indices: torch.Tensor, losses: torch.Tensor) -> None:
        """Count a batch: outputs (N, A, 4 + K), indices (N,) into the samples, losses (N,)."""
        found = find_objects(outputs.detach().float().cpu().numpy(), LEAST_SCORE)
        for objects, index, loss in zip(found, indices.tolist(), losses.tolist(), strict=True):
            size = self.samples.samples[index].target.size
            boxes = unfitted(self.preprocess, objects.boxes, size).astype(np.float32)
            self._rows.append(_Row(index, loss, objects._replace(boxes=boxes)))

    def compute(self, threshold: float | None = None) -> DetectionValidation:
        """Return the validation over all processes; every process must call this, and gets the same result.

        `threshold` is one of SCORE_THRESHOLDS, None for the best of them.
        """
        rows = sorted(gather_over_processes(self._rows), key=lambda row: row.place)
        truths: list[Boxes] = [self.samples.samples[row.place].target for row in rows]
        names = self.samples.class_names
        found = [row.found for row in rows]
        average = average_precision(truths, found, len(names))
        voc = voc_average_precision(truths, found, len(names))
        of_voc = [value for value in voc if value is not None]
        kinds = [matched(row.found, truth) for row, truth in zip(rows, truths, strict=True)]
        threshold, classes = best_threshold(found, kinds, truths, len(names), threshold)
        aps = {"ap50": average.ap50, "ap50_95": average.ap50_95, "voc_ap50": voc}
        per_class = [
            {"class": name, "label": label, **{key: values[label] for key, values in aps.items()}, **scores}
            for (label, name), scores in zip(enumerate(names), classes, strict=True)
        ]
        with_objects = [row for row in per_class if row["support"]]
        return DetectionValidation(
            loss=sum(row.loss for row in rows) / len(rows) if rows else float("nan"),
            average=average.means | ({"voc_map50": sum(of_voc) / len(of_voc)} if of_voc else {}),
            score_threshold=threshold,
            precision=mean_of(with_objects, "precision"),
            recall=mean_of(with_objects, "recall"),
            f1=mean_of(with_objects, "f1"),
            per_class=per_class,
            worst=self._worst(rows, kinds, truths, threshold),
            best_image=self._best(rows, kinds, truths, threshold),
            precision_recall=[[round(value, 4) for value in curve] for curve in average.precision50],
        )

    def _worst(
        self, rows: Sequence[_Row], kinds: Sequence[np.ndarray], truths: Sequence[Boxes], threshold: float
    ) -> list[WorstBoxes]:
        """Return the images with mistakes, the lowest F1 first, then the highest loss."""
        worst = []
        for row, of_image, truth in zip(rows, kinds, truths, strict=True):
            hits, missed, wrong = _counts(row.found, of_image, truth, threshold)
            if missed or wrong:
                f1 = 2 * hits / (2 * hits + missed + wrong)
                worst.append(WorstBoxes(self.samples.samples[row.place].path, f1, hits, missed, wrong, row.loss))
        return sorted(worst, key=lambda row: (row.f1, -row.loss))[: self.num_worst]

    def _best(
        self, rows: Sequence[_Row], kinds: Sequence[np.ndarray], truths: Sequence[Boxes], threshold: float
    ) -> str:
        """Return the path of the image of the highest F1, of equals the first; "" where none holds an object."""
        best, path = -1.0, ""
        for row, of_image, truth in zip(rows, kinds, truths, strict=True):
            hits, missed, wrong = _counts(row.found, of_image, truth, threshold)
            if hits + missed and (f1 := 2 * hits / (2 * hits + missed + wrong)) > best:
                best, path = f1, self.samples.samples[row.place].path
        return path


def _counts(found: Detections, kinds: np.ndarray, truth: Boxes, threshold: float) -> tuple[int, int, int]:
    """Return an image's objects that were found at a threshold, that were not, and what is none of them."""
    shown = kinds[found.scores >= threshold]
    hits, wrong = int((shown == HIT).sum()), int((shown == MISS).sum())
    return hits, int((~truth.ignored).sum()) - hits, wrong


def best_threshold(
    found: Sequence[Detections],
    kinds: Sequence[np.ndarray],
    truths: Sequence[Boxes],
    num_classes: int,
    threshold: float | None = None,
) -> tuple[float, list[dict[str, Any]]]:
    """Return the score threshold of the highest mean F1 over the classes with objects, and each class's scores there.

    What does not exist is None: precision of a class never found, recall and F1 of one without objects. Of equally
    good thresholds the middle one counts. A given `threshold`, one of SCORE_THRESHOLDS, takes the place of the best.
    """
    labels, scores = (np.concatenate([getattr(row, key) for row in found]) for key in ("labels", "scores"))
    all_kinds = np.concatenate(list(kinds))
    true_labels = np.concatenate([truth.labels[~truth.ignored] for truth in truths]).astype(np.int64)
    support = np.bincount(true_labels, minlength=num_classes)
    counts = np.zeros((2, num_classes, len(SCORE_THRESHOLDS)), np.int64)  # misses and hits, above each threshold
    for kind in (MISS, HIT):
        for label in range(num_classes):
            chosen = np.sort(scores[(labels == label) & (all_kinds == kind)].astype(np.float64))
            counts[kind, label] = len(chosen) - np.searchsorted(chosen, SCORE_THRESHOLDS, side="left")
    f1 = 2 * counts[HIT] / np.maximum(counts.sum(axis=0) + support[:, None], 1)  # (K, thresholds)
    mean = f1[support > 0].mean(axis=0) if support.any() else np.zeros(len(SCORE_THRESHOLDS))
    equally_good = np.flatnonzero(mean > mean.max() - 1e-12)
    best = int(equally_good[len(equally_good) // 2])
    if threshold is not None:
        best = int(np.abs(SCORE_THRESHOLDS - threshold).argmin())
    rows = []
    for label in range(num_classes):
        wrong, hits, total = (int(value) for value in (*counts[:, label, best], support[label]))
        rows.append(
            {
                "precision": hits / (hits + wrong) if hits + wrong else None,
                "recall": hits / total if total else None,
                "f1": float(f1[label, best]) if total else None,
                "support": total,
            }
        )
    return float(SCORE_THRESHOLDS[best]), rows
