"""Where a training stands: what is saved with every checkpoint beside tensors and settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from artifacts.errors import CheckpointError

MAX_CURVE_POINTS = 4000


@dataclass
class Progress:
    """Where a run stands: plain values, saved with every checkpoint."""

    step: int = 0
    epoch: int = 0
    consumed: int = 0  # images of this epoch, over all processes
    num_train: int = 0  # images listed, to notice another list on resuming
    loss_sum: float = 0.0  # over the images of this epoch that were consumed
    best: dict[str, Any] = field(default_factory=dict)
    best_result: dict[str, Any] = field(default_factory=dict)
    epochs_without_gain: int = 0
    train_seconds: float = 0.0
    validation_seconds: float = 0.0
    pictures_trained: int = 0
    log_dir: str = ""
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"train": [], "val": []})

    @classmethod
    def from_dict(cls, values: Any) -> Progress:
        """Read what a checkpoint holds. Raises CheckpointError where it is not what was written."""
        try:
            progress = cls(**values)
            numbers = (progress.step, progress.epoch, progress.consumed, progress.num_train)
            whole = all(isinstance(number, int) and number >= 0 for number in numbers)
            if not whole or (progress.best and not {"top1", "loss", "epoch"} <= set(progress.best)):
                raise TypeError("its values are not those of a training")
        except TypeError as error:
            raise CheckpointError(f"the checkpoint's progress cannot be read: {error}") from error
        return progress

    def add_train_point(self, step: int, loss: float, learning_rate: float) -> None:
        """Add a point to the training's curve, which is thinned out where it grows long."""
        curve = self.curves["train"]
        curve.append({"step": step, "epoch": self.epoch, "loss": loss, "learning_rate": learning_rate})
        if len(curve) > MAX_CURVE_POINTS:
            del curve[:-1:2]

    def images_per_second(self) -> float:
        """Give the speed of the training so far, without validations and saves."""
        return self.pictures_trained / max(self.train_seconds, 1e-9)
