"""Boundary F1: whether the outlines of a mask lie where the true ones do (Csurka et al., What is a good evaluation
measure for semantic segmentation?, BMVC 2013, section 3.3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from data_loader.mask_classes import VOID

TOLERANCE = 0.0075  # of the image's diagonal, as in the paper


def boundary_counts(predictions: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """Return (K, 4) int64 over a batch: outline pixels of the prediction, those of them near a true one; true, near.

    predictions (N, H, W) int64, masks (N, H, W) uint8. A pixel is of its class's outline where one of the eight around
    it is of another class. Near is within TOLERANCE of the diagonal in either direction, one pixel at least. Pixels
    that are VOID, and those beside them, do not count.
    """
    radius = max(1, round(TOLERANCE * math.hypot(*masks.shape[1:])))
    known = 1 - _dilated((masks == VOID).float()[:, None], 1)  # (N, 1, H, W)
    counts = torch.zeros(num_classes, 4, dtype=torch.long, device=masks.device)
    for label in range(num_classes):
        found, true = (_outline((labels == label).float()[:, None]) * known for labels in (predictions, masks))
        for column, (ours, theirs) in enumerate(((found, true), (true, found))):
            counts[label, 2 * column] = ours.sum().long()
            counts[label, 2 * column + 1] = (ours * _dilated(theirs, radius)).sum().long()
    return counts


def boundary_f1(counts: Tensor) -> list[float | None]:
    """Return the F1 of each class from the sums (K, 4) of `boundary_counts`; None where it has no outline at all."""
    scores: list[float | None] = []
    for found, near_true, true, near_found in counts.tolist():
        precision, recall = near_true / found if found else 0.0, near_found / true if true else 0.0
        score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        scores.append(score if found or true else None)
    return scores


def _outline(inside: Tensor) -> Tensor:
    """Return the outline of areas (N, 1, H, W) of 0 and 1; the image's own border is none."""
    return inside + F.max_pool2d(-inside, 3, stride=1, padding=1)  # less its erosion


def _dilated(areas: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(areas, 2 * radius + 1, stride=1, padding=radius)
