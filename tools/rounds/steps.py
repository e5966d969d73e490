"""What does each step of a round."""

from __future__ import annotations

from collections.abc import Callable

from common.formatting import counted
from projects.round_folder import HELD_OUT, LABELLED, VALIDATION, Result
from projects.rounds import Step
from tools.rounds.labels import read_labels
from tools.rounds.loop import CALIBRATION, Loop
from tools.rounds.predicting import pick, predict, take_in
from tools.rounds.training import calibrate, compare, replace, train


def do_step(loop: Loop, number: int, step: Step, because: str) -> Result | None:
    """Do a step and return its result; None where a new round would have nothing to do.

    Raises UserError, OSError, Stopped; then the step is to be done again.
    """
    if step is Step.TAKE_IN and not number:
        return _note_beginning(loop, because)
    return STEPS[step](loop, number, because)


def close(loop: Loop, number: int, because: str) -> Result:
    """Note that a round is over, and whether its net is served. Raises ProjectError, ResultsError."""
    done = loop.folder.results(number)
    is_served = Step.REPLACE in done
    did = "the new net is served" if is_served else "the served net stays"
    if Step.COMPARE in done and not is_served:
        because = done[Step.COMPARE]["because"]
    labels = len(loop.read_labels(LABELLED))
    did += f"; {counted(labels, 'image')} have labels"
    return loop.folder.finish(number, Step.CLOSE, "the round is over", did, because, is_served=is_served, labels=labels)


def _note_beginning(loop: Loop, because: str) -> Result:
    counts = loop.settings["counts"]
    did = f"took in {counted(counts[LABELLED])} with labels, {counts[VALIDATION]:,} to validate, "
    did += f"{counts[CALIBRATION]:,} to calibrate and {counts[HELD_OUT]:,} held out"
    return loop.folder.finish(0, Step.TAKE_IN, "the loop begins", did, because, findings=loop.settings["notes"])


STEPS: dict[Step, Callable[[Loop, int, str], Result | None]] = {
    Step.TAKE_IN: take_in,
    Step.PREDICT: predict,
    Step.PICK: pick,
    Step.LABEL: read_labels,
    Step.TRAIN: train,
    Step.CALIBRATE: calibrate,
    Step.COMPARE: compare,
    Step.REPLACE: replace,
    Step.CLOSE: close,
}
