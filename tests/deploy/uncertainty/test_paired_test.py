"""Two nets on the same images: the exact tests against scipy and by hand, and the decision over simulated pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from artifacts.metadata import ModelMetadata
from deploy.inference.uncertainty_scores import UncertaintyError
from deploy.uncertainty.outputs import Outputs
from deploy.uncertainty.paired_test import Pairing, holm, pair_by_class, sign_test
from deploy.uncertainty.release import judge_release, shared_rows
from tests.helpers.calibrated import metadata_with

PAIRS = 1000


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 5), (5, 0), (7, 3), (30, 12), (700, 640)])
def test_the_sign_test_is_the_binomial_one(wins: int, losses: int) -> None:
    expected = scipy.stats.binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_holm_rejects_from_the_smallest_on() -> None:
    """0.01 <= 0.05 / 4 and 0.015 <= 0.05 / 3, but 0.03 > 0.05 / 2: the 0.04 behind it is not rejected either."""
    assert holm([0.03, 0.01, 0.04, 0.015], 0.05) == [False, True, False, True]
    assert holm([], 0.05) == []


def test_images_are_counted_by_who_has_them_right() -> None:
    old, new = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    assert Pairing.of(old, new) == Pairing(5, 3, 2, gained=1, lost=2)
    first, second = pair_by_class(np.array([0, 0, 0, 1, 1]), old, new, 2)
    assert (first.gained, first.lost, second.gained, second.lost) == (1, 1, 0, 1)


def outputs(labels: np.ndarray, right: np.ndarray, sure: float = 20.0) -> Outputs:
    """Return logits of three classes that are right where asked, else for the next class."""
    predicted = np.where(right, labels, (labels + 1) % 3)
    return Outputs(sure * np.eye(3, dtype=np.float32)[predicted], labels, tuple(map(str, range(len(labels)))))


def judged(old_right: np.ndarray, new_right: np.ndarray, labels: np.ndarray, risk: float) -> tuple[str, ...]:
    metadata = promising(risk)
    return judge_release(outputs(labels, old_right), metadata, outputs(labels, new_right), metadata, 0.95).reasons


def promising(risk: float) -> ModelMetadata:
    metadata = metadata_with()
    assert metadata.calibration is not None
    return replace(metadata, calibration=replace(metadata.calibration, target_risk=risk))


def test_equal_nets_seldom_replace_each_other_and_better_ones_do() -> None:
    """The figures of docs/uncertainty.md; equal nets are right for other images with the same probability."""
    generator = np.random.default_rng(0)
    replaced = {0.0: 0, 0.03: 0, 0.05: 0}
    worst = 0
    for gain in replaced:
        for _ in range(PAIRS):
            hard = generator.random(500) < 0.3  # images that a net has right with probability 0.6, the others 0.95
            chance = np.where(hard, 0.6, 0.95)
            labels = generator.integers(0, 3, 500)
            old, new = generator.random(500) < chance, generator.random(500) < np.minimum(chance + gain, 1)
            whole = Pairing.of(old, new)
            replaced[gain] += whole.p_better <= 0.05
            if gain == 0:
                worst += any(holm([part.p_worse for part in pair_by_class(labels, old, new, 3)], 0.05))
    assert replaced[0.0] <= 0.05 * PAIRS and worst <= 0.05 * PAIRS
    assert (replaced, worst) == ({0.0: 39, 0.03: 431, 0.05: 824}, 34)


def test_a_better_net_that_keeps_its_target_replaces_the_old_one() -> None:
    labels = np.arange(300) % 3
    old = np.arange(300) >= 40
    assert judged(old, np.ones(300, bool), labels, 0.01) == ()


def test_each_reason_is_a_sentence() -> None:
    labels = np.arange(300) % 3
    everything = np.ones(300, bool)
    (reason,) = judged(everything, everything, labels, 0.01)
    assert reason == (
        "it is not better with confidence 0.95: of 300 images 0 are right with the new net alone and 0 with the old "
        "one alone, and equal nets differ so with probability 1"
    )
    old, new = everything.copy(), everything.copy()
    old[labels == 0] = False  # the new net gains class 0, and loses 9 images of class 1
    new[np.flatnonzero(labels == 1)[:9]] = False
    worse, broken = judged(old, new, labels, 0.01)
    assert worse == (
        'class "dog" is worse: of its 100 images 9 are right with the old net alone and 0 with the new one alone'
    )
    assert broken == ("the new net does not keep its target risk of 0.01: 9 of 300 accepted images are wrong (3.00%)")
    assert judged(old, new, labels, 0.03) == (worse,)


def test_a_net_without_thresholds_or_without_accepted_images_is_no_replacement() -> None:
    labels = np.arange(60) % 3
    old, new = np.zeros(60, bool), np.ones(60, bool)
    plain = metadata_with(calibration=None, temperature=None, thresholds={})
    release = judge_release(outputs(labels, old), plain, outputs(labels, new), plain, 0.95)
    assert release.reasons == ("the new net is not calibrated, so it has no target risk to keep; calibrate it first",)
    unsure = outputs(labels, new, sure=0.1)
    (reason,) = judge_release(outputs(labels, old), plain, unsure, promising(0.02), 0.95).reasons
    assert reason == "the new net accepts none of the images, so its target risk of 0.02 cannot be judged"


def test_only_images_that_both_could_read_are_compared() -> None:
    labels = np.arange(6) % 3
    old, new = outputs(labels, np.ones(6, bool)), outputs(labels, np.ones(6, bool))
    fewer = Outputs(new.logits[[4, 2]], new.labels[[4, 2]], ("4", "2"))
    assert shared_rows(old, fewer).tolist() == [[2, 1], [4, 0]]
    with pytest.raises(UncertaintyError, match="no image could be read for both nets"):
        none = Outputs(new.logits[:1], new.labels[:1], ("other",))
        judge_release(old, promising(0.1), none, promising(0.1), 0.95)
