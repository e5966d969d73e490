"""The state of a training: what a checkpoint holds of it, and where it is in its epochs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from artifacts.checkpoint import Checkpoint
from artifacts.errors import CheckpointError
from artifacts.metadata import ModelMetadata
from common.formatting import first_line
from configs.schema import Config
from trainers.errors import NotFiniteError
from trainers.evaluation.validation import Validation
from trainers.optim.lr_schedule import Schedule
from trainers.train_step import Learner

MAX_CURVE_POINTS = 4000


@dataclass
class Progress:
    """How far a run is: plain values, saved with every checkpoint.

    `best` is the point of the best validation, as `curves["val"]` holds one for each, and `best_result` all of it.
    """

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
    mlflow_run: str = ""
    start_sha256: str = ""  # of the weights that a "finetune" or "update" started from; "" in older checkpoints
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"train": [], "val": []})

    @classmethod
    def from_dict(cls, values: Any) -> Progress:
        """Return the progress that a checkpoint holds. Raises CheckpointError where it is not what was written."""
        try:
            progress = cls(**values)
            numbers = (progress.step, progress.epoch, progress.consumed, progress.num_train)
            are_counts = all(isinstance(number, int) and number >= 0 for number in numbers)
            if not are_counts or (progress.best and not {"loss", "epoch"} <= set(progress.best)):
                raise TypeError("its values are not those of a training")
        except TypeError as error:
            raise CheckpointError(f"the checkpoint's progress cannot be read: {error}") from error
        return progress

    def validation_point(self, validation: Validation) -> dict[str, Any]:
        """Return the point of a validation at the present place, for the curves."""
        return {"epoch": self.epoch, "step": self.step, "loss": validation.loss, **validation.scalars()}

    def further_numbers(self) -> dict[str, float]:
        """Return the numbers of the best validation that a program around the training has added, by name."""
        rows = [row for row in self.curves["val"] if row["step"] == self.best.get("step")]
        return {name: value for row in rows for name, value in row.items() if name not in {"train_loss", *self.best}}

    def add_train_point(self, step: int, loss: float, learning_rate: float) -> None:
        """Add a point to the training's curve, which is thinned out where it grows long."""
        curve = self.curves["train"]
        curve.append({"step": step, "epoch": self.epoch, "loss": loss, "learning_rate": learning_rate})
        if len(curve) > MAX_CURVE_POINTS:
            del curve[:-1:2]

    def images_per_second(self) -> float:
        """Return the speed of the training so far, without validations and saves."""
        return self.pictures_trained / max(self.train_seconds, 1e-9)


@dataclass
class TrainState:
    """All that changes during a training: what learns, how far it is, and what is known of the net so far."""

    config: Config
    learner: Learner
    schedule: Schedule
    progress: Progress
    metadata: ModelMetadata
    num_train: int  # images of an epoch

    def rate(self) -> float:
        """Return the learning rate at the present place."""
        return self.schedule.at(self.progress.epoch + self.progress.consumed / self.num_train)

    def not_finite(self, what: str) -> NotFiniteError:
        """Return the error for what became NaN or infinite in the last step."""
        return NotFiniteError(what, step=max(self.progress.step - 1, 0), rate=self.rate())

    def checkpoint(self, *, with_training_state: bool) -> Checkpoint:
        """Return the checkpoint of the present net, with what `load` needs or without."""
        return Checkpoint(
            config=self.config.model_dump(),
            metadata=self.metadata,
            progress=asdict(self.progress),
            **self.learner.state(with_training_state=with_training_state),
        )

    def load(self, checkpoint: Checkpoint) -> bool:
        """Go on from a checkpoint, of which the constructor got the progress; return whether the epoch goes on, too.

        It begins again where the training list has another length, or `streamed_shards` gives it another order. Raises
        CheckpointError.
        """
        progress = self.progress
        try:
            self.learner.load(checkpoint)
            if progress.best:
                progress.best[self.learner.task.measure.key]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            path = self.config.last_checkpoint()
            raise CheckpointError(f"{path}: does not fit this training: {first_line(error)}") from error
        has_order = checkpoint.config.get("streamed_shards", 0) == self.config.streamed_shards
        goes_on = not progress.consumed or (has_order and progress.num_train == self.num_train)
        if not goes_on:
            progress.consumed, progress.loss_sum = 0, 0.0
        progress.num_train = self.num_train
        return goes_on
