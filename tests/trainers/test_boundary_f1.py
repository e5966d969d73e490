"""Boundary F1 against a count with scipy's morphology."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from data_loader.mask_classes import VOID
from trainers.evaluation.boundary_f1 import boundary_counts, boundary_f1

EIGHT = np.ones((3, 3), bool)


def counted(prediction: np.ndarray, mask: np.ndarray, num_classes: int, radius: int) -> list[list[int]]:
    """Return what `boundary_counts` does for one image, by erosion and dilation."""
    known = ~ndimage.binary_dilation(mask == VOID, EIGHT)
    rows = []
    for label in range(num_classes):
        found, true = (
            (labels == label) & ~ndimage.binary_erosion(labels == label, EIGHT, border_value=1) & known
            for labels in (prediction, mask)
        )
        square = np.ones((2 * radius + 1, 2 * radius + 1), bool)
        near_true, near_found = (ndimage.binary_dilation(outline, square) for outline in (true, found))
        rows.append([found.sum(), (found & near_true).sum(), true.sum(), (true & near_found).sum()])
    return [[int(value) for value in row] for row in rows]


@pytest.mark.parametrize("size", [(40, 60), (300, 200)])
def test_counts_are_those_of_morphology(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(generator.normal(size=(2, 3, *size)), (0, 0, 3, 3))
    labels = smooth.argmax(axis=1)  # (2, H, W): blobs of three classes
    masks = ndimage.shift(labels, (0, 1, 2), order=0, mode="nearest").astype(np.uint8)
    masks[0, :10, :15] = VOID
    found = boundary_counts(torch.from_numpy(labels), torch.from_numpy(masks), 4)
    radius = max(1, round(0.0075 * math.hypot(*size)))
    expected = np.sum([counted(labels[i], masks[i], 4, radius) for i in range(2)], axis=0)
    assert found.tolist() == expected.tolist() and expected[:3].all()
    scores = boundary_f1(found)
    precision, recall = expected[0][1] / expected[0][0], expected[0][3] / expected[0][2]
    assert scores[0] == pytest.approx(2 * precision * recall / (precision + recall))
    assert scores[3] is None  # there is none, and none was found


def test_a_square_that_is_shifted() -> None:
    mask, prediction = (torch.zeros(1, 100, 100, dtype=torch.uint8) for _ in range(2))
    mask[0, 20:60, 20:60] = 1
    prediction[0, 20:60, 21:61] = 1  # within the one pixel that 0.75 % of the diagonal are
    assert boundary_f1(boundary_counts(prediction.long(), mask, 2)) == [1.0, 1.0]
    prediction[0, :] = 0
    prediction[0, 20:60, 30:70] = 1  # near are 31 columns of the upper and lower sides, and two pixels below and above
    counts = boundary_counts(prediction.long(), mask, 2)[1].tolist()
    assert counts == [4 * 39, 2 * 31 + 2, 4 * 39, 2 * 31 + 2]
    nothing = torch.zeros(1, 100, 100, dtype=torch.int64)
    assert boundary_f1(boundary_counts(nothing, mask, 2))[1] == 0.0
    assert boundary_f1(boundary_counts(nothing, torch.zeros_like(mask), 2)) == [None, None]
