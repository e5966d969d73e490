"""Trainings that cannot go on, and what is said of them: where it was, what is safe, what helps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

MAX_NAMED = 64  # images of a step


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says where and what is safe."""

    one_process = False  # of several, every one meets it and the first one says so


class MemoryTooSmallError(TrainingError):
    """A batch that the memory is too small for; the message proposes one that fits."""

    one_process = True


class StoppedBySignalError(RuntimeError):
    """A signal arrived in the middle of a validation, which can be given up and done again."""


def no_number(what: str, *, epoch: int, step: int, rate: float, precision: str, last: Path) -> str:
    """Say where something stopped being a number; `last` is the checkpoint to go on from, where it is there."""
    safe = f"the last good checkpoint is {last}" if last.is_file() else "there is no checkpoint yet"
    return (
        f"{what} in epoch {epoch}, step {step} (learning rate {rate:g}, {precision}); {safe}. "
        "A lower learning_rate, warmup_epochs, clip_grad_norm or precision fp32 helps"
    )


def list_step_images(paths: Sequence[str]) -> str:
    """Name the images of a step, to follow a sentence."""
    lines = [f"  {path}" for path in paths[:MAX_NAMED]]
    more = [f"  ... and {len(paths) - MAX_NAMED} more"] if len(paths) > MAX_NAMED else []
    return "\n".join([". The images of that step:", *lines, *more])
