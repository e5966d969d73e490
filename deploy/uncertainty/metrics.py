"""How good scores and uncertainties are, in numbers: calibration error, risk and coverage, and what tells strangers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15  # of a reliability diagram (Guo et al. 2017)
KEPT = 0.95  # share of the images of known classes at which FPR95 is read


@dataclass(frozen=True)
class Reliability:
    """Answers by their score in BINS equal parts of 0..1, each (BINS,): how many, mean score, share that is right.

    The means of an empty part are NaN. `error` is the expected calibration error.
    """

    counts: np.ndarray
    scores: np.ndarray
    accuracies: np.ndarray

    @property
    def error(self) -> float:
        """Mean distance between score and share of right answers, by the images of each part (Guo et al., eq. 3)."""
        is_there = self.counts > 0
        gaps = np.abs(self.scores - self.accuracies)[is_there]
        return float((gaps * self.counts[is_there]).sum() / self.counts.sum())


def reliability(scores: np.ndarray, labels: np.ndarray) -> Reliability:
    """Sort the answers of scores (N, K) for labels (N,) into parts (i / BINS, (i + 1) / BINS] of their score."""
    highest, are_right = scores.max(axis=1), scores.argmax(axis=1) == labels
    parts = np.clip(np.ceil(highest * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(parts, minlength=BINS)
    sums = [np.bincount(parts, weights=values, minlength=BINS) for values in (highest, are_right)]
    with np.errstate(invalid="ignore"):
        return Reliability(counts, sums[0] / counts, sums[1] / counts)


def brier(scores: np.ndarray, labels: np.ndarray) -> float:
    """Give the mean squared distance (Brier 1950), from 0 to 2, of scores (N, K) from the one-hot labels (N,)."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    return float(((scores**2).sum(axis=1) - 2 * own + 1).mean())


def risks(uncertainty: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Give the share (N,) that is wrong among the 1, 2, ... N least uncertain of images (N,).

    Images alike in uncertainty are in no order, so their mistakes count as spread evenly among them.
    """
    order = np.argsort(uncertainty, kind="stable")
    ranked, errors = uncertainty[order], np.cumsum(wrong[order])
    ends = np.append(np.flatnonzero(np.diff(ranked)) + 1, len(ranked))  # after each group of equals
    accepted = np.arange(1, len(ranked) + 1)
    return np.asarray(np.interp(accepted, [0, *ends], [0, *errors[ends - 1]]) / accepted)


def area_under_risks(uncertainty: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """Give the mean risk over all coverages, AURC, and its excess over that of mistakes last, E-AURC.

    Geifman, Uziel & El-Yaniv 2019, section 3. A departure: they approximate the least area, this counts it.
    """
    area = float(risks(uncertainty, wrong).mean())
    accepted = np.arange(1, len(wrong) + 1)
    least = float((np.maximum(accepted - (~wrong).sum(), 0) / accepted).mean())
    return area, max(area - least, 0.0)


def auroc(known: np.ndarray, strange: np.ndarray) -> float:
    """Give the probability that a strange image (M,) is more uncertain than a known one (N,); equals count half."""
    ranked = np.sort(known)
    below, until = (np.searchsorted(ranked, strange, side=side) for side in ("left", "right"))
    return float((below + until).mean() / (2 * len(known)))


def fpr95(known: np.ndarray, strange: np.ndarray) -> float:
    """Give the share of strange images (M,) accepted by the least threshold that accepts KEPT of the known (N,)."""
    threshold = np.sort(known)[int(np.ceil(round(KEPT * len(known), 9))) - 1]
    return float((strange <= threshold).mean())
