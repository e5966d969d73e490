"""What a round of the loop does next: a pure function of what its folder holds.

Whoever runs the loop, a command or a server, does the step and asks again. So a round that was killed anywhere goes on
where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Step(StrEnum):
    """The steps of a round, in their order; each leaves a result of its name."""

    TAKE_IN = "incoming"
    PREDICT = "predictions"
    PICK = "picks"
    LABEL = "labels"
    TRAIN = "training"
    CALIBRATE = "calibration"
    COMPARE = "gate"
    REPLACE = "release"
    CLOSE = "round"


@dataclass(frozen=True)
class RoundState:
    """What is known of a round. Round 0 makes the first net of the images that have labels at the beginning.

    `done` has the results of the steps by their names. `is_labelled`: a person's labels are there. `uses_pseudo_labels`
    is whether the training shall take them, too.
    """

    number: int
    done: Mapping[Step, Mapping[str, Any]]
    is_labelled: bool = False
    uses_pseudo_labels: bool = False


@dataclass(frozen=True)
class NextStep:
    """The step to do and the reason; `waits`: a person has to do it first. `step` is None once the round is over."""

    step: Step | None
    because: str
    waits: bool = False


def next_step(state: RoundState) -> NextStep:
    """Return what a round does next."""
    if Step.CLOSE in state.done:
        return NextStep(None, f"round {state.number} is over")
    if Step.TAKE_IN not in state.done:
        return NextStep(Step.TAKE_IN, "a new round begins" if state.number else "a command named config and lists")
    if state.number and (before := _before_training(state)):
        return before
    return _training(state)


def _before_training(state: RoundState) -> NextStep | None:
    """Return the next step up to the labels, None where they are there and there is something to train on."""
    done = state.done
    if Step.PREDICT not in done:
        return NextStep(Step.PREDICT, "images without labels are there")
    if Step.PICK not in done:
        return NextStep(Step.PICK, "the served net has predicted for all images without labels")
    if Step.LABEL not in done:
        if not state.is_labelled:
            return NextStep(Step.LABEL, "the picked images have no labels yet", waits=True)
        return NextStep(Step.LABEL, "a person has labelled the picked images")
    labels = done[Step.LABEL]
    if not labels["labelled"] and not (state.uses_pseudo_labels and labels["pseudo_labels"]):
        return NextStep(Step.CLOSE, "there is no new label to train on")
    return None


def _training(state: RoundState) -> NextStep:
    done = state.done
    if Step.TRAIN not in done:
        return NextStep(Step.TRAIN, "new labels are there" if state.number else "there is no net yet")
    if Step.CALIBRATE not in done:
        return NextStep(Step.CALIBRATE, "the new net is not calibrated")
    if state.number and Step.COMPARE not in done:
        return NextStep(Step.COMPARE, "a new net is there")
    if Step.REPLACE not in done and (not state.number or done[Step.COMPARE]["replace"]):
        return NextStep(Step.REPLACE, "the new net passed the gate" if state.number else "it is the first net")
    return NextStep(Step.CLOSE, "all steps are done")
