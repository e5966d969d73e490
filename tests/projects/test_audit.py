"""The audit of pseudo-labels, beside scipy's binomial distribution."""

from __future__ import annotations

import pytest
import scipy.stats

from projects.audit import breaks_promise, draw_audit, mixed, probability_of_wrong


@pytest.mark.parametrize(("wrong", "count", "share"), [(0, 0, 0.05), (1, 1, 0.1), (2, 5, 0.05), (30, 1000, 0.02)])
def test_the_probability_is_the_exact_one(wrong: int, count: int, share: float) -> None:
    expected = scipy.stats.binom.sf(wrong - 1, count, share)
    assert probability_of_wrong(wrong, count, share) == pytest.approx(expected, rel=1e-9)


def test_a_promise_that_is_kept_is_refuted_in_at_most_one_of_twenty() -> None:
    for count in (1, 2, 7, 40, 300):
        for share in (0.01, 0.05, 0.2):
            chances = [scipy.stats.binom.pmf(wrong, count, share) for wrong in range(count + 1)]
            refuted = [chance for wrong, chance in enumerate(chances) if breaks_promise(wrong, count, share)]
            assert sum(refuted) <= 0.05 + 1e-9


def test_two_of_a_hundred_are_drawn() -> None:
    names = [f"{number}.jpg" for number in range(101)]
    drawn = draw_audit(names, 0, 1)
    assert len(drawn) == 3 and set(drawn) < set(names)  # rounded up
    assert drawn == draw_audit(names[::-1], 0, 1) != draw_audit(names, 0, 2)
    assert draw_audit([], 0, 1) == [] and draw_audit(["a"], 0, 1) == ["a"]


def test_the_audit_lies_between_the_others() -> None:
    picked, audit = [f"p{number}" for number in range(40)], ["a", "b", "c"]
    order = mixed(picked, audit, 0, 1)
    assert [name for name in order if name in picked] == picked
    assert sorted(order) == sorted([*picked, *audit]) and order[-3:] != audit and order[:3] != audit
    assert mixed([], audit, 0, 1) == mixed([], audit, 0, 1)
