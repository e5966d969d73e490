"""The validation of the net that is deployed: the averaged one where there is one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from data_loader.loaders import ImageDataset
from trainers.data.batches import Batches
from trainers.evaluation.pseudo_labels import PseudoLabel, find_pseudo_labels
from trainers.evaluation.validation import Validation
from trainers.reporting.progress_bar import Bars
from trainers.reporting.reporter import Reporter
from trainers.runtime.device import forward_errors_reported
from trainers.runtime.stop import SharedStopRequest
from trainers.tasks.base import Batch
from trainers.tasks.semi_supervised import SemiSupervisedTask
from trainers.train_state import TrainState


class Validator:
    """Measures the present net, on all processes together. `task` is the one around the net validated last."""

    def __init__(
        self, state: TrainState, batches: Batches, stop: SharedStopRequest, reporter: Reporter, bars: Bars
    ) -> None:
        self.state, self.batches, self.stop = state, batches, stop
        self.reporter, self.bars = reporter, bars
        self.task = state.learner.task

    def validate(self) -> Validation:
        """Measure the net in fp32, as it will predict, and enter what that settles into the metadata.

        Raises NotFiniteError for the loss, StoppedBySignalError, TrainingError.
        """
        start, state = time.perf_counter(), self.state
        task, net = state.learner.task, state.learner.deployed_net()
        self.stop.world.agree_on_buffers(net)
        self.task = task if net is task.net else task.with_net(net)
        self.task.check_stop = self.stop.check
        with forward_errors_reported():
            result = self.task.validate(self._stoppable_batches, self.batches.val_data.samples)
        state.metadata = task.declare(state.metadata, result)
        state.progress.validation_seconds += time.perf_counter() - start
        self.reporter.validation(self.task, result, state.metadata, state.progress.step)
        if not math.isfinite(result.loss):
            raise state.not_finite(f"the validation loss became {result.loss}")
        return result

    def pseudo_labels(self) -> list[PseudoLabel]:
        """Return what the images without labels are taken for at the end of a training, on all processes."""
        task, unlabelled = self.state.learner.task, self.batches.unlabelled
        assert isinstance(task, SemiSupervisedTask) and unlabelled is not None
        guesser, least = task.guesser(self.state.learner.deployed_net())
        self.stop.world.agree_on_buffers(guesser)
        images = ImageDataset(unlabelled.data.samples, unlabelled.data.preprocess, at_least=unlabelled.data.at_least)
        shared = self.batches.shared_batches(len(images))

        def batches() -> Iterator[Batch]:
            for number, batch in enumerate(self.batches.of(images)):
                if number < shared:
                    self.stop.check()
                yield batch

        return find_pseudo_labels(guesser, batches(), least, self.stop.world)

    def _stoppable_batches(self) -> Iterator[Batch]:
        """Yield the batches. Raises StoppedBySignalError, on several processes at the same batch."""
        total, shared = len(self.batches.val_loader), self.batches.shared_batches(len(self.batches.val_data))
        for number, batch in enumerate(self.bars.validation(self.batches.validation(), total)):
            if number < shared:
                self.stop.check()
            yield batch
