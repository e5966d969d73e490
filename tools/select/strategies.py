"""Which images to label next: each strategy picks rows of a pool, the most wanted first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from deploy.inference.uncertainty_scores import entropy, split_entropy

CANDIDATES = 10  # of `mixture`: so many times the number asked, the most uncertain ones, are clustered
SEED_LIMIT = 2**31


class SelectError(UserError):
    """A selection that cannot be made; the message is one sentence for the user."""


@dataclass(frozen=True)
class Pool:
    """What is known of N unlabelled images, and the features (L, D) of those that have labels already.

    `scores` (N, K) are probabilities, `passes` (M, N, K) those of repeated passes, `features` (N, D) floats.
    """

    scores: np.ndarray
    passes: np.ndarray
    features: np.ndarray
    labelled: np.ndarray


@dataclass(frozen=True)
class Strategy:
    """A strategy, the parts of the pool that it cannot do without, and what it does in a line."""

    pick: Callable[[Pool, int, np.random.Generator], np.ndarray]
    needs: frozenset[str]
    text: str

    @property
    def needs_head(self) -> bool:
        """Whether it needs a net that has learned the classes."""
        return bool(self.needs & {"scores", "passes"})


def pick_random(pool: Pool, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return rows drawn at random."""
    return generator.permutation(len(pool.features))[:count]


def pick_entropy(pool: Pool, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return the rows whose scores have the largest entropy."""
    return _largest(entropy(pool.scores), count)


def pick_margin(pool: Pool, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return the rows whose two best classes are nearest to each other (Scheffer, Decomain & Wrobel 2001)."""
    return _largest(_narrowness(pool.scores), count)


def pick_bald(pool: Pool, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return the rows about which the passes disagree most: mutual information (Houlsby et al. 2011; Gal et al. 2017).

    A departure: passes over views or several nets stand for draws of the weights.
    """
    return _largest(split_entropy(pool.passes)["mutual_information"], count)


def pick_coreset(pool: Pool, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return rows far from all labelled and picked ones: greedy k-centre (Sener & Savarese 2018, algorithm 1).

    Without labelled images it begins next to the mean of all.
    """
    features = _of_length_1(pool.features)
    closest = np.full(len(features), -np.inf)  # the cosine to the closest centre
    for centre in _of_length_1(pool.labelled):
        closest = np.maximum(closest, features @ centre)
    rows: list[int] = []
    for _ in range(count):
        first = not rows and not len(pool.labelled)
        row = int((features @ features.mean(axis=0)).argmax() if first else closest.argmin())
        closest = np.maximum(closest, features @ features[row])
        closest[row] = np.inf  # is never the farthest again, not even among copies
        rows.append(row)
    return np.array(rows)


def pick_badge(pool: Pool, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return rows of large, different gradients of the head for the predicted class (Ash et al. 2020, algorithm 1).

    The gradient of a row is the product of its scores minus the prediction (K,) with its features (D,); distances
    follow from both, so that no (N, K D) is held. k-means++ draws each next row by the squared distance.
    """
    errors = pool.scores - np.eye(pool.scores.shape[1])[pool.scores.argmax(axis=1)]  # (N, K)
    features = pool.features
    lengths = (errors**2).sum(axis=1) * (features**2).sum(axis=1)  # (N,), of the gradients, squared
    rows = [int(lengths.argmax())]
    nearest = np.full(len(features), np.inf)
    while len(rows) < count:
        last = rows[-1]
        products = (errors @ errors[last]) * (features @ features[last])
        nearest = np.minimum(nearest, np.maximum(lengths + lengths[last] - 2 * products, 0.0))
        nearest[rows] = 0.0
        if (total := nearest.sum()) > 0:
            rows.append(int(generator.choice(len(features), p=nearest / total)))
        else:  # all that is left are copies
            rest = np.setdiff1d(np.arange(len(features)), rows)
            rows += generator.permutation(rest)[: count - len(rows)].tolist()
    return np.array(rows)


def pick_cluster(pool: Pool, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return a typical row of each cluster without a labelled image, of the largest clusters first.

    k-means into as many clusters as there will be labels (TypiClust, Hacohen, Dekel & Weinshall 2022; a departure: the
    row nearest to the centre stands for the most typical one).
    """
    features, labelled = _of_length_1(pool.features), _of_length_1(pool.labelled)
    number = min(count + len(labelled), len(features))
    clusters, centres = _clusters(np.concatenate([features, labelled]), number, None, generator)
    free = np.setdiff1d(np.arange(number), clusters[len(features) :])
    own = clusters[: len(features)]
    sizes = np.bincount(own, minlength=number)
    rows = [
        _nearest(features, np.flatnonzero(own == cluster), centres[cluster])
        for cluster in free[np.argsort(-sizes[free], kind="stable")]
        if sizes[cluster]
    ][:count]
    rest = np.setdiff1d(generator.permutation(len(features)), rows, assume_unique=True)
    return np.array([*rows, *rest[: count - len(rows)]])  # clusters with several labelled images leave too few


def pick_mixture(pool: Pool, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return a row of each cluster of the most uncertain ones (Zhdanov 2019, "Diverse mini-batch Active Learning").

    Those with the narrowest margins, CANDIDATES times as many as asked, are clustered by their features, weighted by
    the uncertainty; of each cluster the row nearest to its centre is taken. Without scores it picks as `pick_cluster`
    does: the first labels go to what is typical.
    """
    if not pool.scores.shape[1]:
        return pick_cluster(pool, count, generator)
    uncertain = _narrowness(pool.scores)
    candidates = _largest(uncertain, min(CANDIDATES * count, len(uncertain)))
    features = _of_length_1(pool.features[candidates])
    number = min(count, len(candidates))
    clusters, centres = _clusters(features, number, np.maximum(uncertain[candidates], 1e-6), generator)
    rows = [_nearest(features, np.flatnonzero(clusters == one), centres[one]) for one in np.unique(clusters)]
    rest = np.setdiff1d(np.arange(len(candidates)), rows)  # the most uncertain first
    return candidates[np.array([*rows, *rest[: count - len(rows)]])]


def _strategy(
    pick: Callable[[Pool, int, np.random.Generator], np.ndarray], needs: Sequence[str], text: str
) -> Strategy:
    return Strategy(pick, frozenset(needs), text)


STRATEGIES = {
    "random": _strategy(pick_random, (), "drawn at random"),
    "entropy": _strategy(pick_entropy, ("scores",), "the largest entropy of the scores"),
    "margin": _strategy(pick_margin, ("scores",), "the narrowest margin between the two best classes"),
    "bald": _strategy(pick_bald, ("passes",), "the largest disagreement of several passes"),
    "coreset": _strategy(pick_coreset, ("features",), "the features farthest from what has labels"),
    "badge": _strategy(pick_badge, ("scores", "features"), "large and different gradients of the head"),
    "cluster": _strategy(pick_cluster, ("features",), "a typical image of each cluster of the features"),
    "mixture": _strategy(pick_mixture, ("features",), "uncertain images, one of each cluster"),
}


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-values, kind="stable")[:count]


def _narrowness(scores: np.ndarray) -> np.ndarray:
    """Return 1 - (the highest score - the second), (N,)."""
    second, highest = np.partition(scores, -2, axis=1)[:, -2:].T
    return np.asarray(1 - (highest - second))


def _of_length_1(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _squares(features: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return the squared distances (N,) of features (N, D) to a centre (D,)."""
    return np.asarray(((features - centre) ** 2).sum(axis=1))


def _nearest(features: np.ndarray, rows: np.ndarray, centre: np.ndarray) -> int:
    return int(rows[_squares(features[rows], centre).argmin()])


def _clusters(
    features: np.ndarray, number: int, weights: np.ndarray | None, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster of each row (N,), and the centres (number, D)."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(number, n_init=1, random_state=int(generator.integers(SEED_LIMIT)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters
        clusters = means.fit_predict(features, sample_weight=weights)
    return clusters, means.cluster_centers_
