"""The validation of the net that is deployed: the averaged one where there is one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from trainers.data.batches import Batches
from trainers.evaluation.validation import Validation
from trainers.reporting.progress_bar import Bars
from trainers.reporting.reporter import Reporter
from trainers.runtime.device import forward_errors_reported
from trainers.runtime.stop import SharedStopRequest
from trainers.tasks.base import Batch
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

    def _stoppable_batches(self) -> Iterator[Batch]:
        """Yield the batches. Raises StoppedBySignalError, on several processes at the same batch."""
        total, shared = len(self.batches.val_loader), self.batches.shared_validation_batches()
        for number, batch in enumerate(self.bars.validation(self.batches.validation(), total)):
            if number < shared:
                self.stop.check()
            yield batch
