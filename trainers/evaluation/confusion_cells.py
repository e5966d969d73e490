"""The confusion of classes as its cells that are not 0: [label, prediction, images], by label, then by prediction.

A split of N images has N of them at most, where the matrix has K * K: of 5,000 classes a matrix cost a training 6 GB,
and its report 150 MB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_IN_A_MATRIX = 1000  # classes, beyond which a matrix is neither drawn nor written

Cells = Sequence[Sequence[int]]


def cells_of(labels: np.ndarray, predictions: np.ndarray) -> list[list[int]]:
    """Return the cells of images' labels and predictions, both int64 (N,)."""
    pairs, counts = np.unique(np.stack([labels, predictions]), axis=1, return_counts=True)  # (2, M), (M,)
    rows: list[list[int]] = np.concatenate([pairs, counts[None]]).T.tolist()
    return rows


def cells_in(matrix: np.ndarray) -> list[list[int]]:
    """Return the cells of a matrix (K, K)."""
    labels, predictions = np.nonzero(matrix)
    rows: list[list[int]] = np.stack([labels, predictions, matrix[labels, predictions]]).T.tolist()
    return rows


def matrix_of(cells: Cells, num_classes: int) -> np.ndarray:
    """Return the matrix (K, K) int64 of label by prediction."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    labels, predictions, counts = columns_of(cells)
    matrix[labels, predictions] = counts
    return matrix


def totals_of(cells: Cells, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each class the images that were right, that have it, and that were predicted as it, int64 (K,)."""
    labels, predictions, counts = columns_of(cells)
    right = labels == predictions
    return tuple(  # type: ignore[return-value]  # three
        np.bincount(classes[chosen], counts[chosen], num_classes).astype(np.int64)
        for classes, chosen in ((labels, right), (labels, ...), (predictions, ...))
    )


def columns_of(cells: Cells) -> np.ndarray:
    """Return labels, predictions and counts, int64 (3, M)."""
    return np.asarray(cells, dtype=np.int64).reshape(-1, 3).T
