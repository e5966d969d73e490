"""The acceptance threshold whose risk is bounded: every number of accepted images is tested, at one corrected level."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

HALVINGS = 60  # of an interval: to the last digits of a float64
LEVEL_HALVINGS = 14  # of a level's logarithm, between the whole level and LEAST_LEVEL of it
LEAST_LEVEL = 0.01
MOST_COUNTS = 1000  # at which the limit of errors may rise; 4,000 images take 0.3 s
ROUNDING = 1e-9  # of a probability that is compared with another
DEVIATIONS = 10  # around the mean number of errors: 1e-23 of a binomial distribution lies beyond


@dataclass(frozen=True)
class Threshold:
    """Accepts where uncertainty <= `value`: `accepted` of the calibration images, `wrong` of those wrongly."""

    value: float
    accepted: int
    wrong: int
    risk_bound: float


def accept_threshold(
    uncertainty: np.ndarray, wrong: np.ndarray, target_risk: float, confidence: float
) -> Threshold | None:
    """Return the threshold that accepts most of the images (N,), the least uncertain first; None where none may be.

    Images of equal uncertainty are accepted together. The threshold lies midway to the next image, so that rounding
    changes no decision. The guarantee is that of `error_limits`.
    """
    order = np.argsort(uncertainty, kind="stable")
    ranked, wrong_until = uncertainty[order], np.cumsum(wrong[order])
    limits, level = error_limits(len(ranked), target_risk, 1 - confidence)
    ends = np.append(np.flatnonzero(np.diff(ranked)) + 1, len(ranked))  # after each group of equals
    passing = ends[wrong_until[ends - 1] <= limits[ends]]
    if not len(passing):
        return None
    count, errors = int(passing[-1]), int(wrong_until[passing[-1] - 1])
    value = float(ranked[count - 1 : count + 1].mean())
    if count < len(ranked) and value >= ranked[count]:  # neighbours among the floats: the mean is the next
        value = float(ranked[count - 1])
    return Threshold(value, count, errors, risk_bound(errors, count, level))


@functools.lru_cache(maxsize=64)
def error_limits(count: int, target_risk: float, delta: float) -> tuple[np.ndarray, float]:
    """Return how many errors the k least uncertain images may have, (count + 1,) by k, and the level of each test.

    -1 where no number is low enough. Wherever the risk grows with the share accepted, the probability that a number of
    images passes whose risk exceeds `target_risk` is at most `delta`: beyond the last good number, each image is wrong
    with at least the probability `target_risk`, so that the errors are at least those of a walk with just that; and
    the level is the largest at which the walk passes anywhere with probability `delta`, computed exactly. (A fixed
    sequence of tests, Angelopoulos et al. 2021, ends at the first failure, which is often its very first test; a binary
    search, Geifman & El-Yaniv 2017, may step over what passes.) Between the MOST_COUNTS numbers at which a limit may
    rise, it stays: more errors among more images pass nothing that the walk did not pass before.
    """
    limits = np.full(count + 1, -1)
    least = least_accepted(target_risk, delta)
    if least > count:
        return limits, delta
    spaced = np.geomspace(least, count, min(MOST_COUNTS, count - least + 1))
    counts = np.unique(spaced.round().astype(int)) if count - least >= MOST_COUNTS else np.arange(least, count + 1)
    walk = _ErrorWalk(counts, target_risk)
    level = _largest_level(walk, delta)
    for start, limit in zip(counts, walk.limits(level), strict=True):
        limits[start:] = limit
    limits.flags.writeable = False  # it is kept
    return limits, level


def risk_bound(errors: int, count: int, delta: float) -> float:
    """Return the risk at which `errors` of `count` images, or fewer, have probability `delta`.

    The exact upper bound of a binomial share (Clopper & Pearson 1934), by bisection.
    """
    if errors >= count:
        return 1.0
    logarithms = np.array(
        [math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in range(errors + 1)]
    )
    wrong = np.arange(errors + 1)
    low, high = errors / count, 1.0
    for _ in range(HALVINGS):
        risk = (low + high) / 2
        below = np.exp(logarithms + wrong * math.log(risk) + (count - wrong) * math.log1p(-risk)).sum()
        low, high = (risk, high) if below > delta else (low, risk)
    return high


def least_accepted(target_risk: float, delta: float) -> int:
    """Return how many images without an error are needed for a bound of `target_risk`: (1 - target)^n <= delta.

    They suffice, too: in a list of so many, or few more, only the last number of images can pass.
    """
    return math.ceil(math.log(delta) / math.log1p(-target_risk))


class _ErrorWalk:
    """The errors among the first n images, for n of `counts`, where each is wrong with probability `risk`."""

    def __init__(self, counts: np.ndarray, risk: float) -> None:
        self._windows = [_window(int(count), risk) for count in counts]
        gaps = np.diff(counts, prepend=0)
        steps = {gap: _binomial(int(gap), risk) for gap in np.unique(gaps)}
        self._steps = [steps[gap] for gap in gaps]
        self._below = [np.cumsum(values) for values in self._run()]

    def limits(self, level: float) -> np.ndarray:
        """Return for each count the most errors that so many or fewer of have at most the probability `level`."""
        found = [np.searchsorted(below, level * (1 + ROUNDING), side="right") for below in self._below]
        return np.array([low - 1 + number for number, (low, _) in zip(found, self._windows, strict=True)])

    def passes(self, limits: np.ndarray) -> float:
        """Return the probability that the errors are at most the limit at any of the counts."""
        passed = 0.0
        for values, (low, _), limit in zip(self._run(), self._windows, limits, strict=True):
            ended = values[: max(limit + 1 - low, 0)]
            passed += float(ended.sum())
            ended[:] = 0  # so that the walk goes on without them
        return passed

    def _run(self) -> Iterator[np.ndarray]:
        """Yield the probability of each number of errors in a count's window; what the caller changes goes on."""
        values, start = np.ones(1), 0
        for (low, high), (first, step) in zip(self._windows, self._steps, strict=True):
            moved, begin = np.convolve(values, step), start + first
            values, start = moved[max(low - begin, 0) : high + 1 - begin], max(low, begin)
            values, start = np.pad(values, (start - low, 0)), low
            yield values


def _largest_level(walk: _ErrorWalk, delta: float) -> float:
    """Return the largest level of the single tests at which the walk passes with probability `delta` at most."""
    if walk.passes(walk.limits(delta)) <= delta * (1 + ROUNDING):
        return delta
    low, high = math.log(delta * LEAST_LEVEL), math.log(delta)
    for _ in range(LEVEL_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if walk.passes(walk.limits(math.exp(middle))) <= delta else (low, middle)
    return math.exp(low)


def _window(count: int, risk: float) -> tuple[int, int]:
    """Return the numbers of errors, from and to, beyond which nothing of the distribution lies."""
    half = DEVIATIONS * (math.sqrt(count * risk * (1 - risk)) + 1)
    return max(0, math.floor(count * risk - half)), min(count, math.ceil(count * risk + half))


def _binomial(count: int, risk: float) -> tuple[int, np.ndarray]:
    """Return the first number of errors in the window of a binomial distribution, and the probabilities from there."""
    low, high = _window(count, risk)
    wrong = np.arange(low, high + 1)
    logarithms = [math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in wrong.tolist()]
    return low, np.exp(np.array(logarithms) + wrong * math.log(risk) + (count - wrong) * math.log1p(-risk))
