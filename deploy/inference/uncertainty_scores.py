"""Uncertainty scores behind one interface: the higher, the less certain. All in float64, from float32 logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.errors import UserError

PASS_SCORES = ("predictive_entropy", "expected_entropy", "mutual_information")


class UncertaintyError(UserError):
    """An uncertainty that cannot be computed or calibrated; the message is one sentence for the user."""


def uncertainty_of(logits: np.ndarray, score: str, temperature: float = 1.0) -> np.ndarray:
    """Return the uncertainty (N,) of finite logits (N, K) by a score of LOGIT_SCORES. Raises UncertaintyError."""
    if score not in LOGIT_SCORES:
        raise UncertaintyError(f'the score must be {", ".join(LOGIT_SCORES)}, got "{score}"')
    return LOGIT_SCORES[score](logits.astype(np.float64), temperature)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the float64 scores (..., K) of logits (..., K) over the temperature; rows not finite become NaN."""
    scaled = logits.astype(np.float64) / temperature
    scaled[~np.isfinite(scaled).all(axis=-1)] = np.nan
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def entropy(scores: np.ndarray) -> np.ndarray:
    """Return the entropy (...,) of scores (..., K) in nats, from 0 to ln K."""
    logarithms = np.log(scores, out=np.zeros_like(scores), where=scores > 0)
    return np.asarray(-(scores * logarithms).sum(axis=-1))


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Return ln(sum(exp(logits))) (N,) of float64 logits (N, K)."""
    largest = logits.max(axis=-1, keepdims=True)
    return np.asarray(largest[..., 0] + np.log(np.exp(logits - largest).sum(axis=-1)))


def split_entropy(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Split the uncertainty of M passes' scores (M, N, K) into PASS_SCORES, each (N,): the first sums up the others.

    The entropy of the mean is the mean entropy, the uncertainty that every pass has, plus the mutual information, what
    the passes disagree about (Depeweg et al. 2018, eq. 3; Gal, Islam & Ghahramani 2017, eq. 2).
    """
    predictive = entropy(scores.mean(axis=0))
    expected = entropy(scores).mean(axis=0)
    return {
        "predictive_entropy": predictive,
        "expected_entropy": expected,
        "mutual_information": np.maximum(predictive - expected, 0.0),
    }


@dataclass(frozen=True)
class ClassMeans:
    """The mean of each class's features, float64 (K, D); the features are normalized to length 1 first."""

    means: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> ClassMeans:
        """Compute the means of features (N, D) by label (N,), for the classes that occur."""
        directions = _of_length_1(features)
        return cls(np.stack([directions[labels == label].mean(axis=0) for label in np.unique(labels)]))

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Return the distance (N,) of features (N, D) to the nearest mean, from 0 to 2."""
        directions = _of_length_1(features)
        # |a - b|^2 = |a|^2 - 2 ab + |b|^2: no (N, K, D)
        squares = 1 - 2 * directions @ self.means.T + (self.means**2).sum(axis=1)  # (N, K)
        return np.asarray(np.sqrt(np.maximum(squares.min(axis=1), 0.0)))


def _least_confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return 1 - the highest score, as the sum of the others: 1 - 1e-20 is not rounded to 1."""
    scores = softmax(logits, temperature)
    np.put_along_axis(scores, logits.argmax(axis=1)[:, None], 0.0, axis=1)
    return np.asarray(scores.sum(axis=1))


def _entropy(logits: np.ndarray, temperature: float) -> np.ndarray:
    return entropy(softmax(logits, temperature))


def _margin(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return 1 - (the highest score - the second)."""
    second, highest = np.partition(softmax(logits, temperature), -2, axis=1)[:, -2:].T
    return np.asarray(1 - (highest - second))


def _energy(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return -T logsumexp(logits / T) (Liu et al. 2020, eq. 4)."""
    return -temperature * log_sum_exp(logits / temperature)


def _evidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return u = K / sum(alpha), alpha = relu(logits) + 1 (Sensoy et al. 2018, section 3), from 0 to 1.

    A departure: their net is trained to output evidence, these are the logits of one that is not. No temperature.
    """
    return np.asarray(logits.shape[1] / (np.maximum(logits, 0.0) + 1).sum(axis=1))


def _of_length_1(features: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny))


# Logits (N, K) and temperature -> uncertainty (N,). The names are those of `artifacts.calibration.SCORES`.
LOGIT_SCORES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "least_confidence": _least_confidence,
    "entropy": _entropy,
    "margin": _margin,
    "energy": _energy,
    "evidence": _evidence,
}
