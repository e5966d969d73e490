"""The tasks of nets that give a class for each pixel: segmentation of an image, and change between two of a place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from artifacts.metadata import ModelMetadata, mask_classes_of, other_classes_of, preprocess_of
from artifacts.tiles import blended_logits
from configs.schema import Config
from data_loader.augment import AugmentSettings
from data_loader.batch_augment import BatchViews
from data_loader.batch_joint import JointBatchViews
from data_loader.joint_view import JointView
from data_loader.mask_classes import MaskClass
from data_loader.mask_target import MaskSamples, MaskTarget
from data_loader.preprocess import Preprocess
from data_loader.samples import SampleList
from trainers.evaluation.segmentation_metrics import (
    CHANGE_IOU,
    MEAN_IOU,
    ChangeValidation,
    SegmentationMetrics,
    SegmentationValidation,
)
from trainers.evaluation.validation import Validation, evaluating
from trainers.reporting.mask_strips import best_strips, log_masks, worst_strips
from trainers.reporting.tensorboard_logger import TrainingLogger
from trainers.tasks.base import Batch, BatchSource, Setup, Task
from trainers.tasks.classification import balanced_class_weights
from trainers.tasks.segmentation_losses import segmentation_loss
from visualization.masks import colour_table, coloured, strip

MAX_STRIPS = 8  # a validation
BACKGROUND = "background"


@dataclass(frozen=True)
class Tiles:
    """How a validation sees images at their own size: tiles with this least overlap, so many at a time."""

    overlap: float
    batch_size: int


class SegmentationTask(Task):
    """Owns the net and its loss: the mean over the images of the loss of each image by itself.

    Over all pixels of a batch, accumulated batches would not add up to the big one.
    """

    name = "segmentation"
    output = "mask_logits"
    validation: ClassVar[type[SegmentationValidation]] = SegmentationValidation
    measure = MEAN_IOU
    images: ClassVar[int] = 1  # of a sample
    usual_loss: ClassVar[str] = "cross_entropy"

    def __init__(
        self,
        net: nn.Module,
        target: MaskTarget,
        val: SampleList,
        preprocess: Preprocess,
        *,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] = (),
        tiles: Tiles | None = None,
    ) -> None:
        super().__init__(net)
        self.tiles = tiles
        self.masks, self.val, self.input = target, val, preprocess
        self.loss_name = loss
        self.losses = segmentation_loss(loss, class_weights)  # logits (N, K, H, W), masks (N, H, W) -> (N,)

    @classmethod
    def target(cls, config: Config) -> MaskTarget:
        """Return the masks of the config's classes. Raises ListError."""
        classes, others = mask_classes_of(config), other_classes_of(config)
        how: dict[str, Any] = {"max_pixels": config.max_pixels, "has_bands": config.has_bands()}
        return MaskTarget(classes, has_pairs=cls.images == 2, others=others, **how)

    @classmethod
    def preprocess(cls, config: Config) -> Preprocess:
        """Return how a config's images, one or two, become the net's input."""
        one = preprocess_of(config)
        channels, mean, std = one.channels * cls.images, one.mean * cls.images, one.std * cls.images
        return replace(one, images=cls.images, channels=channels, mean=mean, std=std)

    @classmethod
    def training_view(cls, preprocess: Preprocess, settings: AugmentSettings) -> Callable[..., Any]:
        """Return what moves images and mask together."""
        return JointView(preprocess, settings)

    @classmethod
    def batch_views(cls, preprocess: Preprocess, settings: AugmentSettings) -> BatchViews:
        """Return what moves the images and masks of a batch together. Raises BatchViewsError."""
        return JointBatchViews(settings, cls.images, (preprocess.height, preprocess.width))

    @classmethod
    def new_metadata(cls, config: Config, samples: SampleList) -> ModelMetadata:
        """Return the metadata with the classes' values, colours and titles."""
        classes = samples.classes if isinstance(samples, MaskSamples) else mask_classes_of(config)
        return replace(super().new_metadata(config, samples), mask_classes=classes)

    @classmethod
    def from_setup(cls, net: nn.Module, setup: Setup) -> Self:
        """Return the task with the config's loss."""
        config, given = setup.config, setup.config.class_weights
        weights = balanced_class_weights(setup.train.class_counts()) if given == "balanced" else list(given or ())
        return cls(
            net,
            cls.target(config),
            setup.val,
            cls.preprocess(config),
            class_weights=weights,
            loss=cls.usual_loss if config.mask_loss == "auto" else config.mask_loss,
            tiles=Tiles(config.val_tiles, config.val_batch_size or 2 * config.batch_size) if config.val_tiles else None,
        )

    def with_net(self, net: nn.Module) -> SegmentationTask:
        """Return the same task around another net, such as the averaged one; classes weigh alike in its validation."""
        return type(self)(net, self.masks, self.val, self.input, loss=self.loss_name, tiles=self.tiles)

    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return {"loss": scalar to minimise} for images (N, C, H, W) and masks (N, H, W) uint8."""
        logits = self.net(batch["image"])
        if self.watch_output is not None:
            self.watch_output(logits.detach(), batch)
        losses = {"loss": self.losses(logits, batch["target"]).mean()}
        if self.teachers is None:
            return losses
        return self.distilled(losses, self.teachers.loss_of_masks(logits, batch["image"]))

    @property
    def background(self) -> int | None:
        """The index of the class that stands for nothing in particular: the one called "background"."""
        names = self.masks.class_names
        return names.index(BACKGROUND) if BACKGROUND in names else None

    def shown_pixels(
        self, batch: Batch, generator: np.random.Generator, metadata: ModelMetadata
    ) -> tuple[np.ndarray, list[str]]:
        """Return a batch's images with their masks beside them."""
        pixels = metadata.preprocess.denormalize(batch["image"]).numpy()  # (N, H, W, C)
        table = _table(metadata.mask_classes)
        masks = batch["target"].cpu().numpy()
        strips = [
            strip([*np.split(image, self.images, axis=2), coloured(mask, table)])
            for image, mask in zip(pixels, masks, strict=True)
        ]
        return np.stack(strips), [""] * len(strips)

    @torch.inference_mode()
    def validate(self, batches: BatchSource, samples: SampleList) -> SegmentationValidation:
        """Measure the net in eval mode on this process's part; every process gets the result of all."""
        metrics = SegmentationMetrics(len(samples.class_names), self.device, background=self.background)
        with evaluating(self.net):
            for batch in batches():
                logits, masks = self._logits(batch["image"]), batch["target"]
                metrics.update(logits, masks, batch["index"], self.losses(logits, masks))
        found = metrics.compute([sample.path for sample in samples.samples], samples.class_names, self.validation)
        colours = (f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in (one.color for one in self.masks.classes))
        rows = [{**row, "color": colour} for row, colour in zip(found.per_class, colours, strict=True)]
        return replace(found, per_class=rows)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K, H, W) of a batch, or of one image of any size, (1, C, H, W), by tiles."""
        if self.tiles is None:
            return self.predict(images)
        whole = images[0].permute(1, 2, 0).cpu().numpy()  # (H, W, C)

        def net(tiles: np.ndarray) -> np.ndarray:
            batch = torch.from_numpy(tiles).permute(0, 3, 1, 2).to(images.device)  # (n, C, h, w)
            return self.predict(batch).cpu().numpy()

        size, tile = (whole.shape[1], whole.shape[0]), (self.input.width, self.input.height)
        cut = (self.tiles.overlap, self.tiles.batch_size)
        bands = list(blended_logits(net, lambda first, end: whole[first:end], size, tile, *cut))
        return torch.from_numpy(np.concatenate(bands, axis=1))[None].to(images.device)

    def summary(self, validation: Validation) -> str:
        """Return the share of right pixels."""
        return f"pixel accuracy {validation.scalars()['pixel_accuracy']:.2%}"

    def log_validation(
        self, logger: TrainingLogger, validation: Validation, metadata: ModelMetadata, step: int
    ) -> None:
        """Show the confusion of pixels, and the worst images with truth, prediction and error."""
        assert isinstance(validation, SegmentationValidation)
        if logger.enabled:
            chosen = [row.path for row in validation.worst[:MAX_STRIPS]]
            strips = worst_strips(self.net, self.input, self.masks, self.val, chosen, self.device)
            log_masks(logger, validation, metadata.class_names, step, strips)

    def report_images(self, checkpoint: Path, best: Validation, device: torch.device) -> dict[str, np.ndarray]:
        """Return the worst images beside truth, the best net's prediction, and its error."""
        assert isinstance(best, SegmentationValidation)
        return best_strips(checkpoint, self.masks, self.val, [row.path for row in best.worst], device)


class ChangeTask(SegmentationTask):
    """The same of two images of one place, which are one input of twice the channels, the earlier first.

    The first class is "unchanged"; the best net is that of the highest IoU of the others. Those are so rare that a net
    trained by cross entropy alone can stay at "nothing has changed".
    """

    name = "change_detection"
    validation = ChangeValidation
    measure = CHANGE_IOU
    images = 2
    background = 0
    usual_loss = "cross_entropy+dice"

    def summary(self, validation: Validation) -> str:
        """Return F1 of change."""
        return f"F1 of change {validation.scalars()['change_f1']:.2%}"


def _table(classes: Sequence[MaskClass]) -> np.ndarray:
    return colour_table([found.color for found in classes])
