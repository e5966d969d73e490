"""What the platform adds to a training: start weights, and each epoch's pictures, weights, log and line of output."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from artifacts.checkpoint import load_checkpoint, load_weights
from data_loader.bad_images import without
from data_loader.errors import ImageError
from platforms.base import PlatformError, warn, write_bytes
from platforms.pie_engine.files import FILES, PICTURES, TrainLog, process_line
from platforms.pie_engine.metrics import box_rows, mask_rows
from platforms.pie_engine.pictures import write_box_picture, write_mask_pictures
from trainers.builder import validation_images
from trainers.evaluation.detection_metrics import DetectionValidation
from trainers.evaluation.segmentation_metrics import SegmentationValidation, pixel_confusion
from trainers.evaluation.validation import Validation
from trainers.hooks import TrainingHooks
from trainers.runtime.distributed import sum_over_processes
from trainers.tasks.base import Batch
from trainers.tasks.detection import DetectionTask
from trainers.tasks.segmentation import SegmentationTask
from trainers.trainer import Trainer

MOST_MEASURED = 200  # training images of a detection's `train`
SHOWN = 20


@dataclass(frozen=True)
class Session:
    """What the hooks of every process need to know; plain texts, so that it can be handed to other processes."""

    output: str
    model_name: str
    log: str  # trainlog.json, which is there already
    resume: str = ""  # a file of weights

    def weights(self) -> Path:
        """Return the path of the weights file."""
        return Path(self.output) / FILES / f"{self.model_name}.th"


class PlatformHooks(TrainingHooks):
    """Leaves `output/` complete after every epoch, and then prints its line, but for the last one's."""

    def __init__(self, session: Session, print_line: Callable[[str], None]) -> None:
        self.session, self.print_line = session, print_line
        self.confusion: torch.Tensor | None = None

    def net_built(self, net: nn.Module, log: Callable[[str], None]) -> None:
        """Take the weights of `resume_path`. Raises CheckpointError, PlatformError."""
        if self.session.resume:
            take_weights(net, Path(self.session.resume), log)

    def training_ready(self, trainer: Trainer) -> None:
        """Count the pixels of the training's own forward passes; `train.finish` removes the last checkpoint."""
        trainer.saver.last_is_removed = True
        if isinstance(trainer.task, SegmentationTask):
            trainer.task.watch_output = self._count

    def epoch_ended(self, trainer: Trainer, validation: Validation) -> None:
        """Write the epoch's files; every process takes part in the figures. Raises ResultsError, CheckpointError."""
        progress, config = trainer.progress, trainer.config
        train, valid = self._rows(trainer, validation)
        if not trainer.runtime.world.is_main:
            return
        stops_early = 0 < config.early_stopping_epochs <= progress.epochs_without_gain
        is_last = stops_early or progress.epoch == config.num_epochs
        with trainer.stop:
            self._write_pictures(trainer, validation)
            net = trainer.learner.deployed_net().state_dict()
            if is_last:
                net = load_checkpoint(config.best_checkpoint()).deployed()
            write_bytes(self.session.weights(), state_dict_bytes(net))
            log = TrainLog.read(Path(self.session.log))
            log.add_epoch(progress.epoch, train, valid, is_best=progress.best["step"] == progress.step)
            log.write()
        if not is_last:  # the last one's line is printed once report and exports are there, too
            self.print_line(process_line(progress.epoch, config.num_epochs))

    def _count(self, logits: torch.Tensor, batch: Batch) -> None:
        counts = pixel_confusion(logits.argmax(dim=1), batch["target"], logits.shape[1]).sum(dim=0)  # (K, K)
        self.confusion = counts if self.confusion is None else self.confusion + counts

    def _rows(self, trainer: Trainer, validation: Validation) -> tuple[Any, Any]:
        """Return the rows of train and valid."""
        names = trainer.state.metadata.class_names
        loss = trainer.progress.curves["val"][-1]["train_loss"]
        if isinstance(validation, DetectionValidation):
            return box_rows(self._measured(trainer, validation.score_threshold)), box_rows(validation)
        assert isinstance(validation, SegmentationValidation) and self.confusion is not None
        confusion, self.confusion = sum_over_processes(self.confusion), None
        of_train = mask_rows(confusion.cpu().numpy(), names, loss)
        return of_train, mask_rows(torch.tensor(validation.confusion).numpy(), names, validation.loss)

    def _measured(self, trainer: Trainer, threshold: float) -> DetectionValidation:
        """Return the validation of the net on up to MOST_MEASURED training images, the same ones in every epoch."""
        task, batches = trainer.validator.task, trainer.batches
        assert isinstance(task, DetectionTask)
        samples = batches.train_data.samples
        places = np.linspace(0, len(samples.samples), min(len(samples.samples), MOST_MEASURED), endpoint=False)
        part = without(samples, set(range(len(samples.samples))) - set(places.astype(int).tolist()))
        images = validation_images(trainer.config, part, batches.preprocess, batches.train_data.target)
        return task.validate(lambda: batches.of(images), part, threshold)

    def _write_pictures(self, trainer: Trainer, validation: Validation) -> None:
        """Write the best validation image's pictures, of the first one where none holds an object."""
        task, samples = trainer.validator.task, trainer.batches.val_data.samples.samples
        best = getattr(validation, "best_image", "")
        sample = next((sample for sample in samples if sample.path == best), samples[0])
        folder = Path(self.session.output) / PICTURES
        try:
            if isinstance(task, DetectionTask):
                assert isinstance(validation, DetectionValidation)
                classes = trainer.state.metadata.mask_classes
                write_box_picture(task, classes, sample, validation.score_threshold, folder)
            elif isinstance(task, SegmentationTask):
                write_mask_pictures(task, sample, folder)
        except ImageError as error:  # gone since the validation
            warn(f"{sample.path}: no pictures of this epoch: {error}")


def state_dict_bytes(state: dict[str, torch.Tensor]) -> bytes:
    """Return a plain dictionary of tensors on the CPU as torch saves it."""
    file = io.BytesIO()
    torch.save({name: value.detach().cpu().contiguous() for name, value in state.items()}, file)
    return file.getvalue()


def take_weights(net: nn.Module, path: Path, log: Callable[[str], None]) -> None:
    """Copy the tensors of a file that have a name and a shape of the net's; log which of the net's stay fresh.

    Raises CheckpointError for what is no file of weights, PlatformError where not one tensor fits.
    """
    offered, own = load_weights(path), net.state_dict()
    fitting = {name for name, value in own.items() if name in offered and offered[name].shape == value.shape}
    if not fitting:
        text = f"of its {len(offered)} tensors none has a name and a shape of the net's {len(own)}"
        raise PlatformError(f"resume_path: {path.name} is of another net: {text}")
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(offered[name])
    fresh, unused = ([name for name in names if name not in fitting] for names in (own, offered))
    log(f"resume_path: {len(fresh)} of {len(own)} tensors left fresh{_named(fresh)}")
    if unused:
        log(f"resume_path: {len(unused)} of the file's {len(offered)} tensors are not used{_named(unused)}")


def _named(names: Sequence[str]) -> str:
    """Return a colon and the first names, "" for none."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f": {', '.join(names[:SHOWN])}{more}" if names else ""
