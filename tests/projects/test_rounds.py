"""What a round does next, from what its folder holds."""

from __future__ import annotations

from typing import Any

from projects.rounds import NextStep, RoundState, Step, next_step

WITH_LABELS = {"labelled": 5, "pseudo_labels": 3}


def steps(number: int, results: dict[Step, dict[str, Any]], **state: Any) -> list[str]:
    """Do what is next until the round is over or waits; return the steps."""
    done: dict[Step, dict[str, Any]] = {}
    found: list[str] = []
    while (following := next_step(RoundState(number, dict(done), **state))).step is not None:
        if following.waits:
            return [*found, "waits"]
        found.append(following.step.value)
        done[following.step] = results.get(following.step, {})
        assert len(found) < 20
    return found


def test_the_first_net_needs_no_gate() -> None:
    assert steps(0, {}) == ["incoming", "training", "calibration", "release", "round"]


def test_a_round_waits_for_labels() -> None:
    assert steps(1, {}) == ["incoming", "predictions", "picks", "waits"]


def test_a_better_net_is_released() -> None:
    results = {Step.LABEL: WITH_LABELS, Step.COMPARE: {"replace": True}}
    whole = [step.value for step in Step]
    assert steps(1, results, is_labelled=True) == whole
    results[Step.COMPARE] = {"replace": False}
    assert steps(1, results, is_labelled=True) == [step for step in whole if step != "release"]


def test_without_new_labels_nothing_is_trained() -> None:
    results = {Step.LABEL: {"labelled": 0, "pseudo_labels": 3}, Step.COMPARE: {"replace": False}}
    assert steps(1, results, is_labelled=True) == ["incoming", "predictions", "picks", "labels", "round"]
    assert "training" in steps(1, results, is_labelled=True, uses_pseudo_labels=True)
    results[Step.LABEL]["pseudo_labels"] = 0
    assert "training" not in steps(1, results, is_labelled=True, uses_pseudo_labels=True)


def test_a_round_that_is_over_has_no_step() -> None:
    assert next_step(RoundState(3, {Step.CLOSE: {}})) == NextStep(None, "round 3 is over")
