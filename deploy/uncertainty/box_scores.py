"""The calibrated scores of a detector: a score then says how often such an object is right.

Platt scaling (Platt 1999, "Probabilistic Outputs for Support Vector Machines"), a sigmoid of the logit with a slope and
an offset, which Küppers et al. 2020, "Multivariate Confidence Calibration for Object Detection"
(https://arxiv.org/abs/2004.13546), take for detections as logistic calibration, too; here of the score alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artifacts.box_matching import HIT, IGNORED, matched
from artifacts.detections import SIGMOID, Detections, ScoreMap
from data_loader.box_target import Boxes
from deploy.uncertainty.metrics import in_bins

BINS = 20  # of the score, for the detection calibration error
FOLDS = 5  # of the images
SLOPES = 0.02, 50.0  # 1 / temperature: others are of scores that say nothing, or of a few objects
STEPS, LEAST_STEP = 100, 1e-9  # of Newton's method
LEAST_CHANCE = 1e-7  # a float32 score's distance from 0 and 1


@dataclass(frozen=True)
class ImageScores:
    """The objects found in an image, but for ignored ones: their logits (n,), and which are right (n,) bool."""

    logits: np.ndarray
    hits: np.ndarray


@dataclass(frozen=True)
class FittedScores:
    """A map, and the detection calibration error of all objects without it and with it.

    `after` is measured on images that it was not fitted to: each fold by the map of the others.
    """

    score_map: ScoreMap
    before: float
    after: float


def scores_of(truth: Boxes, found: Detections) -> ImageScores:
    """Return the logits of what was found in an image with uncalibrated scores, and what is right at IoU 0.5."""
    kinds = matched(found, truth)
    chances = found.scores[kinds != IGNORED].astype(np.float64).clip(LEAST_CHANCE, 1 - LEAST_CHANCE)
    return ImageScores(np.log(chances / (1 - chances)), kinds[kinds != IGNORED] == HIT)


def choose_score_map(images: Sequence[ImageScores]) -> FittedScores:
    """Return the map that fits the images, or none where its gain is no larger than chance makes it.

    The gain in log likelihood is that of each image at the map of the other FOLDS - 1 folds; its mean must exceed its
    standard error.
    """
    logits, hits = joined(images)
    before = calibration_error(logits, hits)
    if len(images) < 2 * FOLDS or not len(logits):
        return FittedScores(SIGMOID, before, before)
    gains, maps = np.empty(len(images)), []
    for fold in range(FOLDS):
        others = [image for number, image in enumerate(images) if number % FOLDS != fold]
        maps.append(fit_score_map(*joined(others)))
    for number, image in enumerate(images):
        gains[number] = (_losses(image, SIGMOID) - _losses(image, maps[number % FOLDS])).sum()
    fitted = fit_score_map(logits, hits)
    if fitted == SIGMOID or not gains.mean() > gains.std(ddof=1) / math.sqrt(len(gains)):
        return FittedScores(SIGMOID, before, before)
    scores = [maps[number % FOLDS].scores(image.logits) for number, image in enumerate(images)]
    return FittedScores(fitted, before, in_bins(np.concatenate(scores), hits, BINS).error)


def fit_score_map(logits: np.ndarray, hits: np.ndarray) -> ScoreMap:
    """Return the map of the highest likelihood for logits (n,) and what is right (n,), by Newton's method.

    The targets are Platt's (section 2.2 there), so that it exists where a score parts right from wrong, too. Where it
    does not rise, or all are right or all wrong, the scores stay as they are.
    """
    right = int(hits.sum())
    if right in (0, len(hits)):
        return SIGMOID
    targets = np.where(hits, (right + 1) / (right + 2), 1 / (len(hits) - right + 2))
    inputs = np.stack([logits, np.ones(len(logits))])  # (2, n)
    values = np.array([1.0, 0.0])  # slope, offset
    loss = _mean_loss(values @ inputs, targets)
    for _ in range(STEPS):
        scores = SIGMOID.scores(values @ inputs)
        slope = inputs @ (scores - targets)
        curvature = (inputs * (scores * (1 - scores))) @ inputs.T
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), slope)
        while (tried := _mean_loss((values - step) @ inputs, targets)) > loss and np.abs(step).max() > LEAST_STEP:
            step /= 2  # the loss is convex, but a whole step may lead too far
        if np.abs(step).max() <= LEAST_STEP:
            break
        values, loss = values - step, tried
    low, high = SLOPES
    if not low < values[0] < high:
        return SIGMOID
    return ScoreMap(float(1 / values[0]), float(values[1]))


def calibration_error(logits: np.ndarray, hits: np.ndarray, score_map: ScoreMap = SIGMOID) -> float:
    """Return the detection expected calibration error, D-ECE (Küppers et al. 2020), over BINS bins of the score.

    The mean distance between score and precision, weighted by the objects of each bin, for logits and hits (n,).
    """
    return in_bins(score_map.scores(logits), hits, BINS).error if len(logits) else 0.0


def joined(images: Sequence[ImageScores]) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and hits of all images."""
    return np.concatenate([image.logits for image in images]), np.concatenate([image.hits for image in images])


def _losses(image: ImageScores, score_map: ScoreMap) -> np.ndarray:
    """Return -ln of the probability that a map gives to what each object (n,) is."""
    scaled = image.logits / score_map.temperature + score_map.offset
    return np.asarray(np.logaddexp(0, np.where(image.hits, -scaled, scaled)))


def _mean_loss(scaled: np.ndarray, targets: np.ndarray) -> float:
    return float((np.logaddexp(0, scaled) - targets * scaled).mean())
