"""The one training loop: epochs of steps, validation, saving, resuming, signals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from tqdm import tqdm

from artifacts.checkpoint import Checkpoint
from artifacts.metadata import ModelMetadata
from common.formatting import first_line
from configs.schema import Config
from data_loader.epoch_plan import Step, step_seed
from data_loader.loaders import lost_loaders_reported
from trainers.checkpoint_saver import BestNet, CheckpointSaver
from trainers.data.batches import Batches
from trainers.errors import MemoryTooSmallError, NotFiniteError, StoppedBySignalError, TrainingError
from trainers.evaluation.pseudo_labels import PseudoLabel
from trainers.evaluation.validation import Validation
from trainers.optim.lr_schedule import schedule_of
from trainers.reporting.loss_log import LossLog
from trainers.reporting.progress_bar import Bars, show_speed
from trainers.reporting.reporter import Reporter, epoch_summary
from trainers.runtime.determinism import find_differing_gradients
from trainers.runtime.device import Runtime
from trainers.runtime.distributed import lost_peers_reported
from trainers.runtime.out_of_memory import is_out_of_memory, propose_batch_size
from trainers.runtime.stop import SharedStopRequest
from trainers.tasks.base import Batch, Task
from trainers.train_state import Progress, TrainState
from trainers.train_step import Learner
from trainers.validator import Validator


class Trainer:
    """Trains a task on its batches, and leaves its best and its last checkpoint.

    Everything random in a step follows from (seed, step, rank), and the rate from the step, so a resumed run needs
    only the tensors and the `Progress`.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        batches: Batches,
        metadata: ModelMetadata,
        runtime: Runtime,
        reporter: Reporter,
        progress: Progress,
    ) -> None:
        self.config, self.task, self.batches = config, task, batches
        self.runtime, self.reporter, self.progress = runtime, reporter, progress
        schedule = schedule_of(config, runtime.world.size)
        self.learner = Learner(config, task, runtime, schedule.rate)
        self.state = TrainState(config, self.learner, schedule, progress, metadata, batches.num_train)
        self.losses = LossLog(runtime.world, reporter.logger, progress)
        self.saver = CheckpointSaver(self.state, is_main=runtime.world.is_main)
        self.best = BestNet(self.saver)
        self.stop = SharedStopRequest(runtime.world)
        self.bars = Bars(config.num_epochs, are_shown=reporter.show_progress and runtime.world.is_main)
        self.validator = Validator(self.state, batches, self.stop, reporter, self.bars)
        self.epoch_ended: Callable[[Validation], None] = lambda result: None  # called once all of an epoch is saved
        self.further_numbers: Callable[[Validation], Mapping[str, float]] = lambda result: {}  # for the report
        self.differing_gradients: list[str] | None = None  # None: the config does not ask for `check_determinism`
        self.pseudo_labels: list[PseudoLabel] = []  # of the images without labels, at the end of the training
        progress.num_train = progress.num_train or batches.num_train

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, of which the constructor got the progress. Raises CheckpointError."""
        if not self.state.load(checkpoint):
            self.reporter.log("the training list has another length, or another order: the epoch begins again")
        self.saver.resumes = True

    def fit(self) -> str:
        """Train to the end; return the status: "finished", "stopped early" or "interrupted by" a signal's name.

        Raises ProgramError (the loss is NaN, the memory too small, a process lost), BadImageError, CheckpointError.
        """
        with self.stop, contextlib.closing(self.batches), lost_peers_reported(), lost_loaders_reported():
            try:
                return self._train_until_stopped()
            except NotFiniteError as error:
                raise TrainingError(self._explain(error)) from error
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # Outside the except block, whose traceback would keep the step's activations in memory.
            self.losses.pending.clear()
            task, last = self.validator.task, self.batches.last
            raise MemoryTooSmallError(propose_batch_size(self.config, self.learner, task, last, reason))

    def _train_until_stopped(self) -> str:
        try:
            status = self._train()
            if self.config.check_determinism:
                self.differing_gradients = self._find_differing_gradients()
            if self.batches.unlabelled is not None:
                self.pseudo_labels = self.validator.pseudo_labels()
            return status
        except StoppedBySignalError:
            self.saver.save_last()
            assert self.stop.received is not None
            return f"interrupted by {self.stop.received.name}"

    def _train(self) -> str:
        config, progress, log = self.config, self.progress, self.reporter.log
        measure, validate = self.task.measure, self.validator.validate
        if self.saver.resumes:
            self.best.replace_lost(self.runtime.world, validate, log)
        knows = config.train_mode == "update" or config.fit_head
        if (config.evaluate_before_train or knows) and progress.step == 0:
            result = validate()
            log(f"before training: val loss {result.loss:.4f}, {measure.name} {measure.text_of(result)}")
            if knows:  # what the net can already do is the mark to beat
                self.best.keep(result)
        if progress.epoch >= config.num_epochs and self.task.reports_last_validation:
            validate()  # resumed where nothing is left to train
        while progress.epoch < config.num_epochs:
            patience = config.early_stopping_epochs
            if patience and progress.epochs_without_gain >= patience:
                log(f"no better {measure.name} for {patience} epochs: stopped early")
                return "stopped early"
            self._train_epoch()
            is_due = (progress.epoch + 1) % config.validation_interval == 0 or progress.epoch + 1 == config.num_epochs
            self._end_epoch(validate() if is_due else None)
        return "finished"

    def _train_epoch(self) -> None:
        """Train what is left of the epoch. Raises StoppedBySignalError where a signal cuts it short."""
        config, progress = self.config, self.progress
        steps, num_steps = self.batches.plan(progress.consumed), len(self.batches.plan())
        self.losses.start()
        with self.bars.epoch(progress.epoch, num_steps, num_steps - len(steps)) as bar:
            seed, metadata = self._step_seed(), self.state.metadata
            batches = self.reporter.showing_first(self.start_epoch(steps), self.task, metadata, progress.step, seed)
            for step in steps:
                self.train_step(step, batches)
                bar.update()
                if progress.step % config.log_interval == 0 or step is steps[-1]:
                    self._flush_losses(bar)
                if config.save_interval_steps and progress.step % config.save_interval_steps == 0:
                    self._flush_losses(bar)
                    self.saver.save_last()
                if self.stop.is_set():
                    self._flush_losses(bar)
                    raise StoppedBySignalError

    def start_epoch(self, steps: list[Step]) -> Iterator[Batch]:
        """Make the net ready to learn; return the batches of these steps of the present epoch."""
        batches = self.batches.training(self.progress.epoch, steps)
        self.learner.get_ready()
        return batches

    def train_step(self, step: Step, batches: Iterator[Batch]) -> None:
        """Do the next step of the present epoch over its batches, and enter it."""
        progress, rate = self.progress, self.state.rate()
        losses = self.learner.step(step, batches, number=progress.step, rate=rate, seed=self._step_seed())
        self.losses.add(progress.step, rate, losses, step.num_samples)
        progress.step += 1
        progress.consumed += step.num_samples

    def _flush_losses(self, bar: tqdm[None]) -> None:
        """Log the losses since the last call, and pass on what the task finds wrong with them."""
        interval = self.losses.flush()
        if interval is None:
            return
        progress, num_train = self.progress, self.batches.num_train
        self.reporter.warn(self.task, interval.terms, progress.epoch, progress.step)
        images_left = (self.config.num_epochs - progress.epoch) * num_train - progress.consumed
        show_speed(bar, loss=interval.loss, rate=interval.rate, speed=interval.speed, images_left=images_left)

    def _end_epoch(self, result: Validation | None) -> None:
        """Enter the epoch, save, and log a line; `result` is None where the epoch was not validated."""
        progress, task = self.progress, self.task
        train_loss = progress.loss_sum / self.batches.num_train
        progress.epoch += 1
        progress.consumed, progress.loss_sum = 0, 0.0
        line = f"epoch {progress.epoch}/{self.config.num_epochs}  {task.loss_names[0]} {train_loss:.4f}"
        if result is not None:
            self.best.count_gain(result, self.config.validation_interval)
            further = self._further_numbers(result)
            progress.curves["val"].append({**further, **self.best.keep(result), "train_loss": train_loss})
            line += epoch_summary(task, result, progress.best[task.measure.key])
        self.saver.save_last()
        self.reporter.logger.scalars({"train/epoch_loss": train_loss}, progress.step)
        self.reporter.logger.flush()
        point = progress.curves["val"][-1] if result is not None else {"train_loss": train_loss}
        self.reporter.tracker.epoch(point, progress.epoch)
        self.reporter.log(f"{line}  {progress.images_per_second():.0f} img/s")
        if result is not None:
            self.epoch_ended(result)

    def _further_numbers(self, result: Validation) -> Mapping[str, float]:
        numbers = {name: float(value) for name, value in self.further_numbers(result).items()}
        self.reporter.logger.scalars({f"val/{name}": value for name, value in numbers.items()}, self.progress.step)
        return numbers

    def _step_seed(self) -> int:
        return step_seed(self.config.seed, self.progress.step, self.runtime.world.rank)

    def _find_differing_gradients(self) -> list[str] | None:
        """Train the first batch of an epoch several times; return the parameters whose gradients differ."""
        batch, seed = next(self.start_epoch(self.batches.plan()[:1])), self._step_seed()
        found = find_differing_gradients(self.task, lambda: self.learner.loss(batch, seed), self.reporter.log)
        return found and [name.removeprefix("net.") for name in found]

    def _explain(self, error: NotFiniteError) -> str:
        paths = [self.batches.train_data.samples.samples[index].path for index in error.indices]
        epoch, precision = self.progress.epoch + 1, self.runtime.precision
        return error.explain(epoch=epoch, precision=precision, last=self.saver.last, paths=paths)
