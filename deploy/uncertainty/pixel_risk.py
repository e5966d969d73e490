"""The score from which pixels are accepted so that of those in an image at most a share is expected to be wrong.

Conformal risk control over images: Angelopoulos et al. 2022, "Conformal Risk Control"
(https://arxiv.org/abs/2208.02814). An image's loss is the share of its accepted pixels that is wrong. As it need not
grow with what is accepted, the largest loss at a higher score counts in its place (section 2.4 there).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.inference.mask_prediction import largest_scores
from deploy.inference.uncertainty_scores import UncertaintyError
from deploy.uncertainty.calibration import EVERY, fit_temperature, for_temperature

COVERAGES = np.arange(5, 101) / 100  # shares of the pixels whose thresholds are compared; fixed before the losses
MOST_FOR_TEMPERATURE = 50_000  # pixels


@dataclass(frozen=True)
class PixelLogits:
    """Logits (n, K) of pixels of one image, drawn at random from those of a class, and their labels (n,)."""

    logits: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class PixelThreshold:
    """Accepts from the score `value` at `temperature` on; `risk` bounds the expected share of wrong pixels among them.

    Of the `images` that it was found on, the share `accepted` of the pixels, the share `wrong` of these wrongly, both
    means over images.
    """

    temperature: float
    value: float
    images: int
    accepted: float
    wrong: float
    risk: float


def pixel_threshold(images: Sequence[PixelLogits], target: float) -> PixelThreshold:
    """Return the threshold that accepts most, fitted to images with pixels of a class.

    A fifth of them, drawn at random, fits the temperature and gives the thresholds to compare. Raises UncertaintyError
    where the others are too few, or no threshold meets the target.
    """
    _check_count(len(images), target)
    first = for_temperature(len(images))
    fitting = [image for image, is_first in zip(images, first, strict=True) if is_first]
    kept = [image for image, is_first in zip(images, first, strict=True) if not is_first]
    temperature, values = _temperature_and_thresholds(fitting)
    counts = np.array([accepted_and_wrong(image, temperature, values) for image in kept])  # (n, 2, T)
    accepted, wrong = counts[:, 0], counts[:, 1] / np.maximum(counts[:, 0], 1e-12)
    risks = risk_bounds(wrong)
    if not (risks <= target).any():
        raise UncertaintyError(
            f"no threshold keeps the wrong pixels among the accepted at {target:g}: of the {COVERAGES[0]:.0%} most "
            f"certain ones {wrong[:, 0].mean():.1%} are wrong in the mean of {len(kept)} images, so that a "
            f"--target_risk of {math.ceil(float(risks[0]) * 1000) / 1000:g} can be met; more images, or a better net, "
            "allow a lower one"
        )
    best = int(np.flatnonzero(risks <= target)[-1])
    means = float(accepted[:, best].mean()), float(wrong[:, best].mean())
    return PixelThreshold(temperature, float(values[best]), len(kept), *means, float(risks[best]))


def accepted_and_wrong(image: PixelLogits, temperature: float, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of an image's pixels, (T,) each, that falling thresholds accept, and accept wrongly."""
    scores = largest_scores(image.logits.T, temperature)
    wrong = image.logits.argmax(axis=1) != image.labels
    accepted, mistaken = (len(some) - np.searchsorted(np.sort(some), values) for some in (scores, scores[wrong]))
    return accepted / len(scores), mistaken / len(scores)


def risk_bounds(losses: np.ndarray) -> np.ndarray:
    """Return the bound of the expected loss of a further image (T,) from losses (n, T) in [0, 1].

    (sum + 1) / (n + 1) of each image's largest loss so far, of the thresholds from the strictest one: the further image
    counts as if it were all wrong (Theorem 1 with B = 1).
    """
    largest = np.maximum.accumulate(losses, axis=1)
    return np.asarray((largest.sum(axis=0) + 1) / (len(losses) + 1))


def least_images(target: float) -> int:
    """Return how many images can meet a target if not one pixel is wrong, those of the temperature among them."""
    kept = math.ceil(round(1 / target, 9)) - 1
    count = kept
    while count - math.ceil(count / EVERY) < kept:
        count += 1
    return count


def _temperature_and_thresholds(images: Sequence[PixelLogits]) -> tuple[float, np.ndarray]:
    """Return the temperature, and the scores (T,) from which the COVERAGES of the images' pixels are accepted."""
    most = max(1, MOST_FOR_TEMPERATURE // len(images))
    logits = np.concatenate([image.logits[:most] for image in images])
    labels = np.concatenate([image.labels[:most] for image in images])
    temperature = fit_temperature(logits, labels)
    values = np.quantile(largest_scores(logits.T, temperature), 1 - COVERAGES)
    values[-1] = 0.0  # all
    return temperature, values


def _check_count(count: int, target: float) -> None:
    if count < (least := least_images(target)):
        raise UncertaintyError(
            f"{count} images are too few for at most {target:g} wrong among the accepted pixels: at least {least} are "
            "needed, and more where pixels are wrong; a higher --target_risk needs fewer"
        )
