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
class CalibrationTarget:
    """The guarantees that the calibrated predictions are to meet: see `Calibration`."""

    target_risk: float = 0.01
    confidence: float = 0.95
    conformal_risk: float = 0.05
    score: str = DEFAULT_SCORE


@dataclass(frozen=True)
class Threshold:
    """Accepts where uncertainty <= `value`: `accepted` of the calibration images, `wrong` of those wrongly."""

    value: float
    accepted: int
    wrong: int
    risk_bound: float


def calibrate(
    logits: np.ndarray, labels: np.ndarray, metadata: ModelMetadata, target: CalibrationTarget
) -> ModelMetadata:
    """Return the metadata with temperature, thresholds and calibration fitted to logits (N, K) and labels (N,).

    The thresholds are fitted to other images than the temperature, since their guarantees require a score that was
    fixed before. Raises UncertaintyError where the list is too short, or no threshold meets the target.
    """
    _check_length(len(logits), target)
    fits_temperature = for_temperature(len(logits))
    temperature = fit_temperature(logits[fits_temperature], labels[fits_temperature])
    kept, kept_labels = logits[~fits_temperature], labels[~fits_temperature]
    wrong = kept.argmax(axis=1) != kept_labels
    uncertainty = uncertainty_of(kept, target.score, temperature)
    accept = accept_threshold(uncertainty, wrong, target.target_risk, target.confidence)
    if accept is None:
        raise UncertaintyError(
            f"no threshold on {target.score} keeps the risk among the accepted under {target.target_risk:g} with "
            f"confidence {target.confidence:g} ({int(wrong.sum())} of {len(kept)} images are predicted wrongly): "
            "allow more with --target_risk, or calibrate on more images"
        )
    own_scores = np.take_along_axis(softmax(kept, temperature), kept_labels[:, None], axis=1)[:, 0]
    thresholds = {ACCEPT: accept.value, CONFORMAL: conformal_threshold(own_scores, target.conformal_risk)}
    fitted = (len(kept), accept.accepted, accept.wrong, accept.risk_bound)
    calibration = Calibration(target.score, target.target_risk, target.confidence, target.conformal_risk, *fitted)
    return replace(metadata, temperature=temperature, thresholds=thresholds, calibration=calibration)


def for_temperature(count: int) -> np.ndarray:
    """Return a mask (count,) of the images that fit the temperature; the others fit the thresholds.

    Drawn at random with a fixed seed: lists are sorted by class, or alternate between the classes.
    """
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(SEED).permutation(count)[: math.ceil(count / EVERY)]] = True
    return chosen


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature at which logits (N, K) have the least mean negative log likelihood (Guo et al. 2017).

    The likelihood is convex in 1 / T, so the zero of its slope is found by bisection within TEMPERATURES. Where every
    image is predicted correctly the optimum is T = 0: the mean score then becomes (N + 1) / (N + 2), Laplace's rule of
    succession, as Platt (1999) does with his targets.
    """
    wide = logits.astype(np.float64)
    own = np.take_along_axis(wide, labels[:, None], axis=1)[:, 0]
    all_correct = bool((own >= wide.max(axis=1)).all())
    low, high = (1 / temperature for temperature in reversed(TEMPERATURES))
    for _ in range(HALVINGS):
        inverse = math.sqrt(low * high)
        scores = softmax(wide, 1 / inverse)
        if all_correct:
            is_overconfident = scores.max(axis=1).mean() > (len(wide) + 1) / (len(wide) + 2)
        else:
            is_overconfident = ((scores * wide).sum(axis=1) - own).mean() > 0
        low, high = (low, inverse) if is_overconfident else (inverse, high)
    return 1 / math.sqrt(low * high)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean of -ln(score of the true class) over logits (N, K) and labels (N,)."""
    scaled = logits.astype(np.float64) / temperature
    own = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
    return float((log_sum_exp(scaled) - own).mean())


def accept_threshold(
    uncertainty: np.ndarray, wrong: np.ndarray, target_risk: float, confidence: float
) -> Threshold | None:
    """Choose how many of the images (N,), the least uncertain first, to accept; None where none may be accepted.

    Selection with guaranteed risk (Geifman & El-Yaniv 2017, algorithm 2): a binary search over the coverage, where
    each step's risk is bounded by the exact binomial bound (lemma 3.1) at (1 - confidence) / steps. Three departures:
    images of equal uncertainty are accepted together; the search starts at the least number that can pass, since
    below it the bound alone exceeds the target; the threshold lies midway to the next image, so that rounding changes
    no decision.
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
    """Return the most steps of a binary search over `count` images: the bound is divided among them."""
    return count.bit_length()


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


def conformal_threshold(own_scores: np.ndarray, risk: float) -> float:
    """Return the ceil((n + 1)(1 - risk))-th smallest 1 - score of the true class (n,) (Angelopoulos & Bates 2021)."""
    count = len(own_scores)
    rank = _conformal_rank(count, risk)
    if rank > count:
        raise UncertaintyError(f"{count} images are too few for conformal sets that miss {risk:g}")
    return float(np.sort(1 - own_scores)[rank - 1])


def least_images(target: CalibrationTarget) -> int:
    """Return the length of the shortest list that can meet the target, if each of its images is predicted correctly."""
    steps, kept = 0, 0
    while search_steps(kept) > steps or not kept:  # until the steps are those of so many images
        steps += 1
        kept = max(_least_accepted(target.target_risk, (1 - target.confidence) / steps), 2 ** (steps - 1))
    kept = max(kept, math.ceil(round(1 / target.conformal_risk, 9)) - 1)
    least = kept * EVERY // (EVERY - 1)
    while least - math.ceil(least / EVERY) < kept:
        least += 1
    return max(least, LEAST_FOR_TEMPERATURE * EVERY)


def _check_length(count: int, target: CalibrationTarget) -> None:
    if count < (least := least_images(target)):
        raise UncertaintyError(
            f"{count} images are too few for a risk under {target.target_risk:g} with confidence "
            f"{target.confidence:g} and conformal sets that miss {target.conformal_risk:g}: at least {least} are "
            "needed, all of them predicted correctly; a higher --target_risk needs fewer"
        )


def _conformal_rank(count: int, risk: float) -> int:
    return math.ceil(round((count + 1) * (1 - risk), 9))  # rounded: 20 * 0.95 is 19, not a little more


def _least_accepted(target_risk: float, delta: float) -> int:
    """Return how many images without an error are needed for a bound of `target_risk`: (1 - target)^n <= delta."""
    return math.ceil(math.log(delta) / math.log1p(-target_risk))
