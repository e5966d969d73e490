"""What a program around a training adds to it: an object whose methods the training calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from data_loader.samples import SampleList
from trainers.evaluation.validation import Validation
from trainers.trainer import Trainer


class TrainingHooks:
    """Adds nothing; a program overrides what it needs. Every process of a training calls all of them."""

    def lists_read(self, train: SampleList, val: SampleList) -> tuple[SampleList, SampleList]:
        """Return the lists to train and to validate with, in place of those that the config names."""
        return train, val

    def net_built(self, net: nn.Module, log: Callable[[str], None]) -> None:
        """See, and change, the net with its start weights, before any training. May raise UserError."""

    def training_ready(self, trainer: Trainer) -> None:
        """See the trainer before its first epoch."""

    def further_numbers(self, validation: Validation) -> Mapping[str, float]:
        """Return numbers of a validation by name, for the report and TensorBoard beside the task's own."""
        return {}

    def epoch_ended(self, trainer: Trainer, validation: Validation) -> None:
        """See an epoch that was validated, once its checkpoints are written. May raise UserError."""
