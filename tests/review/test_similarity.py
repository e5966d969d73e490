"""The order by similarity, on features that are made so that the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from review import similarity
from review.similarity import Similarity


def on_a_circle(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_the_nearest_come_first() -> None:
    """On a circle an image's similarity falls with the angle; records 3 and 4 have no features."""
    found = Similarity(on_a_circle(0, 50, 100, 20, -30), [0, 1, 2, 5, 6])
    assert found.nearest(5) == [5, 0, 1, 6, 2]
    assert found.nearest(6) == [6, 0, 5, 1, 2]
    assert found.nearest(3) == []


def test_the_chain_goes_from_each_to_its_nearest() -> None:
    found = Similarity(on_a_circle(0, 50, 100, 20, 120), [0, 1, 2, 5, 6])
    assert found.chained() == [0, 5, 1, 2, 6]
    assert Similarity(np.empty((0, 2), np.float32), []).chained() == []


def test_many_are_chained_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along an arc each image is beside those of the neighbouring angles, however many parts there are."""
    order = np.random.default_rng(0).permutation(1000)
    features = on_a_circle(*(order * 0.15))
    monkeypatch.setattr(similarity, "MOST_CHAINED", 100)
    chained = Similarity(features, range(1000)).chained()
    assert sorted(chained) == list(range(1000))
    steps = np.abs(np.diff(order[chained]))
    assert np.median(steps) == 1 and (steps > 100).sum() < 10


def test_equal_images_stay_in_the_order_of_the_file() -> None:
    found = Similarity(on_a_circle(10, 10, 10), [0, 1, 2])
    assert found.chained() == [0, 1, 2] and found.nearest(1) == [1, 0, 2]
