"""The confusion of pixels, and the IoU that follows from it."""

from __future__ import annotations

import numpy as np

from data_loader.mask_classes import VOID


def pixel_confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the pixels (K, K) int64 by class and predicted class of indices (H, W); true VOID does not count."""
    known = truth != VOID
    pairs = truth[known].astype(np.int64) * num_classes + predicted[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_ious(confusion: np.ndarray) -> np.ndarray:
    """Return the IoU (K,) of each class of a confusion (K, K); NaN for one without a true or a predicted pixel."""
    hits = np.diag(confusion)
    unions = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return np.divide(hits, unions, out=np.full(len(hits), np.nan), where=unions > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """Return the mean IoU of the classes that have a true or a predicted pixel, of a confusion (K, K); else 0."""
    ious = class_ious(confusion)
    return float(np.nanmean(ious)) if not np.isnan(ious).all() else 0.0
