"""Calibration on a labelled list that was not trained on: temperature, acceptance threshold, conformal threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from artifacts.calibration import ACCEPT, CONFORMAL, Calibration
from artifacts.metadata import ModelMetadata
from deploy.inference.uncertainty_scores import UncertaintyError, log_sum_exp, softmax, uncertainty_of

DEFAULT_SCORE = "least_confidence"

EVERY = 5  # one image in five fits the temperature, the others the thresholds
SEED = 0
LEAST_FOR_TEMPERATURE = 20  # images
TEMPERATURES = (0.05, 20.0)
HALVINGS = 60  # of an interval: to the last digits of a float64


@dataclass(frozen=True)
class Promise:
    """What the calibrated answers shall keep: see `Calibration`."""

    target_risk: float = 0.01
    confidence: float = 0.95
    conformal_risk: float = 0.05
    score: str = DEFAULT_SCORE


@dataclass(frozen=True)
class Threshold:
    """Accepts where uncertainty <= `value`; of the calibration images `accepted`, of which `wrong` were."""

    value: float
    accepted: int
    wrong: int
    risk_bound: float


def calibrate(logits: np.ndarray, labels: np.ndarray, metadata: ModelMetadata, promise: Promise) -> ModelMetadata:
    """Give the metadata with temperature, thresholds and calibration fitted to logits (N, K) and labels (N,).

    The thresholds come from other images than the temperature, since what they promise holds for a score that was
    fixed before. Raises UncertaintyError where the list is too small, or no threshold keeps the promise.
    """
    _check_length(len(logits), promise)
    fits_temperature = for_temperature(len(logits))
    temperature = fit_temperature(logits[fits_temperature], labels[fits_temperature])
    kept, kept_labels = logits[~fits_temperature], labels[~fits_temperature]
    wrong = kept.argmax(axis=1) != kept_labels
    uncertainty = uncertainty_of(kept, promise.score, temperature)
    accept = accept_threshold(uncertainty, wrong, promise.target_risk, promise.confidence)
    if accept is None:
        raise UncertaintyError(
            f"no threshold on {promise.score} keeps the risk among the accepted under {promise.target_risk:g} with "
            f"confidence {promise.confidence:g} ({int(wrong.sum())} of {len(kept)} images are answered wrongly): "
            "allow more with --target_risk, or calibrate on more images"
        )
    own_scores = np.take_along_axis(softmax(kept, temperature), kept_labels[:, None], axis=1)[:, 0]
    thresholds = {ACCEPT: accept.value, CONFORMAL: conformal_threshold(own_scores, promise.conformal_risk)}
    promised = (promise.score, promise.target_risk, promise.confidence, promise.conformal_risk)
    calibration = Calibration(*promised, len(kept), accept.accepted, accept.wrong, accept.risk_bound)
    return replace(metadata, temperature=temperature, thresholds=thresholds, calibration=calibration)


def for_temperature(count: int) -> np.ndarray:
    """Say of each of `count` images (count,) whether it fits the temperature, and not the thresholds.

    Drawn by chance, always the same: lists are sorted by class, or go round the classes in turn.
    """
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(SEED).permutation(count)[: math.ceil(count / EVERY)]] = True
    return chosen


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Give the temperature at which logits (N, K) have the least mean negative log likelihood (Guo et al. 2017).

    The likelihood is convex in 1 / T, so its slope is halved in on, within TEMPERATURES. Where every image is
    answered right the likelihood only asks for T = 0: the mean score then becomes (N + 1) / (N + 2), Laplace's rule of
    succession, as Platt (1999) does with his targets.
    """
    wide = logits.astype(np.float64)
    own = np.take_along_axis(wide, labels[:, None], axis=1)[:, 0]
    are_right = bool((own >= wide.max(axis=1)).all())
    low, high = (1 / temperature for temperature in reversed(TEMPERATURES))
    for _ in range(HALVINGS):
        inverse = math.sqrt(low * high)
        scores = softmax(wide, 1 / inverse)
        if are_right:
            is_too_sure = scores.max(axis=1).mean() > (len(wide) + 1) / (len(wide) + 2)
        else:
            is_too_sure = ((scores * wide).sum(axis=1) - own).mean() > 0
        low, high = (low, inverse) if is_too_sure else (inverse, high)
    return 1 / math.sqrt(low * high)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Give the mean of -ln(score of the true class) over logits (N, K) and labels (N,)."""
    scaled = logits.astype(np.float64) / temperature
    own = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
    return float((log_sum_exp(scaled) - own).mean())


def accept_threshold(
    uncertainty: np.ndarray, wrong: np.ndarray, target_risk: float, confidence: float
) -> Threshold | None:
    """Choose how many of the images (N,), the least uncertain first, may be accepted; None where none may.

    Selection with guaranteed risk (Geifman & El-Yaniv 2017, algorithm 2): a binary search over the coverage, where
    each step's risk is bounded by the exact binomial bound (lemma 3.1) at (1 - confidence) / steps. Three departures:
    images alike in uncertainty are accepted together; the search starts at the least number that can pass, since
    below it the bound alone exceeds the target; the threshold lies midway to the next image, so that a rounding
    decides nothing.
    """
    order = np.argsort(uncertainty, kind="stable")
    ranked, wrong_until = uncertainty[order], np.cumsum(wrong[order])
    steps = search_steps(len(ranked))
    least = _least_accepted(target_risk, (1 - confidence) / steps)
    counts = [*(np.flatnonzero(np.diff(ranked)) + 1), len(ranked)]  # after each group of equals
    counts = [int(count) for count in counts if count >= least]
    chosen: Threshold | None = None
    low, high = 0, len(counts)
    while low < high:
        middle = (low + high) // 2
        count, errors = counts[middle], int(wrong_until[counts[middle] - 1])
        bound = risk_bound(errors, count, (1 - confidence) / steps)
        if bound <= target_risk:
            value = float(ranked[count - 1 : count + 1].mean())
            if count < len(ranked) and value >= ranked[count]:  # neighbours among the floats: the mean is the next
                value = float(ranked[count - 1])
            chosen = Threshold(value, count, errors, bound)
            low = middle + 1
        else:
            high = middle
    return chosen


def search_steps(count: int) -> int:
    """Give the most steps that a binary search over so many images takes: the bound is divided among them."""
    return count.bit_length()


def risk_bound(errors: int, count: int, delta: float) -> float:
    """Give the risk that `errors` of `count` images, or fewer, are seen at with probability `delta` only.

    The exact upper bound of a binomial share (Clopper & Pearson 1934), by halving.
    """
    if errors >= count:
        return 1.0
    logarithms = np.array(
        [math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in range(errors + 1)]
    )
    seen = np.arange(errors + 1)
    low, high = errors / count, 1.0
    for _ in range(HALVINGS):
        risk = (low + high) / 2
        below = np.exp(logarithms + seen * math.log(risk) + (count - seen) * math.log1p(-risk)).sum()
        low, high = (risk, high) if below > delta else (low, risk)
    return high


def conformal_threshold(own_scores: np.ndarray, risk: float) -> float:
    """Give the ceil((n + 1)(1 - risk))-th smallest of 1 - score of the true class (n,) (Angelopoulos & Bates 2021)."""
    count = len(own_scores)
    rank = _conformal_rank(count, risk)
    if rank > count:
        raise UncertaintyError(f"{count} images are too few for conformal sets that miss {risk:g}")
    return float(np.sort(1 - own_scores)[rank - 1])


def least_images(promise: Promise) -> int:
    """Give the length of the shortest list that can keep the promise, where its every image is answered right."""
    steps, kept = 0, 0
    while search_steps(kept) > steps or not kept:  # as many steps as so many images take
        steps += 1
        kept = max(_least_accepted(promise.target_risk, (1 - promise.confidence) / steps), 2 ** (steps - 1))
    kept = max(kept, math.ceil(round(1 / promise.conformal_risk, 9)) - 1)
    least = kept * EVERY // (EVERY - 1)
    while least - math.ceil(least / EVERY) < kept:
        least += 1
    return max(least, LEAST_FOR_TEMPERATURE * EVERY)


def _check_length(count: int, promise: Promise) -> None:
    if count < (least := least_images(promise)):
        raise UncertaintyError(
            f"{count} images are too few to promise a risk under {promise.target_risk:g} with confidence "
            f"{promise.confidence:g} and conformal sets that miss {promise.conformal_risk:g}: at least {least} are "
            "needed, all of them answered right; a higher --target_risk needs fewer"
        )


def _conformal_rank(count: int, risk: float) -> int:
    return math.ceil(round((count + 1) * (1 - risk), 9))  # rounded: 20 * 0.95 is 19, not a little more


def _least_accepted(target_risk: float, delta: float) -> int:
    """Give how many images without an error are needed for a bound of `target_risk`: (1 - target)^n <= delta."""
    return math.ceil(math.log(delta) / math.log1p(-target_risk))
