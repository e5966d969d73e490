"""Calibration on a labelled list that was not trained on: temperature, acceptance threshold, conformal threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from artifacts.calibration import ACCEPT, CONFORMAL, Calibration
from artifacts.metadata import ModelMetadata
from deploy.inference.uncertainty_scores import UncertaintyError, log_sum_exp, softmax, uncertainty_of
from deploy.uncertainty.risk_control import Threshold, accept_threshold, least_accepted

DEFAULT_SCORE = "least_confidence"

EVERY = 5  # one image in five fits the temperature, the others the thresholds
SEED = 0
LEAST_FOR_TEMPERATURE = 20  # images
TEMPERATURES = (0.05, 20.0)
HALVINGS = 60  # of an interval: to the last digits of a float64
FITTED_SHARE = 0.9  # of 1 - confidence, for the fitted temperature; the rest is for T = 1 in its place
FOLDS = 5  # of the images that fit the temperature
OTHER_RISKS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)  # tried for a hint


@dataclass(frozen=True)
class CalibrationTarget:
    """The guarantees that the calibrated predictions are to meet: see `Calibration`."""

    target_risk: float = 0.01
    confidence: float = 0.95
    conformal_risk: float = 0.05
    score: str = DEFAULT_SCORE


def calibrate(
    logits: np.ndarray,
    labels: np.ndarray,
    metadata: ModelMetadata,
    target: CalibrationTarget,
    *,
    fitted_to: str = "fp32",
) -> ModelMetadata:
    """Return the metadata with temperature, thresholds and calibration fitted to logits (N, K) and labels (N,).

    The thresholds are fitted to other images than the temperature, since their guarantees require a score that was
    fixed before. Where the temperature makes their log likelihood worse, it stays 1: a choice between two fixed scores,
    so that each is tested at its share of 1 - confidence. Raises UncertaintyError where the list is too short, or no
    threshold meets the target.
    """
    _check_length(len(logits), target)
    fits_temperature = for_temperature(len(logits))
    temperature = choose_temperature(logits[fits_temperature], labels[fits_temperature])
    kept, kept_labels = logits[~fits_temperature], labels[~fits_temperature]
    delta = 1 - target.confidence
    if temperature != 1:
        is_better = negative_log_likelihood(kept, kept_labels, temperature) < negative_log_likelihood(kept, kept_labels)
        delta *= FITTED_SHARE if is_better else 1 - FITTED_SHARE
        temperature = temperature if is_better else 1.0
    wrong = kept.argmax(axis=1) != kept_labels
    uncertainty = uncertainty_of(kept, target.score, temperature)
    found = accept_threshold(uncertainty, wrong, target.target_risk, 1 - delta)
    accept = _check_threshold(found, uncertainty, wrong, target)
    own_scores = np.take_along_axis(softmax(kept, temperature), kept_labels[:, None], axis=1)[:, 0]
    thresholds = {ACCEPT: accept.value, CONFORMAL: conformal_threshold(own_scores, target.conformal_risk)}
    fitted = (len(kept), accept.accepted, accept.wrong, accept.risk_bound)
    targets = (target.score, target.target_risk, target.confidence, target.conformal_risk)
    calibration = Calibration(*targets, *fitted, fitted_to)
    return replace(metadata, temperature=temperature, thresholds=thresholds, calibration=calibration)


def for_temperature(count: int) -> np.ndarray:
    """Return a mask (count,) of the images that fit the temperature; the others fit the thresholds.

    Drawn at random with a fixed seed: lists are sorted by class, or alternate between the classes.
    """
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(SEED).permutation(count)[: math.ceil(count / EVERY)]] = True
    return chosen


def choose_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that fits logits (N, K), or 1 where the gain over 1 is no larger than chance makes it.

    The gain in log likelihood is that of each image at the temperature of the other FOLDS - 1 folds; its mean must
    exceed its standard error. In simulations of 60 images from nets whose best temperature is 0.6 to 2, the fit alone
    was worse than 1 in up to 85 % of the cases (best: 1) and by up to 0.05, with this rule in up to 7 %.
    """
    fold = np.arange(len(labels)) % FOLDS
    gains = np.empty(len(labels))
    for number in range(FOLDS):
        own, others = fold == number, fold != number
        fitted = fit_temperature(logits[others], labels[others])
        gains[own] = _losses(logits[own], labels[own], 1.0) - _losses(logits[own], labels[own], fitted)
    is_reliable = gains.mean() > gains.std(ddof=1) / math.sqrt(len(gains))
    return fit_temperature(logits, labels) if is_reliable else 1.0


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
    return float(_losses(logits, labels, temperature).mean())


def conformal_threshold(own_scores: np.ndarray, risk: float) -> float:
    """Return the ceil((n + 1)(1 - risk))-th smallest 1 - score of the true class (n,) (Angelopoulos & Bates 2021)."""
    count = len(own_scores)
    rank = _conformal_rank(count, risk)
    if rank > count:
        raise UncertaintyError(f"{count} images are too few for conformal sets that miss {risk:g}")
    return float(np.sort(1 - own_scores)[rank - 1])


def least_images(target: CalibrationTarget) -> int:
    """Return the length of the shortest list that can meet the target, if each of its images is predicted correctly."""
    return max(count for count, _ in _least_lengths(target))


def _least_lengths(target: CalibrationTarget) -> list[tuple[int, str]]:
    """Return for each part of a target how long a list it needs, and what makes a shorter one do."""
    for_risk = least_accepted(target.target_risk, FITTED_SHARE * (1 - target.confidence))
    for_sets = math.ceil(round(1 / target.conformal_risk, 9)) - 1
    return [
        (_with_temperature(for_risk), "; a higher --target_risk needs fewer"),
        (_with_temperature(for_sets), "; a higher --conformal needs fewer"),
        (LEAST_FOR_TEMPERATURE * EVERY, ", for the temperature alone"),
    ]


def _with_temperature(kept: int) -> int:
    """Return the length of the shortest list of which `kept` images are left for the thresholds."""
    count = kept * EVERY // (EVERY - 1)
    while count - math.ceil(count / EVERY) < kept:
        count += 1
    return count


def _check_length(count: int, target: CalibrationTarget) -> None:
    least, hint = max(_least_lengths(target))
    if count < least:
        raise UncertaintyError(
            f"{count} images are too few for a risk under {target.target_risk:g} with confidence "
            f"{target.confidence:g} and conformal sets that miss {target.conformal_risk:g}: at least {least} are "
            f"needed, all of them predicted correctly{hint}"
        )


def _check_threshold(
    accept: Threshold | None, uncertainty: np.ndarray, wrong: np.ndarray, target: CalibrationTarget
) -> Threshold:
    """Return the threshold. Raises UncertaintyError where there is none, with the risk that these images allow."""
    if accept is not None:
        return accept
    possible = (
        risk
        for risk in OTHER_RISKS
        if risk > target.target_risk and accept_threshold(uncertainty, wrong, risk, target.confidence)
    )
    risk = next(possible, None)
    hint = f"--target_risk {risk:g} can be" if risk else f"no --target_risk up to {OTHER_RISKS[-1]:g} can be either"
    raise UncertaintyError(
        f"no threshold on {target.score} keeps the risk among the accepted under {target.target_risk:g} with "
        f"confidence {target.confidence:g} ({int(wrong.sum())} of {len(wrong)} images are predicted wrongly); with "
        f"these images {hint}; a longer list, or another --score, may do more"
    )


def _losses(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """Return -ln(score of the true class) of each image, (N,)."""
    scaled = logits.astype(np.float64) / temperature
    own = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
    return np.asarray(log_sum_exp(scaled) - own)


def _conformal_rank(count: int, risk: float) -> int:
    return math.ceil(round((count + 1) * (1 - risk), 9))  # rounded: 20 * 0.95 is 19, not a little more
