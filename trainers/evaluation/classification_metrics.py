"""The validation of a classifier: loss, top-1, top-5, the confusion of classes, and the worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from trainers.evaluation.confusion_cells import MOST_IN_A_MATRIX, cells_in, cells_of, matrix_of, totals_of
from trainers.evaluation.validation import Measure, Validation
from trainers.runtime.distributed import gather_over_processes

TOP1 = Measure("top1", "top-1", is_share=True)


@dataclass(frozen=True)
class WorstImage:
    """A wrongly classified image: `score` is the probability of the predicted class, `loss` the cross entropy in nats.

    The fields are the keys of report.json's `worst`; `answer` is the predicted label.
    """

    path: str
    label: int
    answer: int
    score: float
    loss: float


@dataclass(frozen=True)
class ClassificationValidation(Validation):
    """Shares `top1` and `top5` from 0 to 1, `cells` of the confusion as in `confusion_cells`, `worst` worst first."""

    top1: float
    top5: float
    cells: list[list[int]]
    per_class: list[dict[str, Any]]
    worst: list[WorstImage]
    num_samples: int
    head: str = ""  # which of the net's heads this is, where it has several
    head_top1: dict[str, float] = field(default_factory=dict)  # of each of them
    top1_views: float | None = None  # by the mean over test_time_views of an image, which chooses nothing

    def scalars(self) -> dict[str, float]:
        """Return top-1 and top-5, and top-1 by several views of an image where it was measured."""
        of_views = {} if self.top1_views is None else {"top1_views": self.top1_views}
        return {"top1": self.top1, "top5": self.top5, **of_views}

    def parts(self) -> dict[str, float]:
        """Return top-1 of each head."""
        return {f"top1_{head}": top1 for head, top1 in self.head_top1.items()}

    def report_fields(self) -> dict[str, Any]:
        """Return the confusion (of many classes its cells), the classes, the worst images, and the head."""
        num_classes = len(self.per_class)
        is_small = num_classes <= MOST_IN_A_MATRIX
        return {
            "per_class": self.per_class,
            "confusion": matrix_of(self.cells, num_classes).tolist() if is_small else [],
            "confusion_cells": [] if is_small else self.cells,
            "worst": self.worst,
            "head": self.head,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, and the cells as a tensor (M, 3) int64."""
        return {**asdict(self), "cells": torch.tensor(self.cells, dtype=torch.long).view(-1, 3)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassificationValidation:
        """Return what `to_dict` was made of. Raises TypeError for other values."""
        values = dict(values)
        matrix = values.pop("confusion", None)  # of an older checkpoint, (K, K)
        cells = values["cells"].tolist() if matrix is None else cells_in(matrix.numpy())
        # Older checkpoints have 0 for scores that were not measured.
        names = [row["class"] for row in values["per_class"]]
        per_class = per_class_scores(names, *totals_of(cells, len(names)))
        worst = [WorstImage(**row) for row in values["worst"]]
        return cls(**{**values, "cells": cells, "per_class": per_class, "worst": worst})


class ClassificationMetrics:
    """Gathers one validation over all processes; each image must be given to exactly one of them.

    Top-5 is top-K where there are fewer than 5 classes. Logits of which no softmax exists (a NaN, a +inf, all -inf)
    are a wrong prediction of infinite loss, entered under the first class that is not the label.
    """

    def __init__(self, num_classes: int, device: torch.device | str, num_worst: int = 24) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.num_classes = num_classes
        self.num_worst = num_worst
        self.device = torch.device(device)
        self._counts = _Counts(self.device).to(self.device)
        self.reset()

    def reset(self) -> None:
        """Forget everything, for the next validation."""
        self._counts.reset()
        # One column an image: loss, score, label, prediction, index. Loss is -inf where the prediction is right.
        self._worst_values = torch.empty(2, 0, device=self.device)
        self._worst_numbers = torch.empty(3, 0, dtype=torch.long, device=self.device)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Count a batch without waiting for the device: logits (N, K) float, labels (N,) and indices (N,) int64.

        `indices` point into the paths given to `compute`. Raises ValueError if the shapes disagree.
        """
        if logits.shape != (len(labels), self.num_classes) or labels.shape != indices.shape:
            raise ValueError(
                f"logits, labels and indices must be (N, {self.num_classes}), (N,) and (N,), "
                f"got {tuple(logits.shape)}, {tuple(labels.shape)} and {tuple(indices.shape)}"
            )
        labels, indices = labels.to(self.device), indices.to(self.device)
        log_scores = logits.detach().to(self.device).float().log_softmax(dim=1)  # (N, K)
        broken = log_scores.isnan().any(dim=1)  # (N,)
        own = torch.nn.functional.one_hot(labels, self.num_classes).bool()  # (N, K)
        log_scores = log_scores.masked_fill(broken[:, None], 0.0).masked_fill(broken[:, None] & own, -torch.inf)
        predictions = log_scores.argmax(dim=1)
        losses = -log_scores.gather(1, labels[:, None]).squeeze(1)
        scores = log_scores.gather(1, predictions[:, None]).squeeze(1).exp().masked_fill(broken, 0.0)
        top5 = log_scores.topk(min(5, self.num_classes), dim=1).indices  # (N, 5)
        in_top5 = (top5 == labels[:, None]).any(dim=1) & ~broken
        self._counts.update(labels, predictions, losses, in_top5)
        self._keep_worst(torch.stack([losses, scores]), torch.stack([labels, predictions, indices]))

    def compute(self, paths: Sequence[str], class_names: Sequence[str]) -> ClassificationValidation:
        """Return the validation over all processes; every process must call this, and gets the same result.

        A process that has seen no image takes part as well. With no image at all, loss, top1 and top5 are NaN.
        Raises ValueError if more images were counted than `paths` holds: some were counted twice.
        """
        # An empty batch, so that torchmetrics takes a process that has seen no image for an updated one.
        nothing = torch.empty(0, dtype=torch.long, device=self.device)
        self._counts.update(nothing, nothing, nothing.float(), nothing.bool())
        labels, predictions, loss_sum, in_top5 = (value.cpu().numpy() for value in self._counts.compute())
        num_samples = len(labels)
        worst = self._gather_worst(paths)
        if num_samples > len(paths):
            raise ValueError(
                f"validation counted {num_samples} images, but the list has {len(paths)}: some were counted twice; "
                "the sampler must give every image to exactly one process, without padding"
            )
        share = 1.0 / num_samples if num_samples else float("nan")
        cells = cells_of(labels, predictions)
        hits, labelled, predicted = totals_of(cells, self.num_classes)
        return ClassificationValidation(
            loss=float(loss_sum) * share,
            top1=int(hits.sum()) * share,
            top5=int(in_top5) * share,
            cells=cells,
            per_class=per_class_scores(class_names, hits, labelled, predicted),
            worst=worst,
            num_samples=num_samples,
        )

    def _keep_worst(self, values: Tensor, numbers: Tensor) -> None:
        """Merge a batch, values (2, N) and numbers (3, N), into the worst images so far."""
        losses = values[0].masked_fill(numbers[0] == numbers[1], -torch.inf)
        values = torch.cat([self._worst_values, torch.stack([losses, values[1]])], dim=1)
        numbers = torch.cat([self._worst_numbers, numbers], dim=1)
        order = values[0].sort(descending=True, stable=True).indices[: self.num_worst]
        self._worst_values, self._worst_numbers = values[:, order], numbers[:, order]

    def _gather_worst(self, paths: Sequence[str]) -> list[WorstImage]:
        """Return the worst of all processes; equal losses stand in the order of the list."""
        values, numbers = self._worst_values.T.tolist(), self._worst_numbers.T.tolist()
        mine = [(*value, *number) for value, number in zip(values, numbers, strict=True) if value[0] > -np.inf]
        rows = sorted(gather_over_processes(mine), key=lambda row: (-row[0], row[4]))
        return [
            WorstImage(path=str(paths[index]), label=label, answer=prediction, score=score, loss=loss)
            for loss, score, label, prediction, index in rows[: self.num_worst]
        ]


def per_class_scores(
    class_names: Sequence[str], hits: np.ndarray, labelled: np.ndarray, predicted: np.ndarray
) -> list[dict[str, Any]]:
    """Return precision, recall and F1 of each class from `totals_of`, int64 (K,) each.

    What was not measured is None: the precision of a class never predicted, recall and F1 of one without images.
    """
    columns = zip(class_names, hits.tolist(), labelled.tolist(), predicted.tolist(), strict=True)
    return [
        {
            "class": name,
            "precision": right / answers if answers else None,
            "recall": right / support if support else None,
            "f1": 2 * right / (support + answers) if support else None,  # 2PR / (P + R), both fractions multiplied out
            "support": support,
        }
        for name, right, support, answers in columns
    ]


class _Counts(Metric):
    """Sums over a validation, and each image's label and prediction, gathered over processes by torchmetrics.

    torchmetrics' own MulticlassConfusionMatrix builds an (N, K * K) table where deterministic algorithms are asked
    for: 2 GB for a batch of 256 and 1,000 classes. Two numbers an image are 16 MB for a million.
    """

    full_state_update = False
    labels: list[Tensor]  # torchmetrics makes one tensor of them where it gathers
    predictions: list[Tensor]
    loss_sum: Tensor
    in_top5: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        loss_dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.add_state("labels", [], dist_reduce_fx="cat")
        self.add_state("predictions", [], dist_reduce_fx="cat")
        self.add_state("loss_sum", torch.zeros((), dtype=loss_dtype), dist_reduce_fx="sum")
        self.add_state("in_top5", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, labels: Tensor, predictions: Tensor, losses: Tensor, in_top5: Tensor) -> None:
        """Add a batch; all (N,)."""
        self.labels.append(labels)
        self.predictions.append(predictions)
        self.loss_sum += losses.to(self.loss_sum.dtype).sum()
        self.in_top5 += in_top5.sum()

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return labels (N,), predictions (N,), the sum of the losses, and the images with their label in the top 5."""
        return dim_zero_cat(self.labels), dim_zero_cat(self.predictions), self.loss_sum, self.in_top5
