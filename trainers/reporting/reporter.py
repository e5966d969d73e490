"""The output of a training while it runs: lines of text, TensorBoard, MLflow, and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from artifacts.metadata import ModelMetadata
from trainers.errors import TrainingError
from trainers.evaluation.validation import Validation
from trainers.reporting.mlflow_tracker import MlflowTracker
from trainers.reporting.tensorboard_logger import TrainingLogger
from trainers.tasks.base import Batch, Task

MAX_SHOWN = 16  # images of a batch


def log_nothing(text: str) -> None:
    """Log no line: another process does, or nobody wants them."""


@dataclass
class Reporter:
    """Passes on what a training has to report; by default nothing."""

    log: Callable[[str], None] = log_nothing
    logger: TrainingLogger = field(default_factory=lambda: TrainingLogger("", enabled=False))
    show_progress: bool = False
    tracker: MlflowTracker = field(default_factory=MlflowTracker)
    _warned_in: int = field(default=-1, init=False)  # epoch

    def warn(self, task: Task, terms: dict[str, float], epoch: int, step: int) -> None:
        """Log what the task finds wrong, once an epoch. Raises TrainingError where the task stops for it."""
        sentence = task.warning(terms)
        if not sentence or self._warned_in == epoch:
            return
        self._warned_in = epoch
        if task.stops_on_warning:
            raise TrainingError(f"{sentence} (epoch {epoch + 1}, step {step})")
        self.log(f"warning: {sentence}")

    def showing_first(
        self, batches: Iterator[Batch], task: Task, metadata: ModelMetadata, step: int, seed: int
    ) -> Iterator[Batch]:
        """Yield batches; show the images of the first as the net sees them, mixed ones too."""
        for number, batch in enumerate(batches):
            if number == 0 and self.logger.enabled:
                pixels, captions = task.shown_pixels(batch, np.random.default_rng(seed), metadata)
                self.logger.image_grid("train/pictures", pixels[:MAX_SHOWN], captions[:MAX_SHOWN], step)
            yield batch

    def validation(self, task: Task, validation: Validation, metadata: ModelMetadata, step: int) -> None:
        """Show a validation of the task's net on TensorBoard."""
        numbers = {**validation.scalars(), "loss": validation.loss, **validation.parts()}
        self.logger.scalars({f"val/{name}": value for name, value in numbers.items()}, step)
        task.log_validation(self.logger, validation, metadata, step)


def epoch_summary(task: Task, validation: Validation, best: float) -> str:
    """Return the part of an epoch's line that a validation has, beside the best value of its measure."""
    measure = task.measure
    line = f"  {task.loss_names[1]} {validation.loss:.4f}  {measure.name} {measure.text_of(validation)}"
    more = task.summary(validation)
    return f"{line}  best {measure.text(best)}" + (f"  {more}" if more else "")
