"""A training's two files: the best checkpoint, to be deployed, and the last, for `--resume`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from artifacts.archive import clear_leftovers, is_complete, remove_backups
from artifacts.checkpoint import save_checkpoint
from artifacts.errors import CheckpointError
from common.signals import deferred_child_signals
from trainers.evaluation.validation import Validation
from trainers.runtime.distributed import World
from trainers.train_state import TrainState


class CheckpointSaver:
    """Writes the best and the last checkpoint, on rank 0 alone; of the last, `keep_checkpoints` - 1 older ones stay."""

    def __init__(self, state: TrainState, *, is_main: bool) -> None:
        self.state, self.is_main = state, is_main
        self.best, self.last = state.config.best_checkpoint(), state.config.last_checkpoint()
        self.resumes = False  # then the files beside `last` are this training's past
        self.last_is_removed = False  # by the program around a training that has finished
        self.last_saved: Callable[[], None] = lambda: None  # called on rank 0 whenever the last checkpoint is complete
        self._backups = state.config.keep_checkpoints - 1
        self._has_saved = False

    @property
    def has_last(self) -> bool:
        """Return whether this training has left a checkpoint to resume from."""
        return self._has_saved or self.resumes

    def save_best(self) -> None:
        """Write the best checkpoint. Raises CheckpointError."""
        if self.is_main:
            with deferred_child_signals():
                save_checkpoint(self.state.checkpoint(with_training_state=False), self.best)

    def save_last(self) -> None:
        """Write the last checkpoint; what stood there is kept if it is complete and this training's.

        Raises NotFiniteError where the weights are not finite, CheckpointError.
        """
        if not self.state.learner.is_finite():
            raise self.state.not_finite("the weights became NaN or infinite")
        if not self.is_main:
            return
        keeps = self._has_saved
        if not self._has_saved:
            remove_backups(self.last, keep=self._backups if self.resumes else 0)  # not another training's
            for path in (self.last, self.best):
                clear_leftovers(path)
            keeps = self.resumes and is_complete(self.last)
        with deferred_child_signals():
            checkpoint = self.state.checkpoint(with_training_state=True)
            save_checkpoint(checkpoint, self.last, backups=self._backups if keeps else 0)
        self._has_saved = True
        self.last_saved()


class BestNet:
    """Decides by the task's measure which net is the best so far, and keeps it."""

    def __init__(self, saver: CheckpointSaver) -> None:
        self.saver, self.progress = saver, saver.state.progress
        self.measure = saver.state.learner.task.measure

    def keep(self, validation: Validation) -> dict[str, Any]:
        """Save the present net where it is the best so far; return the validation's point for the curves.

        Raises CheckpointError.
        """
        progress = self.progress
        point = progress.validation_point(validation)
        if not progress.best or self.measure.beats(point, progress.best):
            before = progress.best, progress.best_result
            progress.best, progress.best_result = point, validation.to_dict()
            try:
                self.saver.save_best()
            except CheckpointError:
                progress.best, progress.best_result = before  # the file does not hold this net
                raise
        return point

    def count_gain(self, validation: Validation, epochs: int) -> None:
        """Count the epochs without a better measure, for early stopping; call it before `keep`."""
        progress, key = self.progress, self.measure.key
        is_better = not progress.best or self.measure.is_better(validation.scalars()[key], progress.best[key])
        progress.epochs_without_gain = 0 if is_better else progress.epochs_without_gain + epochs

    def replace_lost(self, world: World, validate: Callable[[], Validation], log: Callable[[str], None]) -> None:
        """Save the present net where the best one's file was lost: a training must not end with a damaged one.

        All processes must call it. Raises CheckpointError, NotFiniteError.
        """
        progress, path = self.progress, self.saver.best
        is_lost = world.is_main and bool(progress.best) and not is_complete(path)
        if not any(world.gather([is_lost])):
            return
        what = "is damaged" if path.exists() else "is not there"
        if progress.best["step"] == progress.step:
            log(f"warning: {path} {what}: it is written again from the last checkpoint")
            self.saver.save_best()
        else:
            log(f"warning: {path} {what}: epoch {progress.best['epoch']}'s net is lost, the last takes its place")
            progress.best, progress.best_result = {}, {}
            self.keep(validate())
            self.saver.save_last()
