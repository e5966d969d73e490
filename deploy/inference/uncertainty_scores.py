"""Scores of uncertainty, one interface: the higher, the more doubtful. All in float64, from float32 logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from artifacts.calibration import SCORES
from common.errors import UserError

PASSES = ("predictive_entropy", "expected_entropy", "mutual_information")


class UncertaintyError(UserError):
    """Something about uncertainty that cannot be done; the message is one sentence for the user."""


def uncertainty_of(logits: np.ndarray, score: str, temperature: float = 1.0) -> np.ndarray:
    """Give the uncertainty (N,) of finite logits (N, K) by one of SCORES. Raises UncertaintyError for another name."""
    if score not in LOGIT_SCORES:
        raise UncertaintyError(f'the score must be {", ".join(SCORES)}, got "{score}"')
    return LOGIT_SCORES[score](logits.astype(np.float64), temperature)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Give the float64 scores (..., K) of logits (..., K) over the temperature; rows not finite become NaN."""
    scaled = logits.astype(np.float64) / temperature
    scaled[~np.isfinite(scaled).all(axis=-1)] = np.nan
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def entropy(scores: np.ndarray) -> np.ndarray:
    """Give the entropy (...,) of scores (..., K) in nats, from 0 to ln K."""
    logarithms = np.log(scores, out=np.zeros_like(scores), where=scores > 0)
    return np.asarray(-(scores * logarithms).sum(axis=-1))


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Give ln(sum(exp(logits))) (N,) of float64 logits (N, K)."""
    largest = logits.max(axis=-1, keepdims=True)
    return np.asarray(largest[..., 0] + np.log(np.exp(logits - largest).sum(axis=-1)))


def split_entropy(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Split what M passes' scores (M, N, K) leave open into PASSES, each (N,): the first is the sum of the others.

    The entropy of the mean is the mean entropy, doubt that every pass has, plus the mutual information, what the
    passes disagree about (Depeweg et al. 2018, eq. 3; Gal, Islam & Ghahramani 2017, eq. 2).
    """
    predictive = entropy(scores.mean(axis=0))
    expected = entropy(scores).mean(axis=0)
    return dict(zip(PASSES, (predictive, expected, np.maximum(predictive - expected, 0.0)), strict=True))


@dataclass(frozen=True)
class ClassMeans:
    """The mean of each class's features, float64 (K, D), the features brought to length 1 before."""

    means: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> ClassMeans:
        """Take the means of features (N, D) by label (N,), of the classes that are there."""
        directions = _of_length_1(features)
        return cls(np.stack([directions[labels == label].mean(axis=0) for label in np.unique(labels)]))

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Give the distance (N,) of features (N, D) to the nearest mean, from 0 to 2."""
        directions = _of_length_1(features)
        # |a - b|^2 = |a|^2 - 2 ab + |b|^2: no (N, K, D)
        squares = 1 - 2 * directions @ self.means.T + (self.means**2).sum(axis=1)  # (N, K)
        return np.asarray(np.sqrt(np.maximum(squares.min(axis=1), 0.0)))


def _least_confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Give 1 - the highest score, as the sum of the others: it tells 1 - 1e-20 from 1."""
    scores = softmax(logits, temperature)
    np.put_along_axis(scores, logits.argmax(axis=1)[:, None], 0.0, axis=1)
    return np.asarray(scores.sum(axis=1))


def _entropy(logits: np.ndarray, temperature: float) -> np.ndarray:
    return entropy(softmax(logits, temperature))


def _margin(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Give 1 - (the highest score - the second)."""
    second, highest = np.partition(softmax(logits, temperature), -2, axis=1)[:, -2:].T
    return np.asarray(1 - (highest - second))


def _energy(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Give -T logsumexp(logits / T) (Liu et al. 2020, eq. 4)."""
    return -temperature * log_sum_exp(logits / temperature)


def _evidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Give u = K / sum(alpha), alpha = relu(logits) + 1 (Sensoy et al. 2018, section 3), from 0 to 1.

    A departure: theirs is of a net trained to give evidence; these are logits of one that was not. No temperature.
    """
    return np.asarray(logits.shape[1] / (np.maximum(logits, 0.0) + 1).sum(axis=1))


def _of_length_1(features: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny))


LOGIT_SCORES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = dict(
    zip(SCORES, (_least_confidence, _entropy, _margin, _energy, _evidence), strict=True)
)
