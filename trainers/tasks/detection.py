"""The task of nets that find the objects in an image: a box, a class and a score for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from artifacts.detections import NMS, NMS_IOU, SCORE
from artifacts.metadata import ModelMetadata
from configs.schema import Config
from data_loader.augment import AugmentSettings
from data_loader.box_classes import box_classes_of, named_classes, other_box_classes_of
from data_loader.box_target import Boxes, BoxSamples, BoxTarget
from data_loader.box_view import BoxView
from data_loader.preprocess import Preprocess
from data_loader.samples import SampleList
from nets.detector_module import anchor_points
from nets.support.errors import NetError
from trainers.evaluation.detection_metrics import MAP50, DetectionMetrics, DetectionValidation
from trainers.evaluation.validation import Validation, evaluating
from trainers.reporting.box_strips import best_boxes, stacked, with_truth, worst_boxes
from trainers.reporting.detection_page import precision_recall_curves
from trainers.reporting.tensorboard_logger import TrainingLogger
from trainers.tasks.base import Batch, BatchSource, Setup, Task
from trainers.tasks.detection_losses import detection_losses, unpacked
from visualization import raster

MAX_STRIPS = 8  # a validation


class DetectionTask(Task):
    """Owns the net and its loss, the mean over the images of the loss of each image by itself.

    The net names the `strides` of its maps; its output is (N, A, 4 + K), a row for each position of each map. A net
    with `losses` has its own: they and its `decode` take what it gives with `raw`.
    """

    name = "detection"
    output = "boxes"
    validation: ClassVar[type[DetectionValidation]] = DetectionValidation
    measure = MAP50
    points: torch.Tensor

    def __init__(self, net: nn.Module, samples: SampleList, preprocess: Preprocess) -> None:
        super().__init__(net)
        self.val, self.input = samples, preprocess
        strides: Any = getattr(net, "strides", ())
        if not strides:
            raise NetError(f"{type(net).__name__} has no attribute strides, which a net for detection needs")
        points = anchor_points(preprocess.height, preprocess.width, strides)  # (A, 3); a net of own losses has others
        self.register_buffer("points", points, persistent=False)

    @classmethod
    def target(cls, config: Config) -> BoxTarget:
        """Return the boxes of the config's classes. Raises ListError."""
        classes, others = box_classes_of(config), other_box_classes_of(config)
        how: dict[str, Any] = {"max_pixels": config.max_pixels, "has_bands": config.has_bands()}
        return BoxTarget(config.num_classes, classes, others=others, **how)

    @classmethod
    def training_view(cls, preprocess: Preprocess, settings: AugmentSettings) -> Callable[..., Any]:
        """Return what moves image and boxes together."""
        return BoxView(preprocess, settings)

    @classmethod
    def new_metadata(cls, config: Config, samples: SampleList) -> ModelMetadata:
        """Return the metadata with the classes' numbers in the data, colours and titles."""
        classes = samples.classes if isinstance(samples, BoxSamples) else named_classes(samples.class_names)
        metadata = super().new_metadata(config, samples)
        return replace(metadata, mask_classes=classes, thresholds={NMS: NMS_IOU})

    @classmethod
    def from_setup(cls, net: nn.Module, setup: Setup) -> Self:
        """Return the task. Raises NetError, and UserError where what measures it is not installed."""
        return cls(net, setup.val, cls.preprocess(setup.config)).to(setup.device)

    def with_net(self, net: nn.Module) -> DetectionTask:
        """Return the same task around another net, such as the averaged one."""
        return type(self)(net, self.val, self.input).to(self.device)

    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return the mean losses for images (N, C, H, W) and rows (N, M, 6) of boxes."""
        outputs, of_images = self._measured(batch)
        losses = {name: values.mean() for name, values in of_images.items()}
        if self.teachers is None:
            return losses
        return self.distilled(losses, self.teachers.loss_of_boxes(outputs, batch["image"]))

    def shown_pixels(
        self, batch: Batch, generator: np.random.Generator, metadata: ModelMetadata
    ) -> tuple[np.ndarray, list[str]]:
        """Return a batch's images with their boxes."""
        pixels = metadata.preprocess.denormalize(batch["image"]).numpy()  # (N, H, W, C)
        drawn = []
        for image, boxes, labels, ignored in zip(pixels, *unpacked(batch["target"].cpu()), strict=True):
            known = labels >= 0
            size = (image.shape[1], image.shape[0])
            truth = Boxes(boxes[known].numpy(), labels[known].numpy(), ignored[known].numpy(), size)
            drawn.append(with_truth(image, truth, metadata.mask_classes))
        return np.stack(drawn), [""] * len(drawn)

    @torch.inference_mode()
    def validate(
        self, batches: BatchSource, samples: SampleList, threshold: float | None = None
    ) -> DetectionValidation:
        """Measure the net in eval mode on this process's part; every process gets the result of all.

        `threshold` is the score that counts, None for the best of them.
        """
        metrics = DetectionMetrics(samples, self.input)
        with evaluating(self.net):
            for batch in batches():
                outputs, losses = self._measured(batch)
                metrics.update(outputs, batch["index"], losses["loss"])
        return metrics.compute(threshold)

    def _measured(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the outputs (N, A, 4 + K) for a batch, and the losses (N,) of its images by name."""
        net: Any = self.net
        if hasattr(net, "losses"):
            rows = net(batch["image"], raw=True)
            return net.decode(rows), net.losses(rows, batch["target"])
        outputs = self.predict(batch["image"])
        return outputs, detection_losses(outputs, batch["target"], self.points)

    def declare(self, metadata: ModelMetadata, validation: Validation) -> ModelMetadata:
        """Return the metadata with the score threshold of the highest mean F1."""
        assert isinstance(validation, DetectionValidation)
        return replace(metadata, thresholds={**metadata.thresholds, SCORE: validation.score_threshold})

    def summary(self, validation: Validation) -> str:
        """Return mAP over all IoUs, and F1."""
        scalars = validation.scalars()
        return f"mAP {scalars['map50_95']:.2%}  F1 {scalars['f1']:.2%}"

    def log_validation(
        self, logger: TrainingLogger, validation: Validation, metadata: ModelMetadata, step: int
    ) -> None:
        """Show the classes' precision over recall, and the worst images with what is there and what was found."""
        assert isinstance(validation, DetectionValidation)
        if logger.enabled:
            curves = precision_recall_curves(validation.per_class, validation.precision_recall)
            if curves:
                logger.image("val/precision_recall", raster.precision_recall_image(curves), step)
            paths = [row.path for row in validation.worst[:MAX_STRIPS]]
            strips = self._worst(paths, metadata, validation.score_threshold)
            if chosen := [strips[path] for path in paths if path in strips]:
                logger.image("val/worst", stacked(chosen), step)

    def report_images(self, checkpoint: Path, best: Validation, device: torch.device) -> dict[str, np.ndarray]:
        """Return the worst images with their objects, beside what the best net finds."""
        assert isinstance(best, DetectionValidation)
        return best_boxes(checkpoint, self.val, [row.path for row in best.worst], best.score_threshold, device)

    def _worst(self, paths: Sequence[str], metadata: ModelMetadata, threshold: float) -> dict[str, np.ndarray]:
        classes = metadata.mask_classes
        return worst_boxes(self.net, self.input, classes, self.val, paths, threshold, self.device)
