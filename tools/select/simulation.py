"""What each strategy is worth on images whose labels are known: hidden, picked, given, and a head trained each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.inference.uncertainty_scores import softmax
from tools.select.strategies import STRATEGIES, Pool, SelectError
from trainers.head_fitting import fit_linear

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)  # of the pool that have labels
JUDGED = 0.1  # the share at which strategies are compared
TEST_SHARE = 0.3


@dataclass(frozen=True)
class Known:
    """Features (N, D), those of M views of each image (M, N, D), and labels (N,)."""

    features: np.ndarray
    views: np.ndarray
    labels: np.ndarray


def simulate(known: Known, names: Sequence[str], draws: int, advance: Callable[[], object]) -> dict[str, np.ndarray]:
    """Return the accuracy of each strategy, (draws, SHARES), on TEST_SHARE of the images, the same for all in a draw.

    In every round the head, a logistic regression on the frozen features, is fitted to what has labels; it gives the
    scores for the next pick. The first images are drawn at random, the same for all strategies, but for those that need
    no scores: they pick from the start. `advance` is called after each strategy of a draw. Raises SelectError.
    """
    num_test = round(TEST_SHARE * len(known.labels))
    counts = label_counts(len(known.labels) - num_test)
    found = {name: np.zeros((draws, len(SHARES))) for name in names}
    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(len(known.labels))
        test, pool = order[:num_test], order[num_test:]
        for name in names:
            found[name][draw] = _course(known, name, test, pool, counts, draw)
            advance()
    return found


def label_counts(pool_size: int) -> list[int]:
    """Return how many images have labels in each round. Raises SelectError for a pool that is too small."""
    counts = [round(share * pool_size) for share in SHARES]
    if counts[0] < 2:
        least = round(2 / SHARES[0] / (1 - TEST_SHARE))
        raise SelectError(f"a simulation needs some {least} labelled images, for {SHARES[0]:.0%} of them to be two")
    return counts


def beats_random(found: dict[str, np.ndarray], name: str) -> bool:
    """Return whether a strategy's mean at JUDGED of the labels is above random's best draw."""
    at = SHARES.index(JUDGED)
    return float(found[name][:, at].mean()) > float(found["random"][:, at].max())


def _course(
    known: Known, name: str, test: np.ndarray, pool: np.ndarray, counts: Sequence[int], draw: int
) -> list[float]:
    """Return the accuracies of one strategy in one draw, round by round."""
    generator = np.random.default_rng([draw, 1])
    picked = np.zeros(len(pool), bool)
    accuracies: list[float] = []
    head = None
    for count in counts:
        rest = np.flatnonzero(~picked)
        strategy = STRATEGIES["random" if head is None and STRATEGIES[name].needs_head else name]
        rows = strategy.pick(_pool(known, pool, picked, head), count - int(picked.sum()), generator)
        picked[rest[rows]] = True
        chosen = pool[picked]
        head = _fit(known.features[chosen], known.labels[chosen], int(known.labels.max()) + 1)
        accuracies.append(float((_logits(known.features[test], head).argmax(axis=1) == known.labels[test]).mean()))
    return accuracies


def _pool(known: Known, pool: np.ndarray, picked: np.ndarray, head: tuple[np.ndarray, np.ndarray] | None) -> Pool:
    rest, has_labels = pool[~picked], pool[picked]
    features = known.features[rest]
    if head is None:
        return Pool(np.empty((len(rest), 0)), np.empty((0, len(rest), 0)), features, known.features[has_labels])
    passes = np.stack([softmax(_logits(view[rest], head)) for view in known.views])
    return Pool(softmax(_logits(features, head)), passes, features, known.features[has_labels])


def _fit(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (K, D) and biases (K,); of a single class, which no regression separates, constant scores."""
    if len(np.unique(labels)) == 1:
        return np.zeros((num_classes, features.shape[1])), np.eye(num_classes)[labels[0]]
    return fit_linear(features, labels, num_classes)


def _logits(features: np.ndarray, head: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    weight, bias = head
    return np.asarray(features @ weight.T + bias)
