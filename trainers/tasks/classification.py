"""The classification task: softmax cross entropy on one label an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from artifacts.metadata import ModelMetadata, class_names_of
from configs.schema import Config
from data_loader.augment import BatchMixer
from data_loader.samples import NO_LABEL, SampleList
from data_loader.targets import ClassLabel
from trainers.evaluation.classification_metrics import TOP1, ClassificationMetrics, ClassificationValidation
from trainers.evaluation.test_time_augmentation import count_correct
from trainers.evaluation.validation import Validation, evaluating
from trainers.reporting.classification_plots import log_classification
from trainers.reporting.heatmaps import best_heat_maps, worst_heat_maps
from trainers.reporting.tensorboard_logger import TrainingLogger
from trainers.runtime.distributed import sum_over_processes
from trainers.tasks.base import Batch, BatchSource, Setup, Task

MAX_HEAT_MAPS = 12  # a validation


class ClassificationTask(Task):
    """Owns the net and its loss.

    The loss is the mean over the batch of w[y] * CE(logits, y), with label smoothing (Szegedy et al. 2016, sec. 7)
    and, where a mixer is given, on mixed images with their mixed targets. Unlike `F.cross_entropy(weight=...)` the
    mean is over images, not over weights, so that accumulated batches add up to the big one.
    """

    name = "classification"
    output = "logits"
    validation = ClassificationValidation
    measure = TOP1
    class_weights: torch.Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] = (),
        mixer: BatchMixer | None = None,
        test_time_views: int = 1,
    ) -> None:
        super().__init__(net)
        self.label_smoothing = label_smoothing
        self.mixer = mixer
        self.test_time_views = test_time_views
        weights = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    @classmethod
    def target(cls, config: Config) -> ClassLabel:
        """Return the labels of the config's classes. Raises ListError."""
        return ClassLabel(config.num_classes, class_names_of(config))

    @classmethod
    def from_setup(cls, net: nn.Module, setup: Setup) -> Self:
        """Return the task with the config's loss."""
        return cls(net, **loss_options(setup), test_time_views=setup.config.test_time_views)

    def with_net(self, net: nn.Module) -> ClassificationTask:
        """Return the same task around another net, such as the averaged one."""
        return ClassificationTask(net, label_smoothing=self.label_smoothing, test_time_views=self.test_time_views)

    def training_inputs(self, batch: Batch, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images (N, C, H, W) as the net sees them, and labels (N,) or mixed probabilities (N, K)."""
        if self.mixer is None:
            return batch["image"], batch["target"]
        return self.mixer(batch["image"], batch["target"], generator)

    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return {"loss": scalar to minimise} for images (N, C, H, W) and labels (N,)."""
        images, targets = self.training_inputs(batch, generator)
        if self.teachers is None:
            return {"loss": self.cross_entropy(self.net(images), targets)}
        with self.teachers.watching(self.net) as maps:
            logits = self.net(self.own_view(images))
        losses = {"loss": self.cross_entropy(logits, targets)}
        if self.teachers.reviews is not None:
            return self.distilled(losses, self.teachers.loss_of_maps(maps, images))
        return self.distilled(losses, self.teachers.loss_of_classes(logits, images, batch["index"], targets))

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean over logits (N, K) of the weighted, smoothed losses."""
        losses = nn.functional.cross_entropy(
            logits.float(), targets, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="none"
        )  # (N,)
        return losses.mean()

    def shown(
        self, batch: Batch, generator: np.random.Generator, class_names: Sequence[str]
    ) -> tuple[torch.Tensor, list[str]]:
        """Return a batch's images, mixed ones too, with the names of their own classes."""
        return self.training_inputs(batch, generator)[0], image_captions(batch["target"], class_names)

    @torch.inference_mode()
    def validate(self, batches: BatchSource, samples: SampleList) -> ClassificationValidation:
        """Measure the net in eval mode on this process's part; every process gets the result of all."""
        metrics = ClassificationMetrics(len(samples.class_names), self.device)
        with evaluating(self.net):
            for batch in batches():
                metrics.update(self.predict(batch["image"]), batch["target"], batch["index"])
        result = metrics.compute([sample.path for sample in samples.samples], samples.class_names)
        if self.test_time_views == 1:
            return result
        with evaluating(self.net):
            count = count_correct(self.predict, batches(), self.test_time_views)
        count = int(sum_over_processes(torch.tensor(count, device=self.device)))
        return replace(result, top1_views=count / len(samples.samples))

    def summary(self, validation: Validation) -> str:
        """Return top-1 by several views of an image, where it was measured."""
        share = validation.scalars().get("top1_views")
        return "" if share is None else f"{self.test_time_views} views {share:.2%}"

    def log_validation(
        self, logger: TrainingLogger, validation: Validation, metadata: ModelMetadata, step: int
    ) -> None:
        """Show confusion, classes and worst images, these also under the heat maps of their predictions."""
        assert isinstance(validation, ClassificationValidation)
        heat_maps: dict[str, np.ndarray] = {}
        if logger.enabled:
            images = [(image.path, image.answer) for image in validation.worst[:MAX_HEAT_MAPS]]
            heat_maps = worst_heat_maps(self.net, metadata.preprocess, images, self.device)
        log_classification(logger, validation, metadata.class_names, metadata.preprocess.load, step, heat_maps)

    def report_images(self, checkpoint: Path, best: Validation, device: torch.device) -> dict[str, np.ndarray]:
        """Return the worst images under the heat maps of what the best net predicts for them."""
        assert isinstance(best, ClassificationValidation)
        return best_heat_maps(checkpoint, [(image.path, image.answer) for image in best.worst], device)


def loss_options(setup: Setup) -> dict[str, Any]:
    """Return the settings of a config for a loss on labels, as ClassificationTask takes them."""
    config, weights = setup.config, setup.config.class_weights
    mixes = config.mixup_alpha or config.cutmix_alpha
    return {
        "label_smoothing": config.label_smoothing,
        "class_weights": balanced_class_weights(setup.train.class_counts()) if weights == "balanced" else list(weights),
        "mixer": BatchMixer(config.num_classes, config.mixup_alpha, config.cutmix_alpha) if mixes else None,
    }


def balanced_class_weights(counts: Sequence[int]) -> list[float]:
    """Return N / (K * its count) for each class, over the K classes with images: the mean weight of an image is 1."""
    present = [count for count in counts if count]
    total = sum(present)
    return [total / (len(present) * count) if count else 0.0 for count in counts]


def image_captions(labels: torch.Tensor, class_names: Sequence[str]) -> list[str]:
    """Return the class names of labels (N,), "" where the label is not known."""
    return ["" if label == NO_LABEL else class_names[label] for label in labels.tolist()]
