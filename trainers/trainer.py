"""The one training loop: epochs of steps, schedule, validation, saving, resuming, signals."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from artifacts.archive import is_complete
from artifacts.checkpoint import Checkpoint
from artifacts.errors import CheckpointError
from artifacts.metadata import ModelMetadata
from common.formatting import first_line
from common.signals import StopRequest
from configs.schema import Config
from data_loader.augment import mirrored_half
from data_loader.loaders import (
    EpochBatches,
    ImageDataset,
    Step,
    checked,
    epoch_order,
    plan_epoch,
    step_seed,
    training_loader,
    validation_loader,
)
from data_loader.preprocess import as_array
from trainers.checkpoint_saver import Saver
from trainers.errors import MemoryTooSmallError, StoppedBySignalError, TrainingError, list_step_images, no_number
from trainers.evaluation.classification_metrics import ValidationResult
from trainers.evaluation.test_time_augmentation import right_answers
from trainers.optim.lr_schedule import schedule_of
from trainers.reporting.heatmaps import worst_heat_maps
from trainers.reporting.progress_bar import Bars, show_speed
from trainers.reporting.tensorboard_logger import TrainingLogger
from trainers.runtime.determinism import LOOKED_AT, differing_gradients
from trainers.runtime.device import DeviceCopy
from trainers.runtime.distributed import World
from trainers.runtime.out_of_memory import AtHand, is_out_of_memory, too_small
from trainers.tasks.classification import Batch, ClassifyTask, image_captions
from trainers.train_state import Progress
from trainers.train_step import Learner, StepLosses

MAX_HEAT_MAPS = 12  # a validation


class Trainer:
    """Trains a task on a dataset, and leaves its best and its last checkpoint.

    Everything random in a step follows from (seed, step, rank), and the rate from the step, so a resumed run needs
    only the tensors and the `Progress`.
    """

    def __init__(
        self,
        config: Config,
        task: ClassifyTask,
        train_data: ImageDataset,
        val_data: ImageDataset,
        metadata: ModelMetadata,
        *,
        device: torch.device,
        precision: str,
        world: World,
        logger: TrainingLogger,
        progress: Progress,
        log: Callable[[str], None],
        augment: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        show_progress: bool = True,
    ) -> None:
        self.config, self.metadata, self.world = config, metadata, world
        self.device, self.precision, self.logger, self.log = device, precision, logger, log
        self.train_data, self.val_data, self.progress = train_data, val_data, progress
        self.augment = augment
        self.bars = Bars(config.num_epochs, are_shown=show_progress and world.is_main)
        self.copy = DeviceCopy(device, is_asynchronous=config.async_loading)
        self.schedule = schedule_of(config, world.size)
        self.learner = Learner(config, task, device=device, precision=precision, world=world, rate=self.schedule.rate)
        self.task = self.learner.task
        self.validated = self.task  # the task around the net that was validated last: the averaged one, if there is one
        self.labels = np.array([sample.label for sample in train_data.samples.samples])
        self.mirrored_half = torch.from_numpy(mirrored_half(config.seed, len(self.labels))).to(device)
        self.steps_per_epoch = len(self._plan(start=0))
        progress.num_train = progress.num_train or len(self.labels)
        pin = device.type == "cuda" and config.async_loading
        workers = config.dataloader_workers
        self.batches = EpochBatches(world.rank, world.size)
        self.train_loader = training_loader(train_data, self.batches, workers, pin_memory=pin, device=device)
        self.val_batch_size = config.val_batch_size or 2 * config.batch_size
        self.val_loader = validation_loader(
            val_data,
            self.val_batch_size,
            workers,
            rank=world.rank,
            world_size=world.size,
            pin_memory=pin,
            device=device,
        )
        self.pending: list[tuple[int, float, StepLosses]] = []  # step, rate
        self.at_hand = AtHand()
        self.saver = Saver(config.best_checkpoint(), config.last_checkpoint(), config.keep_checkpoints)
        self.warned_in = -1  # epoch
        self.differing_gradients: list[str] | None = None  # see `repeating`; None: not looked at
        self.interval_start, self.interval_images = time.perf_counter(), 0
        self.stop = StopRequest("stopping: saving first" if world.is_main else "")

    def fit(self) -> str:
        """Train to the end and give the status: "finished", "stopped early" or "interrupted by" a signal's name.

        Raises TrainingError (the loss is no number, the memory too small) and BadPictureError.
        """
        with self.stop, contextlib.closing(self):
            try:
                status = self._fit()
                self.differing_gradients = self._differing_gradients()
                return status
            except StoppedBySignalError:
                self._save_last()
                assert self.stop.received is not None
                return f"interrupted by {self.stop.received.name}"
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # Outside the except block, whose traceback would keep the step's activations in memory.
            raise MemoryTooSmallError(self._memory_sentence(reason))

    def close(self) -> None:
        """End the loader processes: those that an error's traceback keeps alive would never let the program end."""
        for loader in (self.train_loader, self.val_loader):
            iterator = getattr(loader, "_iterator", None)  # torch has no public way to end persistent workers
            if iterator is not None:
                iterator._shutdown_workers()
                loader._iterator = None  # type: ignore[union-attr]

    def _fit(self) -> str:
        progress, config = self.progress, self.config
        if self.saver.goes_on:
            self._replace_lost_best()
        updates = config.train_mode == "update"
        if (config.evaluate_before_train or updates) and progress.step == 0:
            result = self._validate()
            self.log(f"before training: val loss {result.loss:.4f}, {self.task.measure} {result.top1:.2%}")
            if updates:  # what the net can already do is the mark to beat
                self._keep_if_best(result)
        if progress.epoch >= config.num_epochs and self.task.output == "features":
            self._validate()  # resumed where nothing is left to train: the report wants the features
        while progress.epoch < config.num_epochs:
            patience = config.early_stopping_epochs
            if patience and progress.epochs_without_gain >= patience:
                self.log(f"no better {self.task.measure} for {patience} epochs: stopped early")
                return "stopped early"
            self._train_epoch()
            is_due = (progress.epoch + 1) % config.validation_interval == 0 or progress.epoch + 1 == config.num_epochs
            self._end_epoch(self._validate() if is_due else None)
        return "finished"

    def _differing_gradients(self) -> list[str] | None:
        """Train the first batch of an epoch several times; name the gradients that differ. None on a CPU."""
        if self.device.type not in LOOKED_AT:
            return None
        seed = step_seed(self.config.seed, self.progress.step, self.world.rank)
        try:
            batch = self._to_device(checked(next(self._start_epoch(self._plan(start=0)[:1]))), self.augment)
            return differing_gradients(self.task.net, lambda: self.learner.loss(batch, seed))
        except (RuntimeError, ValueError) as error:  # what is trained is trained
            self.log(f"note: whether this GPU repeats itself was not looked at: {first_line(error)}")
            return None

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint stands. `progress` was given to the constructor. Raises CheckpointError."""
        try:
            self._load(checkpoint)
            self.saver.goes_on = True
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = first_line(error)
            raise CheckpointError(f"{self.config.last_checkpoint()}: does not fit this training: {reason}") from error

    def _load(self, checkpoint: Checkpoint) -> None:
        self.learner.load(checkpoint)
        if self.progress.consumed and self.progress.num_train != len(self.labels):
            self.log("the training list has another length: the epoch begins again")
            self.progress.consumed, self.progress.loss_sum = 0, 0.0
        self.progress.num_train = len(self.labels)

    def _plan(self, start: int) -> list[Step]:
        config = self.config
        return plan_epoch(len(self.labels), config.batch_size, self.world.size, config.accumulation_steps, start)

    def _train_epoch(self) -> None:
        """Train what is left of the epoch. Raises StoppedBySignalError where a signal cuts it short."""
        config, progress = self.config, self.progress
        steps = self._plan(progress.consumed)
        self.interval_start, self.interval_images = time.perf_counter(), 0
        done = self.steps_per_epoch - len(steps)
        with self.bars.epoch(progress.epoch, self.steps_per_epoch, done) as bar:
            batches = self._start_epoch(steps)
            for number, step in enumerate(steps):
                self._optimizer_step(step, batches, show_images=number == 0)
                progress.step += 1
                progress.consumed += step.num_samples
                self.interval_images += step.num_samples
                bar.update()
                at_interval = progress.step % config.log_interval == 0
                if at_interval or number == len(steps) - 1:
                    self._look(bar)
                if config.save_interval_steps and progress.step % config.save_interval_steps == 0:
                    self._look(bar)
                    self._save_last()
                if self._asked_to_stop():
                    self._look(bar)
                    raise StoppedBySignalError

    def _start_epoch(self, steps: list[Step]) -> Iterator[dict[str, Any]]:
        """Make the net ready to learn, and give the batches of the present epoch's steps."""
        config, epoch = self.config, self.progress.epoch
        order = epoch_order(self.labels, epoch, config.seed, shuffle=config.shuffle, balanced=config.balanced_sampling)
        self.batches.set_epoch(epoch, order, steps)
        self.learner.get_ready()
        return iter(self.train_loader)

    def _optimizer_step(self, step: Step, batches: Iterator[dict[str, Any]], *, show_images: bool) -> None:
        number, rate = self.progress.step, self._rate()
        seed = step_seed(self.config.seed, number, self.world.rank)
        moved = self._moved(batches, seed if show_images else None)
        self.pending.append((number, rate, self.learner.step(step, moved, number=number, rate=rate, seed=seed)))

    def _moved(self, batches: Iterator[dict[str, Any]], shown_with: int | None) -> Iterator[Batch]:
        """Give training batches on the device; log the first one's images where a seed is given to show them with."""
        for batch in batches:
            moved = self._to_device(checked(batch), self.augment)
            self.at_hand = AtHand("batch_size", len(moved["label"]), tuple(moved["image"].shape))
            if shown_with is not None:
                self._show_images(moved, shown_with)
                shown_with = None
            yield moved

    def _look(self, bar: tqdm[Any]) -> None:
        """Wait for the device, check and log the losses since the last look."""
        if not self.pending:
            return
        sums = torch.stack([losses.sums for *_, losses in self.pending]).double()  # (steps, terms)
        sizes = [len(losses.indices) for *_, losses in self.pending]
        counts = torch.tensor(sizes, dtype=torch.float64, device=sums.device)
        self.world.sum(sums)
        self.world.sum(counts)
        for (step, rate, losses), means in zip(self.pending, (sums / counts[:, None]).tolist(), strict=True):
            if not math.isfinite(means[0]):
                samples = self.train_data.samples.samples
                images = [samples[index].path for index in self.world.gather(losses.indices.tolist())]
                sentence = self._no_number(f"the loss became {means[0]}", step, rate)
                raise TrainingError(sentence + list_step_images(images))
            terms = {f"train/{term}": mean for term, mean in zip(losses.terms, means, strict=True)}
            self.logger.scalars({**terms, "train/learning_rate": rate}, step)
        now = time.perf_counter()
        seconds = now - self.interval_start
        speed = self.interval_images / max(seconds, 1e-9)
        last, rate, losses = self.pending[-1]
        self.progress.loss_sum += float(sums[:, 0].sum())
        self.progress.train_seconds += seconds
        self.progress.pictures_trained += self.interval_images
        self.interval_start, self.interval_images = now, 0
        mean = float(sums[:, 0].sum() / counts.sum())
        self.logger.scalars({"train/images_per_second": speed}, last)
        self.progress.add_train_point(last, mean, rate)
        self.pending.clear()
        self._heed(dict(zip(losses.terms, (sums.sum(dim=0) / counts.sum()).tolist(), strict=True)))
        epochs_left = self.config.num_epochs - self.progress.epoch - self.progress.consumed / len(self.labels)
        show_speed(bar, loss=mean, rate=rate, speed=speed, images_left=epochs_left * len(self.labels))

    def _heed(self, terms: Mapping[str, float]) -> None:
        """Pass on what the task finds wrong, once an epoch. Raises TrainingError where the task wants that."""
        sentence = self.task.warning(terms)
        if not sentence or self.warned_in == self.progress.epoch:
            return
        self.warned_in = self.progress.epoch
        if self.task.stops_on_warning:
            raise TrainingError(f"{sentence} (epoch {self.progress.epoch + 1}, step {self.progress.step})")
        self.log(f"warning: {sentence}")

    def _rate(self) -> float:
        """Give the learning rate at the present place."""
        return self.schedule.at(self.progress.epoch + self.progress.consumed / len(self.labels))

    def _validate(self) -> ValidationResult:
        """Measure the deployed net in fp32, as it will answer. Raises TrainingError where its loss is no number."""
        start = time.perf_counter()
        net = self.learner.deployed_net()
        self.world.agree_on_buffers(net)
        self.validated = task = self.task if net is self.task.net else self.task.with_net(net)
        task.heed = self._leave_if_asked
        paths = [sample.path for sample in self.val_data.samples.samples]
        result = task.validate(self._validation_batches(), self.config.num_classes, paths, self.metadata.class_names)
        if self.config.test_time_views > 1:
            count = right_answers(task, self._validation_batches(), self.config.test_time_views)
            count = int(self.world.sum(torch.tensor(count, device=self.device)))
            result = replace(result, top1_views=count / len(paths))
            self.logger.scalars({"val/top1_views": count / len(paths)}, self.progress.step)
        self.metadata = self.task.declare(self.metadata, result)
        self.progress.validation_seconds += time.perf_counter() - start
        self.logger.validation(
            result, self.metadata.class_names, self.load_image, self.progress.step, self._worst_heat_maps(net, result)
        )
        if not math.isfinite(result.loss):
            what = f"the validation loss became {result.loss}"
            raise TrainingError(self._no_number(what, max(self.progress.step - 1, 0), self._rate()))
        return result

    def _worst_heat_maps(self, net: torch.nn.Module, result: ValidationResult) -> dict[str, np.ndarray]:
        """Give the worst images under the heat maps of their answers, by path, where they are looked at."""
        if not self.logger.enabled or self.task.output != "logits":
            return {}
        images = [(image.path, image.answer) for image in result.worst[:MAX_HEAT_MAPS]]
        return worst_heat_maps(net, self.metadata.preprocess, images, self.device)

    def _validation_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Give the batches on the device. Raises StoppedBySignalError, on several processes at the same batch."""
        shared = -(-(len(self.val_data) // self.world.size) // self.val_batch_size)  # batches that each of them has
        for number, batch in enumerate(self.bars.validation(self.val_loader)):
            if number < shared:
                self._leave_if_asked()
            moved = self._to_device(checked(batch))
            self.at_hand = AtHand("val_batch_size", len(moved["label"]), tuple(moved["image"].shape))
            yield moved

    def _end_epoch(self, result: ValidationResult | None) -> None:
        """Enter the epoch, save, and say so; `result` is None where the epoch was not validated."""
        progress = self.progress
        train_loss = progress.loss_sum / len(self.labels)
        progress.epoch += 1
        progress.consumed, progress.loss_sum = 0, 0.0
        line = f"epoch {progress.epoch}/{self.config.num_epochs}  {self.task.loss_names[0]} {train_loss:.4f}"
        if result is not None:
            risen = not progress.best or result.top1 > progress.best["top1"]
            waited = progress.epochs_without_gain + self.config.validation_interval
            progress.epochs_without_gain = 0 if risen else waited
            point = self._keep_if_best(result)
            progress.curves["val"].append({**point, "train_loss": train_loss})
            line += f"  {self.task.loss_names[1]} {result.loss:.4f}"
            line += f"  {self.task.measure} {result.top1:.2%}  best {progress.best['top1']:.2%}"
            if result.top1_views is not None:
                line += f"  {self.config.test_time_views} views {result.top1_views:.2%}"
        self._save_last()
        self.logger.scalars({"train/epoch_loss": train_loss}, progress.step)
        self.logger.flush()
        self.log(f"{line}  {progress.images_per_second():.0f} img/s")

    def _keep_if_best(self, result: ValidationResult) -> dict[str, Any]:
        """Save the net where it is the best so far; give the validation's point for the curves."""
        progress = self.progress
        point = {"epoch": progress.epoch, "step": progress.step, "loss": result.loss}
        point |= {"top1": result.top1, "top5": result.top5}
        if result.top1_views is not None:
            point["top1_views"] = result.top1_views
        if not progress.best or (result.top1, -result.loss) > (progress.best["top1"], -progress.best["loss"]):
            before = progress.best, progress.best_result
            progress.best = point
            progress.best_result = {**asdict(result), "confusion": torch.tensor(result.confusion)}
            try:
                if self.world.is_main:
                    self.saver.save_best(self._checkpoint(with_training_state=False))
            except CheckpointError:
                progress.best, progress.best_result = before  # the file does not hold this net
                raise
        return point

    def _replace_lost_best(self) -> None:
        """Put the present net where the best one was lost: a training must not end with the name of a spoilt file."""
        progress, path = self.progress, self.saver.best
        is_lost = bool(progress.best) and self.world.is_main and not is_complete(path)
        if not any(self.world.gather([is_lost])):
            return
        what = "is damaged" if path.exists() else "is not there"
        if progress.best["step"] == progress.step:
            self.log(f"warning: {path} {what}: it is written again from the last checkpoint")
            if self.world.is_main:
                self.saver.save_best(self._checkpoint(with_training_state=False))
        else:
            self.log(f"warning: {path} {what}: epoch {progress.best['epoch']}'s net is lost, the last takes its place")
            progress.best, progress.best_result = {}, {}
            self._keep_if_best(self._validate())
            self._save_last()

    def _save_last(self) -> None:
        """Save what `--resume` goes on from. Raises TrainingError where the weights are no numbers, CheckpointError."""
        if not all(bool(value.isfinite().all()) for value in self.task.net.parameters()):
            step = max(self.progress.step - 1, 0)
            raise TrainingError(self._no_number("the weights became no numbers", step, self._rate()))
        if self.world.is_main:
            self.saver.save_last(self._checkpoint(with_training_state=True))

    def _checkpoint(self, *, with_training_state: bool) -> Checkpoint:
        return Checkpoint(
            config=self.config.model_dump(),
            metadata=self.metadata,
            progress=asdict(self.progress),
            **self.learner.state(with_training_state=with_training_state),
        )

    def _to_device(
        self, batch: dict[str, Any], augment: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Move a batch, and augment and normalise its images there: four times fewer bytes travel."""
        moved = self.copy(batch)
        pixels = moved["image"]
        if augment is not None:
            is_even = self.progress.epoch % 2 == 0
            pixels = augment(pixels, self.mirrored_half[moved["index"]] == is_even)
        images = self.metadata.preprocess.normalize(pixels)
        return {**moved, "image": images.contiguous(memory_format=self.learner.layout)}

    def _leave_if_asked(self) -> None:
        """Raise StoppedBySignalError where a signal came, on several processes at the same call."""
        if self._asked_to_stop():
            raise StoppedBySignalError

    def _asked_to_stop(self) -> bool:
        """Ask whether any process received a signal; all of several ask at once, over gloo, and no GPU waits for it."""
        if self.world.size == 1:
            return self.stop.received is not None
        flag = torch.tensor(int(self.stop.received or 0))
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        if flag.item():
            self.stop.receive(int(flag.item()))
        return bool(flag.item())

    def _no_number(self, what: str, step: int, rate: float) -> str:
        epoch, last = self.progress.epoch + 1, self.saver.last
        return no_number(what, epoch=epoch, step=step, rate=rate, precision=self.precision, last=last)

    def _memory_sentence(self, reason: str) -> str:
        """Say that the memory was too small, and what would fit.

        The weights are no longer the training's afterwards: what is safe is on the disk.
        """
        self.pending.clear()
        self.learner.drop_gradients()
        steps = self.config.accumulation_steps
        return too_small(self.at_hand, self._attempt, accumulation_steps=steps, last=self.saver.last, reason=reason)

    def _attempt(self, size: int) -> None:
        """Do what the batch at hand was for, with one of `size` images."""
        images = self.at_hand.images(size, self.device, self.learner.layout)
        label = torch.zeros(size, dtype=torch.int64, device=self.device)
        if self.at_hand.key == "batch_size":
            self.learner.try_step({"image": images, "label": label, "index": label})
        else:
            with torch.inference_mode():
                self.validated.predict(images)

    def _show_images(self, batch: dict[str, torch.Tensor], seed: int) -> None:
        """Log up to 16 images of a batch as the net sees them, mixed ones too."""
        if not self.logger.enabled:
            return
        images, labels = self.task.shown(batch, np.random.default_rng(seed))
        pixels = self.metadata.preprocess.denormalize(images[:16]).numpy()
        captions = image_captions(labels[:16].cpu(), self.metadata.class_names)
        self.logger.train_images(pixels, captions, self.progress.step)

    def load_image(self, path: str) -> np.ndarray:
        """Give an image to look at, uint8 (H, W, C), at its own size."""
        return as_array(self.metadata.preprocess.decode(path))
