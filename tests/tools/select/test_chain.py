"""Picks in stages, as antgo's and our settings of active learning name them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tools.select.chain import Stage, chain, read_stages
from tools.select.strategies import Pool, SelectError

SCORES = np.array([[0.9, 0.1], [0.55, 0.45], [0.6, 0.4], [0.7, 0.3], [0.99, 0.01]])
FEATURES = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
POOL = Pool(SCORES, np.empty((0, 5, 2)), FEATURES, np.array([[0.0, 1.0]]))


def picked(count: int, *stages: tuple[str, int]) -> list[int]:
    strategy = chain([Stage(*stage) for stage in stages])
    return strategy.pick(POOL, count, np.random.default_rng(0)).tolist()


def test_each_stage_picks_from_what_the_one_before_picked() -> None:
    """Of the three lowest highest scores, rows 1, 2, 3, row 1 is the farthest from the labelled centre (0, 1)."""
    assert picked(2, ("doubt", 0)) == [1, 2]
    assert picked(9, ("doubt", 3)) == [1, 2, 3]
    assert picked(9, ("doubt", 3), ("kcenter", 1)) == [1]
    assert picked(1, ("doubt", 3), ("kcenter", 2)) == [1]
    assert picked(2, ("entropy", 0)) == [1, 2]
    assert sorted(picked(9, ("uniform", 4))) == sorted({*picked(9, ("uniform", 4))})


def test_what_the_stages_need() -> None:
    assert chain([Stage("uniform", 1)]).needs == frozenset()
    assert chain([Stage("doubt", 3), Stage("kcenter", 1)]).needs == {"scores", "features"}


def test_settings_of_ours_and_of_antgo() -> None:
    assert read_stages({}) == ([Stage("doubt", 0)], 1000)
    ours = {"sampling_num": 20, "sampling_fn": [{"type": "doubt", "sampling_num": 50}, {"type": "kcenter"}]}
    assert read_stages(ours) == ([Stage("doubt", 50), Stage("kcenter", 0)], 20)
    rows = [{"type": "SamplingByUniform", "sampling_num": 500}, {"type": "SamplingByKCenter", "key": "feature"}]
    antgo = {"sampling_count": 1, "sampling_fn": {"type": "SamplingByComposer", "sampling_cfgs": rows}}
    assert read_stages(antgo) == ([Stage("uniform", 500), Stage("kcenter", 0)], 1000)
    assert read_stages({"sampling_fn": {"type": "SamplingByEntropy"}}) == ([Stage("entropy", 0)], 1000)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sampling": 1}, 'unknown key "sampling"; known: sampling_count, sampling_fn, sampling_num'),
        ({"sampling_count": 5}, "sampling_count must be 1: all passes of a net give the same"),
        ({"sampling_num": 0}, "sampling_num must be a whole number from 1, got 0"),
        ({"sampling_fn": []}, "sampling_fn must be a list of stages, each with a type and a sampling_num"),
        (
            {"sampling_fn": {"type": "GuidByCrossDomain"}},
            'no sampling of type "GuidByCrossDomain"; known: doubt, uniform, kcenter, entropy',
        ),
    ],
)
def test_mistakes(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectError) as caught:
        read_stages(config)
    assert str(caught.value) == f"activelearning: {message}"
