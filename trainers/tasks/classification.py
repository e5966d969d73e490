"""The classification task: softmax cross entropy on one label an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from artifacts.metadata import ModelMetadata
from data_loader.augment import BatchMixer
from data_loader.samples import NO_LABEL
from trainers.evaluation.classification_metrics import ClassificationMetrics, ValidationResult
from trainers.evaluation.feature_probes import Embedded

Batch = dict[str, torch.Tensor]


class ClassifyTask(nn.Module):
    """Owns the net and its loss.

    The loss is the mean over the batch of w[y] * CE(logits, y), with label smoothing (Szegedy et al. 2016, sec. 7)
    and, where a mixer is given, on mixed images with their mixed targets. Unlike `F.cross_entropy(weight=...)` the
    mean is over images, not over weights, so that accumulated batches add up to the big one.
    """

    class_weights: torch.Tensor | None
    output = "logits"  # what the net gives, one of metadata.OUTPUTS
    measure = "top-1"  # what `validate` gives as top1
    loss_names = ("loss", "val")  # what an epoch's line calls the training's loss and the validation's
    views = 1  # of an image in a batch
    stops_on_warning = False

    def __init__(
        self,
        net: nn.Module,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] = (),
        mixer: BatchMixer | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.label_smoothing = label_smoothing
        self.mixer = mixer
        self.heed: Callable[[], None] = lambda: None  # between batches that a task reads itself; it may raise
        weights = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Run `training_step`: DistributedDataParallel hooks itself onto the forward call."""
        return self.training_step(batch, generator)

    def training_inputs(self, batch: Batch, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the images (N, C, H, W) as the net sees them, and the targets: labels (N,) or probabilities (N, K)."""
        if self.mixer is None:
            return batch["image"], batch["label"]
        return self.mixer(batch["image"], batch["label"], generator)

    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Give {"loss": scalar to minimise} for images (N, C, H, W) and labels (N,); further scalars are logged."""
        images, targets = self.training_inputs(batch, generator)
        return {"loss": self._cross_entropy(self.net(images), targets)}

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Give the logits (N, K) float32 of images (N, C, H, W)."""
        return self.net(images).float()

    def shown(self, batch: Batch, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Give images as the net sees them in training, to look at, and their labels."""
        return self.training_inputs(batch, generator)[0], batch["label"]

    def warning(self, terms: Mapping[str, float]) -> str:
        """Say in a sentence what is wrong with a training that gives these means of the step's scalars; "": nothing."""
        return ""

    def embedded(self) -> Embedded | None:
        """Give the features of the newest validation's images, where that is what the net gives."""
        return None

    def conclusions(self, num_classes: int) -> dict[str, float]:
        """Give further shares (0 to 1) for the report of a finished training, by name."""
        return {}

    @torch.inference_mode()
    def validate(
        self, batches: Iterable[Batch], num_classes: int, paths: Sequence[str], class_names: Sequence[str]
    ) -> ValidationResult:
        """Measure the net in eval mode on this process's part; every process gets the result of all."""
        was_training = self.net.training
        self.net.eval()
        metrics = ClassificationMetrics(num_classes, self._device())
        for batch in batches:
            metrics.update(self.predict(batch["image"]), batch["label"], batch["index"])
        self.net.train(was_training)
        return metrics.compute(paths, class_names)

    def with_net(self, net: nn.Module) -> ClassifyTask:
        """Give the same task around another net, such as the averaged one."""
        return ClassifyTask(net, label_smoothing=self.label_smoothing)

    def declare(self, metadata: ModelMetadata, result: ValidationResult) -> ModelMetadata:
        """Give the metadata with what a validation has settled about the net: here nothing."""
        return metadata

    def _cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Give the mean over logits (N, K) of the weighted, smoothed losses."""
        losses = nn.functional.cross_entropy(
            logits.float(), targets, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="none"
        )  # (N,)
        return losses.mean()

    def _device(self) -> torch.device:
        return next(self.net.parameters()).device


def balanced_class_weights(counts: Sequence[int]) -> list[float]:
    """Give each class N / (K * its count), over the K classes that have images: the mean weight of an image is 1."""
    present = [count for count in counts if count]
    total = sum(present)
    return [total / (len(present) * count) if count else 0.0 for count in counts]


def image_captions(labels: torch.Tensor, class_names: Sequence[str]) -> list[str]:
    """Give the class names of labels (N,), "" where the label is not known."""
    return ["" if label == NO_LABEL else class_names[int(label)] for label in labels]
