"""Metrics of scores and uncertainties: calibration error, risk and coverage, out-of-distribution detection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15  # of a reliability diagram (Guo et al. 2017)
KEPT = 0.95  # share of the images of known classes at which FPR95 is read


@dataclass(frozen=True)
class Reliability:
    """Predictions by their score in equal bins of 0..1, for each bin: count, mean score, accuracy.

    The means of an empty bin are NaN. `error` is the expected calibration error.
    """

    counts: np.ndarray
    scores: np.ndarray
    accuracies: np.ndarray

    @property
    def error(self) -> float:
        """Mean distance between score and accuracy, weighted by the images of each bin (Guo et al., eq. 3)."""
        filled = self.counts > 0
        gaps = np.abs(self.scores - self.accuracies)[filled]
        return float((gaps * self.counts[filled]).sum() / self.counts.sum())


def reliability(scores: np.ndarray, labels: np.ndarray) -> Reliability:
    """Sort the predictions of scores (N, K) for labels (N,) into bins (i / BINS, (i + 1) / BINS] of their score."""
    return in_bins(scores.max(axis=1), scores.argmax(axis=1) == labels)


def in_bins(scores: np.ndarray, correct: np.ndarray, count: int = BINS) -> Reliability:
    """Sort predictions of a score each (N,), right or wrong (N,), into so many equal bins of the score."""
    bins = np.clip(np.ceil(scores * count).astype(int) - 1, 0, count - 1)
    counts = np.bincount(bins, minlength=count)
    sums = [np.bincount(bins, weights=values, minlength=count) for values in (scores, correct)]
    with np.errstate(invalid="ignore"):
        return Reliability(counts, sums[0] / counts, sums[1] / counts)


def brier(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean squared distance (Brier 1950), from 0 to 2, of scores (N, K) from the one-hot labels (N,)."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    return float(((scores**2).sum(axis=1) - 2 * own + 1).mean())


def risks(uncertainty: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return the share (N,) that is wrong among the 1, 2, ... N least uncertain of images (N,).

    Images of equal uncertainty have no order, so their mistakes count as spread evenly among them.
    """
    order = np.argsort(uncertainty, kind="stable")
    ranked, errors = uncertainty[order], np.cumsum(wrong[order])
    ends = np.append(np.flatnonzero(np.diff(ranked)) + 1, len(ranked))  # after each group of equals
    accepted = np.arange(1, len(ranked) + 1)
    return np.asarray(np.interp(accepted, [0, *ends], [0, *errors[ends - 1]]) / accepted)


def area_under_risks(uncertainty: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """Return the mean risk over all coverages, AURC, and its excess over that of mistakes last, E-AURC.

    Geifman, Uziel & El-Yaniv 2019, section 3. A departure: they approximate the least area, this counts it.
    """
    area = float(risks(uncertainty, wrong).mean())
    accepted = np.arange(1, len(wrong) + 1)
    least = float((np.maximum(accepted - (~wrong).sum(), 0) / accepted).mean())
    return area, max(area - least, 0.0)


def auroc(known: np.ndarray, ood: np.ndarray) -> float:
    """Return the probability that an OOD image (M,) is more uncertain than a known one (N,); equals count half."""
    ranked = np.sort(known)
    below, until = (np.searchsorted(ranked, ood, side=side) for side in ("left", "right"))
    return float((below + until).mean() / (2 * len(known)))


def fpr95(known: np.ndarray, ood: np.ndarray) -> float:
    """Return the share of OOD images (M,) accepted by the least threshold that accepts KEPT of the known (N,)."""
    threshold = np.sort(known)[int(np.ceil(round(KEPT * len(known), 9))) - 1]
    return float((ood <= threshold).mean())
