"""The test of a share that may be looked at after every observation: by hand, and over simulated streams."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from deploy.service.risk_test import BETS, FIRST, LEVEL, RESTART, RiskTest

STREAMS = 1000


def alarm(events: np.ndarray, share: float) -> int:
    """Return after how many observations the test tells; 0 if it does not."""
    test = RiskTest(share)
    for event in events.tolist():
        test.observe(event)
        if test.is_exceeded:
            return test.count
    return 0


def alarms(share: float, parts: list[tuple[float, int]], seed: int) -> np.ndarray:
    """Return the alarm of each of STREAMS streams, in which `parts` follow one another: a true share, and a length."""
    generator = np.random.default_rng(seed)
    pieces = [generator.random((STREAMS, count)) < true for true, count in parts]
    return np.array([alarm(stream, share) for stream in np.concatenate(pieces, axis=1)])


def test_the_evidence_is_the_mean_of_likelihood_ratios() -> None:
    """Computed again with scipy from all observations at once, of every bet and beginning."""
    share, events = 0.1, np.random.default_rng(3).random(250) < 0.15
    test = RiskTest(share)
    for event in events.tolist():
        test.observe(event)
    expected, waiting = 0.0, 1.0
    for number in range(3):  # began at 0, 100 and 200
        part = FIRST if number == 0 else (1 - FIRST) / (number * (number + 1))
        waiting -= part
        later = events[number * RESTART :]
        for times, weight in BETS:
            ratio = scipy.stats.bernoulli.pmf(later, times * share) / scipy.stats.bernoulli.pmf(later, share)
            expected += part * weight * float(np.prod(ratio))
    assert test.evidence == pytest.approx(expected + waiting)
    assert (test.count, test.events) == (250, int(events.sum()))


def test_the_next_step_is_fair() -> None:
    """At the promised share the mean of the next evidence is the one before; below the share it is less."""
    for events in ([], [True, False] * 49, [True, False] * 50, [False] * 333):
        for true, is_fair in ((0.2, True), (0.1, False)):
            after = []
            for last in (False, True):
                test = RiskTest(0.2)
                for event in events:
                    test.observe(event)
                before = test.evidence
                test.observe(last)
                after.append(test.evidence)
            mean = (1 - true) * after[0] + true * after[1]
            assert mean == pytest.approx(before) if is_fair else mean < before


def test_an_alarm_stays_and_nothing_overflows() -> None:
    test = RiskTest(0.01)
    for _ in range(1000):
        test.observe(True)
    assert test.is_exceeded and np.isfinite(test.evidence)
    for _ in range(2000):
        test.observe(False)
    assert test.is_exceeded and test.evidence > 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        RiskTest(1.0)


@pytest.mark.parametrize(("share", "false_alarms"), [(0.05, 28), (0.1, 34)])
def test_streams_without_a_change_seldom_alarm(share: float, false_alarms: int) -> None:
    found = int((alarms(share, [(share, 1000)], seed=1) > 0).sum())
    assert found <= LEVEL * STREAMS and found == false_alarms


@pytest.mark.parametrize(("share", "told"), [(0.02, 679), (0.05, 958), (0.1, 1000)])
def test_a_doubled_risk_is_told_within_500_labels(share: float, told: int) -> None:
    found = int((alarms(share, [(2 * share, 500)], seed=2) > 0).sum())
    assert found == told and (found >= 0.95 * STREAMS or share < 0.05)  # a rarer error needs more labels


@pytest.mark.parametrize(("share", "told"), [(0.05, 898), (0.1, 999)])
def test_a_risk_that_doubles_later_is_told(share: float, told: int) -> None:
    """After 300 labels at eight tenths of the target, within 500 more."""
    assert int((alarms(share, [(0.8 * share, 300), (2 * share, 500)], seed=3) > 0).sum()) == told
