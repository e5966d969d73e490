"""The score threshold at which a detector misses at most a share of the objects, with a stated confidence.

Risk control by upper bounds: Bates et al. 2021, "Distribution-Free, Risk-Controlling Prediction Sets"
(https://arxiv.org/abs/2101.02703). The loss of an image is the share of its objects that is missed; it only grows with
the threshold, so that each threshold may be tested at the whole level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artifacts.box_matching import HIT, MISS, matched
from artifacts.detections import SCORE_THRESHOLDS, Detections
from data_loader.box_target import Boxes

HALVINGS = 60  # of an interval: to the last digits of a float64


@dataclass(frozen=True)
class MissedObjects:
    """What a threshold does: the mean share of an image's objects that was missed, its upper bound, the precision.

    The bound holds with the confidence that was asked for; the precision is that of the images themselves.
    """

    threshold: float
    missed: float
    bound: float
    precision: float


def highest_threshold(
    truths: Sequence[Boxes], found: Sequence[Detections], target: float, confidence: float
) -> MissedObjects | None:
    """Return the highest of SCORE_THRESHOLDS that misses at most the share `target`; None where the lowest misses more.

    `found` are each image's objects from LEAST_SCORE on. Images without objects, and difficult objects, say
    nothing.
    """
    shares, hits, wrong = _counts(truths, found)  # (N, T), (T,), (T,)
    if not len(shares):
        return None
    best = None
    for place, missed in enumerate(shares.mean(axis=0)):
        bound = upper_bound(float(missed), len(shares), 1 - confidence)
        if bound > target:
            break
        right, all_found = int(hits[place]), int(hits[place] + wrong[place])
        best = MissedObjects(float(SCORE_THRESHOLDS[place]), float(missed), bound, right / max(all_found, 1))
    return best


def missed_at(truths: Sequence[Boxes], found: Sequence[Detections], threshold: float) -> float:
    """Return the mean share of an image's objects that one of SCORE_THRESHOLDS misses; NaN without any object."""
    shares, _, _ = _counts(truths, found)
    place = int(np.abs(SCORE_THRESHOLDS - threshold).argmin())
    return float(shares[:, place].mean()) if len(shares) else math.nan


def missed_at_least(
    truths: Sequence[Boxes], found: Sequence[Detections], confidence: float
) -> tuple[int, float, float]:
    """Return the number of images with objects, the share missed at the lowest threshold, and its upper bound."""
    shares, _, _ = _counts(truths, found)
    if not len(shares):
        return 0, 0.0, 1.0
    missed = float(shares[:, 0].mean())
    return len(shares), missed, upper_bound(missed, len(shares), 1 - confidence)


def upper_bound(mean: float, count: int, delta: float) -> float:
    """Return what the expected loss exceeds with a probability of at most `delta`, after `count` losses in [0, 1].

    The mean at which the test of Hoeffding and Bentkus (Bates et al. 2021, section 3.1.1) just rejects.
    """
    low, high = mean, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _p_value(mean, count, middle) > delta else (low, middle)
    return high


def _p_value(mean: float, count: int, risk: float) -> float:
    """Return the bound of the probability of a mean loss as low as this where the expected one is `risk`."""
    if not mean < risk < 1:
        return 1.0 if mean >= risk else 0.0
    parts = [(share, share / of) for share, of in ((mean, risk), (1 - mean, 1 - risk)) if share > 0]
    hoeffding = math.exp(-count * sum(share * math.log(ratio) for share, ratio in parts))
    most = math.ceil(count * mean - 1e-9)
    below = sum(
        math.exp(
            math.lgamma(count + 1) - math.lgamma(number + 1) - math.lgamma(count - number + 1)
            + number * math.log(risk) + (count - number) * math.log1p(-risk)
        )
        for number in range(most + 1)
    )  # fmt: skip
    return min(1.0, hoeffding, math.e * below)


def _counts(truths: Sequence[Boxes], found: Sequence[Detections]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the missed share of each image with objects at each threshold, and all hits and mistakes there."""
    shares = []
    hits, wrong = np.zeros(len(SCORE_THRESHOLDS), np.int64), np.zeros(len(SCORE_THRESHOLDS), np.int64)
    for truth, objects in zip(truths, found, strict=True):
        kinds, scores = matched(objects, truth), objects.scores[:, None].astype(np.float64)
        right = ((kinds == HIT)[:, None] & (scores >= SCORE_THRESHOLDS)).sum(axis=0)  # (T,)
        hits += right
        wrong += ((kinds == MISS)[:, None] & (scores >= SCORE_THRESHOLDS)).sum(axis=0)
        if total := int((~truth.ignored).sum()):
            shares.append(1 - right / total)
    return np.array(shares), hits, wrong
