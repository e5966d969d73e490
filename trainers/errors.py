"""Trainings that cannot go on, and the messages about them: where it was, what is safe, what helps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import ProgramError

MAX_NAMED = 64  # images of a step


class TrainingError(ProgramError):
    """A training that cannot go on; the message names the place and the checkpoint that is safe."""

    one_process = False  # of several, every one meets it and rank 0 prints it


class MemoryTooSmallError(TrainingError):
    """A batch that the memory is too small for; the message proposes one that fits."""

    one_process = True


class CompileError(TrainingError):
    """A net that torch.compile cannot compile here."""

    one_process = True


class BatchTooSmallError(TrainingError):
    """A batch of one value a channel, which batch norm cannot normalise."""

    one_process = True


class PeerLostError(TrainingError):
    """Another process of the training that has ended."""

    one_process = True


class StoppedBySignalError(RuntimeError):
    """A signal arrived in the middle of an epoch or a validation, which can be given up and done again."""


class NotFiniteError(RuntimeError):
    """A loss or weights that are NaN or infinite; `indices` are the step's images, where they are known."""

    def __init__(self, what: str, *, step: int, rate: float, indices: Sequence[int] = ()) -> None:
        super().__init__(what)
        self.step, self.rate, self.indices = step, rate, list(indices)

    def explain(self, *, epoch: int, precision: str, last: Path, paths: Sequence[str]) -> str:
        """Return the message: where it was, which checkpoint is safe, what helps, and the step's images.

        `last` is the checkpoint to go on from, where it is there.
        """
        safe = f"the last good checkpoint is {last}" if last.is_file() else "there is no checkpoint yet"
        message = (
            f"{self} in epoch {epoch}, step {self.step} (learning rate {self.rate:g}, {precision}); {safe}. "
            "A lower learning_rate, warmup_epochs, clip_grad_norm or precision fp32 helps"
        )
        return message + (list_step_images(paths) if paths else "")


def list_step_images(paths: Sequence[str]) -> str:
    """Return the images of a step as lines that follow a sentence."""
    lines = [f"  {path}" for path in paths[:MAX_NAMED]]
    more = [f"  ... and {len(paths) - MAX_NAMED} more"] if len(paths) > MAX_NAMED else []
    return "\n".join([". The images of that step:", *lines, *more])
