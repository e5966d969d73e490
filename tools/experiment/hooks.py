"""What an experiment adds to a training: the functions of its own files, and the files that it leaves."""

from __future__ import annotations

from collections.abc import Mapping

from common.atomic_io import writing
from common.errors import UserError
from data_loader.samples import SampleList
from tools.experiment.experiment import Experiment
from tools.experiment.places import Places
from trainers.evaluation.validation import Validation
from trainers.hooks import TrainingHooks
from trainers.trainer import Trainer


class ExperimentError(UserError):
    """A function of an experiment that returns what it must not; the message is one sentence for the user."""


class ExperimentHooks(TrainingHooks):
    """Calls the three functions of an experiment in every process, and keeps its files in rank 0's."""

    def __init__(self, experiment: Experiment, places: Places) -> None:
        self.experiment, self.places = experiment, places

    def lists_read(self, train: SampleList, val: SampleList) -> tuple[SampleList, SampleList]:
        """Return the lists of dataset.py. Raises ExperimentError for what are no lists of the config's classes."""
        lists = self.experiment.sample_lists(train, val)
        name = "dataset.py: sample_lists"
        if not (isinstance(lists, tuple) and len(lists) == 2 and all(isinstance(each, SampleList) for each in lists)):
            raise ExperimentError(f"{name} must return the two lists to train and to validate with, got {lists!r:.80}")
        for samples in lists:
            if samples.class_names != train.class_names:
                raise ExperimentError(f"{name} must keep the classes, {len(train.class_names)} in their order")
            if samples.line_numbers and len(samples.line_numbers) != len(samples.samples):
                raise ExperimentError(f"{name}: other samples have no line numbers; set line_numbers=() with samples=")
        return lists

    def further_numbers(self, validation: Validation) -> Mapping[str, float]:
        """Return the numbers of metrics.py. Raises ExperimentError for what are none, and for names that are taken."""
        numbers = self.experiment.further_numbers(validation)
        name = "metrics.py: further_numbers"
        if not isinstance(numbers, dict) or not all(isinstance(value, int | float) for value in numbers.values()):
            raise ExperimentError(f"{name} must return a dictionary of numbers by name, got {numbers!r:.80}")
        taken = {"epoch", "step", "loss", "train_loss", *validation.scalars(), *validation.parts()}
        if wrong := sorted(taken & numbers.keys()):
            raise ExperimentError(f'{name}: the name "{wrong[0]}" is taken already')
        return numbers

    def training_ready(self, trainer: Trainer) -> None:
        """Keep the last checkpoint by its names whenever it is written."""
        trainer.saver.last_is_removed = True

        def keep() -> None:
            with writing(self.places.latest):
                self.places.keep_last(trainer.config, trainer.progress.epoch)

        trainer.saver.last_saved = keep
        self._write_score(trainer)  # where a kill came between the best net and its score

    def epoch_ended(self, trainer: Trainer, validation: Validation) -> None:
        """Write the score of the best epoch, and call the function of hooks.py."""
        self._write_score(trainer)
        self.experiment.epoch_ended(trainer, validation)

    def _write_score(self, trainer: Trainer) -> None:
        if trainer.runtime.world.is_main and trainer.progress.best:
            with writing(self.places.metric):
                self.places.write_score(trainer.progress.best, trainer.progress.further_numbers())
