"""The strategies against scipy and against their definitions written out, and what they are worth on easy data."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist

from tools.select.simulation import JUDGED, SHARES, Known, beats_random, label_counts, simulate
from tools.select.strategies import STRATEGIES, Pool, SelectError


def pool(count: int = 40, classes: int = 4, width: int = 6, labelled: int = 3, seed: int = 0) -> Pool:
    generator = np.random.default_rng(seed)
    return Pool(
        generator.dirichlet(np.full(classes, 0.5), count),
        generator.dirichlet(np.full(classes, 0.5), (5, count)),
        generator.normal(1, 1, (count, width)),
        generator.normal(1, 1, (labelled, width)),
    )


def pick(name: str, known: Pool, count: int, seed: int = 0) -> list[int]:
    rows: list[int] = STRATEGIES[name].pick(known, count, np.random.default_rng(seed)).tolist()
    return rows


def test_the_most_uncertain_come_first() -> None:
    known = pool()
    entropies = scipy.stats.entropy(known.scores, axis=1)
    assert pick("entropy", known, 9) == np.argsort(-entropies)[:9].tolist()
    ranked = np.sort(known.scores, axis=1)
    assert pick("margin", known, 9) == np.argsort(ranked[:, -1] - ranked[:, -2])[:9].tolist()
    mean = known.passes.mean(axis=0)
    disagreement = np.mean([scipy.stats.entropy(one, mean, axis=1) for one in known.passes], axis=0)
    assert pick("bald", known, 9) == np.argsort(-disagreement)[:9].tolist()


def test_coreset_is_greedy_k_centre() -> None:
    known = pool()
    directions = known.features / np.linalg.norm(known.features, axis=1, keepdims=True)
    centres = (known.labelled / np.linalg.norm(known.labelled, axis=1, keepdims=True)).tolist()
    expected = []
    for _ in range(8):
        expected.append(int(cdist(directions, np.array(centres)).min(axis=1).argmax()))
        centres.append(directions[expected[-1]].tolist())
    assert pick("coreset", known, 8) == expected
    alone = Pool(known.scores, known.passes, known.features, known.features[:0])
    assert pick("coreset", alone, 1) == [int((directions @ directions.mean(axis=0)).argmax())]


def test_badge_is_k_means_plus_plus_on_the_gradients() -> None:
    """The gradients written out, (N, K D), and the same draws."""
    known = pool()
    errors = known.scores - np.eye(4)[known.scores.argmax(axis=1)]
    gradients = (errors[:, :, None] * known.features[:, None, :]).reshape(len(errors), -1)  # (N, K D)
    generator = np.random.default_rng(0)
    expected = [int((gradients**2).sum(axis=1).argmax())]
    while len(expected) < 8:
        squares = cdist(gradients, gradients[expected]).min(axis=1) ** 2
        expected.append(int(generator.choice(len(squares), p=squares / squares.sum())))
    assert pick("badge", known, 8) == expected


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return points around the axes' ends, and which axis each belongs to."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).normal(0, 0.05, (len(labels), len(sizes)))
    return np.eye(len(sizes))[labels] + noise, labels


def test_cluster_takes_the_largest_cluster_without_labels_first() -> None:
    features, labels = blobs([10, 5, 20, 15])
    known = Pool(np.empty((50, 0)), np.empty((0, 50, 0)), features, np.array([[0.0, 0, 1, 0]]))
    rows = pick("cluster", known, 3)
    assert labels[rows].tolist() == [3, 0, 1]
    for row in rows:  # nearest to the mean of its cluster
        own = np.flatnonzero(labels == labels[row])
        directions = features[own] / np.linalg.norm(features[own], axis=1, keepdims=True)
        assert row == own[cdist(directions, directions.mean(axis=0)[None]).argmin()]


def test_mixture_takes_uncertain_images_that_differ() -> None:
    features, labels = blobs([60, 60, 60])
    sure = np.tile([0.98, 0.01, 0.01], (180, 1))
    uncertain = np.flatnonzero(np.arange(180) % 6 == 0)  # 10 of each
    sure[uncertain] = [0.5, 0.45, 0.05]
    known = Pool(sure, np.empty((0, 180, 3)), features, features[:0])
    rows = pick("mixture", known, 3)
    assert sorted(labels[rows].tolist()) == [0, 1, 2] and set(rows) <= set(uncertain.tolist())


def test_mixture_begins_with_typical_images() -> None:
    known = pool(30, labelled=0)
    without = Pool(np.empty((30, 0)), np.empty((0, 30, 0)), known.features, known.labelled)
    assert pick("mixture", without, 5) == pick("cluster", without, 5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_image_is_picked_once_at_most(name: str) -> None:
    for known in (pool(30), pool(30, labelled=0)):
        for count in (1, 7, 30):
            rows = pick(name, known, count)
            assert len(set(rows)) == len(rows) == count and set(rows) <= set(range(30))
        assert pick(name, known, 7, seed=3) == pick(name, known, 7, seed=3)
    copies = Pool(np.full((12, 3), 1 / 3), np.full((2, 12, 3), 1 / 3), np.ones((12, 4)), np.ones((5, 4)))
    assert sorted(pick(name, copies, 12)) == list(range(12)) and len(set(pick(name, copies, 5))) == 5


def test_a_simulation_gives_each_strategy_the_same_images() -> None:
    features, labels = blobs([60, 60, 60])
    shown = features + np.random.default_rng(1).normal(0, 0.4, features.shape)
    known = Known(shown, np.stack([shown, shown + 0.01]), labels)
    calls: list[int] = []
    found = simulate(known, ("random", "margin", "cluster"), 2, lambda: calls.append(1))
    assert len(calls) == 6 and {values.shape for values in found.values()} == {(2, len(SHARES))}
    assert (found["random"][:, 0] == found["margin"][:, 0]).all()  # the same start
    assert all((values[:, -1] == found["random"][:, -1]).all() for values in found.values())  # all have labels
    again = simulate(known, ("cluster",), 2, lambda: None)
    assert (again["cluster"] == found["cluster"]).all()
    assert found["random"][:, -1].min() > 0.75
    assert label_counts(700) == [14, 35, 70, 140, 280, 700]
    with pytest.raises(SelectError, match="needs some 143 labelled images"):
        label_counts(60)


def test_a_strategy_beats_random_above_its_best_draw() -> None:
    at = SHARES.index(JUDGED)
    found = {"random": np.full((2, len(SHARES)), 0.5), "margin": np.full((2, len(SHARES)), 0.6)}
    found["random"][1, at] = 0.6
    assert not beats_random(found, "margin")
    found["margin"][0, at] = 0.62
    assert beats_random(found, "margin")
