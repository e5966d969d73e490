"""The validation of a net that gives masks: loss, and what follows from one confusion of all pixels of the split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_loader.mask_classes import VOID
from trainers.evaluation.boundary_f1 import boundary_counts, boundary_f1
from trainers.evaluation.class_curves import class_curves
from trainers.evaluation.classification_metrics import per_class_scores
from trainers.evaluation.validation import Measure, Validation
from trainers.runtime.distributed import gather_over_processes, sum_over_processes
from visualization.html_page import percent

MEAN_IOU = Measure("mean_iou", "mean IoU", is_share=True)
CHANGE_IOU = Measure("change_iou", "IoU of change", is_share=True)


@dataclass(frozen=True)
class WorstMask:
    """An image whose prediction is far from its mask: `iou` is the mean IoU of its classes, `loss` its own."""

    path: str
    iou: float
    loss: float


@dataclass(frozen=True)
class SegmentationValidation(Validation):
    """`confusion[label][prediction]` in pixels of the split that are not ignored; all else follows from it.

    `best_image` is the path of the image of the highest mean IoU, of those that hold more than background.
    """

    confusion: list[list[int]]
    per_class: list[dict[str, Any]]
    worst: list[WorstMask]
    best_image: str = ""

    def scalars(self) -> dict[str, float]:
        """Return mean IoU and mean F1 over the classes that exist, and the share of right pixels."""
        confusion = np.asarray(self.confusion)
        total = confusion.sum()
        return {
            "mean_iou": mean_of(self.per_class, "iou"),
            "mean_f1": mean_of(self.per_class, "f1"),
            "boundary_f1": mean_of(self.per_class, "boundary_f1"),
            "pixel_accuracy": float(confusion.trace() / total) if total else 0.0,
        }

    def parts(self) -> dict[str, float]:
        """Return the IoU of each class."""
        return {f"iou_{tag}": value for tag, value in class_curves(self.per_class, "iou").items()}

    def report_rows(self) -> Sequence[tuple[str, str]]:
        """Return the share of right pixels, and mean F1."""
        scalars = self.scalars()
        return [(name, percent(scalars[key])) for key, name in self.row_names().items()]

    def row_names(self) -> dict[str, str]:
        """Return what the scalars beside the measure are called."""
        return {"mean_f1": "mean F1", "boundary_f1": "boundary F1", "pixel_accuracy": "pixel accuracy"}

    def report_fields(self) -> dict[str, Any]:
        """Return the confusion, the classes and the worst images."""
        return {"per_class": self.per_class, "confusion": self.confusion, "worst": self.worst}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, and the confusion as a tensor (K, K) int64."""
        return {**asdict(self), "confusion": torch.tensor(self.confusion)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SegmentationValidation:
        """Return what `to_dict` was made of. Raises TypeError for other values."""
        worst = [WorstMask(**row) for row in values["worst"]]
        return cls(**{**values, "confusion": values["confusion"].tolist(), "worst": worst})


@dataclass(frozen=True)
class ChangeValidation(SegmentationValidation):
    """The same of change detection, whose first class is "unchanged": the others apart from the mean."""

    def scalars(self) -> dict[str, float]:
        """Return also IoU and F1 of change: the mean over the classes of change that exist, 0 where none does."""
        changed = self.per_class[1:]
        return {
            "change_iou": mean_of(changed, "iou"),
            "change_f1": mean_of(changed, "f1"),
            **super().scalars(),
        }

    def row_names(self) -> dict[str, str]:
        """Return what the scalars beside the measure are called."""
        names = {"change_f1": "F1 of change", "mean_iou": "mean IoU"}
        return {**names, "boundary_f1": "boundary F1", "pixel_accuracy": "pixel accuracy"}


class SegmentationMetrics:
    """Gathers one validation over all processes; each image must be given to exactly one of them."""

    def __init__(
        self, num_classes: int, device: torch.device, num_worst: int = 24, background: int | None = None
    ) -> None:
        self.num_classes, self.device, self.num_worst = num_classes, device, num_worst
        self._is_object = torch.ones(num_classes, dtype=torch.bool, device=device)
        if background is not None:
            self._is_object[background] = False
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.long, device=device)
        self._outlines = torch.zeros(num_classes, 4, dtype=torch.long, device=device)  # see `boundary_counts`
        self._rows: list[Tensor] = []  # (N, 4) each: IoU, loss, index, whether more than background is there

    @torch.no_grad()
    def update(self, logits: Tensor, masks: Tensor, indices: Tensor, losses: Tensor) -> None:
        """Count a batch without waiting for the device.

        logits (N, K, H, W), masks (N, H, W) uint8, indices (N,) into the paths given to `compute`, losses (N,).
        """
        predictions = logits.argmax(dim=1)  # (N, H, W)
        counts = pixel_confusion(predictions, masks, self.num_classes)  # (N, K, K)
        self._outlines += boundary_counts(predictions, masks, self.num_classes)
        self._confusion += counts.sum(dim=0)
        ious = _mean_ious(counts, self._dtype)
        has_objects = (counts.sum(dim=2) * self._is_object).sum(dim=1) > 0  # (N,)
        columns = (ious, *(values.to(self._dtype) for values in (losses, indices, has_objects)))
        self._rows.append(torch.stack(columns, dim=1))

    def compute(
        self, paths: Sequence[str], class_names: Sequence[str], kind: type[SegmentationValidation]
    ) -> SegmentationValidation:
        """Return the validation over all processes; every process must call this, and gets the same result."""
        rows = torch.cat([*self._rows, torch.empty(0, 4, dtype=self._dtype, device=self.device)])
        confusion = sum_over_processes(self._confusion).cpu().numpy()
        sums = torch.stack([rows[:, 1].sum(), torch.tensor(len(rows), dtype=self._dtype, device=self.device)])
        loss_sum, count = sum_over_processes(sums).tolist()
        outlines = boundary_f1(sum_over_processes(self._outlines))
        scores = class_scores(confusion, class_names)
        return kind(
            loss=loss_sum / count if count else float("nan"),
            confusion=confusion.tolist(),
            per_class=[{**row, "boundary_f1": score} for row, score in zip(scores, outlines, strict=True)],
            worst=self._gather_worst(rows, paths),
            best_image=self._gather_best(rows, paths),
        )

    def _gather_worst(self, rows: Tensor, paths: Sequence[str]) -> list[WorstMask]:
        """Return the worst of all processes; equal ones stand in the order of the list."""
        known = [row for row in rows.tolist() if not math.isnan(row[0])]  # NaN: no pixel is of a class
        mine = sorted(known, key=lambda row: (row[0], row[2]))[: self.num_worst]
        worst = sorted(gather_over_processes(mine), key=lambda row: (row[0], row[2]))
        return [WorstMask(str(paths[int(index)]), iou, loss) for iou, loss, index, _ in worst[: self.num_worst]]

    def _gather_best(self, rows: Tensor, paths: Sequence[str]) -> str:
        """Return the path of the best image of all processes, of equals the first; "" where no image qualifies."""
        found = [(-iou, index) for iou, _, index, has_objects in rows.tolist() if has_objects]
        best = sorted(gather_over_processes(sorted(found)[:1]))
        return str(paths[int(best[0][1])]) if best else ""


def pixel_confusion(predictions: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """Return the pixels (N, K, K) int64 of each image by label and prediction; those that are VOID do not count.

    predictions (N, H, W) int64, masks (N, H, W) uint8.
    """
    images = torch.arange(len(masks), device=masks.device)[:, None, None]  # (N, 1, 1)
    known = (masks != VOID).long()  # (N, H, W)
    cells = (images * num_classes + masks.long() * known) * num_classes + predictions
    counts = torch.zeros(len(masks) * num_classes**2, dtype=torch.long, device=masks.device)
    counts.index_add_(0, cells.flatten(), known.flatten())  # whole numbers: exact in any order
    return counts.view(len(masks), num_classes, num_classes)


def class_scores(confusion: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return IoU, F1, precision and recall of each class from confusion (K, K) of label by prediction, in pixels.

    What does not exist is None: precision of a class never predicted, recall of one without a pixel, IoU and F1 of one
    with neither. `support` is the class's true pixels.
    """
    hits, labelled, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)  # (K,)
    rows, unions = per_class_scores(class_names, hits, labelled, predicted), labelled + predicted - hits
    return [
        {**row, "iou": hit / union if union else None, "f1": 2 * hit / (union + hit) if union else None}
        for row, hit, union in zip(rows, hits.tolist(), unions.tolist(), strict=True)
    ]


def mean_of(per_class: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the mean of a score over the classes that have it, 0 where none has."""
    values = [value for row in per_class if (value := row.get(key)) is not None]  # older files lack some
    return sum(values) / len(values) if values else 0.0


def _mean_ious(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mean IoU (N,) of each image over its own classes, NaN where it has none. counts (N, K, K)."""
    hits = counts.diagonal(dim1=1, dim2=2)  # (N, K)
    unions = counts.sum(dim=1) + counts.sum(dim=2) - hits
    return (hits.to(dtype) / unions).nanmean(dim=1)  # 0 / 0 is NaN, and left out
