"""A training's two files: the best checkpoint, to be deployed, and the last, for `--resume`."""

from __future__ import annotations

from pathlib import Path

from artifacts.archive import clear_leftovers, is_complete, remove_backups
from artifacts.checkpoint import Checkpoint, save_checkpoint
from common.signals import deferred_child_signals


class Saver:
    """Writes the best and the last checkpoint; of the last, the `keep - 1` before it stay beside it."""

    def __init__(self, best: Path, last: Path, keep: int) -> None:
        self.best, self.last = best, last
        self.goes_on = False  # a resumed training, whose past the files beside `last` are
        self._backups = keep - 1
        self._has_saved = False

    @property
    def has_last(self) -> bool:
        """Say whether there is something of this training's to go on from."""
        return self._has_saved or self.goes_on

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write the best checkpoint. Raises CheckpointError."""
        with deferred_child_signals():
            save_checkpoint(checkpoint, self.best)

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write the last checkpoint; what stood there is kept if it is complete and this training's.

        Raises CheckpointError.
        """
        keeps = self._has_saved
        if not self._has_saved:
            remove_backups(self.last, keep=self._backups if self.goes_on else 0)  # not another training's
            for path in (self.last, self.best):
                clear_leftovers(path)
            keeps = self.goes_on and is_complete(self.last)
        with deferred_child_signals():
            save_checkpoint(checkpoint, self.last, backups=self._backups if keeps else 0)
        self._has_saved = True
