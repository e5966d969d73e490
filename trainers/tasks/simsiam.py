"""SimSiam's task: two views of an image predict each other; the guard against collapse; the quality of the features.

Chen & He 2021, https://arxiv.org/abs/2011.10566.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import nn

from artifacts.metadata import ModelMetadata, class_names_of, preprocess_of
from configs.schema import Config
from data_loader.samples import NO_LABEL, ListError, SampleList
from data_loader.targets import ClassLabel
from nets.simsiam_module import SimSiam
from trainers.evaluation.classification_metrics import ClassificationMetrics, ClassificationValidation
from trainers.evaluation.feature_probes import (
    FOLDS,
    LEAST_VOTE,
    Embedded,
    embed,
    knn_votes,
    of_all_processes,
    plain_batches,
    probe_accuracy,
)
from trainers.evaluation.validation import Measure, Validation
from trainers.reporting.classification_plots import log_classification
from trainers.reporting.tensorboard_logger import TrainingLogger
from trainers.tasks.base import Batch, BatchSource, Setup, Task
from trainers.tasks.classification import image_captions

COLLAPSED = 0.3  # of the healthy standard deviation
ADVICE = (
    "all images get nearly the same embedding, nothing is being learnt: lower learning_rate, raise batch_size, "
    "keep color_jitter and random_crop_scale on, and keep batch norm in projector and predictor"
)


class SimSiamTask(Task):
    """Owns a SimSiam net and its loss, D(p1, sg(z2)) / 2 + D(p2, sg(z1)) / 2 with D the negative cosine (eq. 1 and 2).

    Each view goes through the net by itself, so that batch norm sees one view at a time, as published. What validation
    measures is a weighted kNN over the `bank`: the training images where they are labelled, else the validation
    images themselves, each without itself (`bank_is_validation`). The loss of a validation is that of the votes.
    """

    name = "simsiam"
    output = "features"
    validation = ClassificationValidation
    measure = Measure("top1", "kNN", is_share=True)
    views = 2
    reports_last_validation = True  # the probe is fitted on its features
    net: SimSiam

    def __init__(
        self,
        net: SimSiam,
        bank: Callable[[], Iterable[Batch]],
        *,
        bank_is_validation: bool,
        neighbours: int = 200,
        seed: int = 0,
        stops_on_collapse: bool = False,
    ) -> None:
        super().__init__(net)
        self.bank, self.bank_is_validation = bank, bank_is_validation
        self.neighbours, self.seed = neighbours, seed
        self.stops_on_warning = stops_on_collapse
        self.last: tuple[Embedded, Embedded] | None = None  # of the newest validation: its images and the bank

    @classmethod
    def target(cls, config: Config) -> ClassLabel:
        """Return the labels that the validation's images have, and the training's may have. Raises ListError."""
        return ClassLabel(config.num_classes, class_names_of(config))

    @classmethod
    def from_setup(cls, net: nn.Module, setup: Setup) -> Self:
        """Return the task with a bank of the training images, or where one has no label of the validation images.

        Raises ListError where the bank is too small to measure anything by.
        """
        assert isinstance(net, SimSiam)
        config, train, val = setup.config, setup.train, setup.val
        known = train if train.is_labelled else val
        if len(known.samples) < 2:
            raise ListError([f"{known.origin}: one image has no neighbours; the kNN accuracy needs two and more"])
        unknown = sum(sample.label == NO_LABEL for sample in train.samples)
        why = f"each other's, as {unknown} training images have no label of the {config.num_classes} classes"
        setup.log(f"kNN: a validation image's neighbours are {why if unknown else 'the training images'}")
        return cls(
            net,
            plain_batches(known, preprocess_of(config), config.dataloader_workers, setup.device),
            bank_is_validation=known is val,
            neighbours=config.simsiam_knn_neighbours,
            seed=config.seed,
            stops_on_collapse=config.simsiam_on_collapse == "stop",
        )

    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return the loss and `embedding_std` for images (2 N, C, H, W), the views of an image side by side."""
        images = batch["image"]
        first, p1 = self.net.projections(images[0::2])
        second, p2 = self.net.projections(images[1::2])
        loss = symmetric_loss(first, second, p1, p2)
        return {"loss": loss, "embedding_std": (embedding_std(first) + embedding_std(second)) / 2}

    def shown(
        self, batch: Batch, generator: np.random.Generator, class_names: Sequence[str]
    ) -> tuple[torch.Tensor, list[str]]:
        """Return the views, an image's two side by side, with its class's name on both."""
        return batch["image"], image_captions(batch["target"].repeat_interleave(2), class_names)

    def warning(self, terms: Mapping[str, float]) -> str:
        """Return a sentence where the embeddings' standard deviation is far below the healthy 1 / sqrt(P)."""
        healthy = 1 / math.sqrt(self.net.projector_size)
        std = terms["embedding_std"]
        if std >= COLLAPSED * healthy:
            return ""
        return f"embedding_std is {std:.4f}, healthy is {healthy:.4f}: {ADVICE}"

    @torch.inference_mode()
    def validate(self, batches: BatchSource, samples: SampleList) -> ClassificationValidation:
        """Measure the kNN accuracy on this process's part; every process gets the result of all."""
        queries = embed(self.net, batches())
        bank = embed(self.net, self._stoppable(self.bank()))
        classes = len(samples.class_names)
        metrics = ClassificationMetrics(classes, self.device)
        if len(queries.labels):
            votes = knn_votes(queries, bank, classes, self.neighbours, leave_out_own=self.bank_is_validation)
            metrics.update(votes.clamp(min=LEAST_VOTE).log(), queries.labels, queries.indices)
        self.last = of_all_processes(queries), bank
        return metrics.compute([sample.path for sample in samples.samples], samples.class_names)

    def log_validation(
        self, logger: TrainingLogger, validation: Validation, metadata: ModelMetadata, step: int
    ) -> None:
        """Show the confusion of the votes, the classes and the worst images."""
        assert isinstance(validation, ClassificationValidation)
        log_classification(logger, validation, metadata.class_names, metadata.preprocess.load, step)

    def log_end(self, logger: TrainingLogger, samples: SampleList, metadata: ModelMetadata, step: int) -> None:
        """Show the features of the newest validation's images in the projector."""
        if self.last is None:
            return
        queries, rows = self.last[0], self.last[0].indices.tolist()
        logger.embedding(
            queries.features.cpu().numpy(),
            queries.labels.tolist(),
            metadata.class_names,
            lambda row: metadata.preprocess.load(samples.samples[rows[row]].path),
            step,
        )

    def conclusions(self, samples: SampleList) -> dict[str, float]:
        """Return the accuracy of a linear probe fitted on the newest validation's features."""
        if self.last is None:
            return {}
        classes, (queries, bank) = len(samples.class_names), self.last
        if self.bank_is_validation and len(bank.labels) < FOLDS:
            return {}
        if self.bank_is_validation:
            return {f"probe, {FOLDS} folds": probe_accuracy(bank, None, classes, self.seed)}
        return {"linear probe": probe_accuracy(queries, bank, classes, self.seed)}

    def _stoppable(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.check_stop()
            yield batch

    def with_net(self, net: nn.Module) -> SimSiamTask:
        """Return the same task around another net, such as the averaged one."""
        assert isinstance(net, SimSiam)
        return SimSiamTask(
            net, self.bank, bank_is_validation=self.bank_is_validation, neighbours=self.neighbours, seed=self.seed
        )


def symmetric_loss(z1: torch.Tensor, z2: torch.Tensor, p1: torch.Tensor, p2: torch.Tensor) -> torch.Tensor:
    """Return the loss of both views' projections z and predictions p (N, P), -1 (alike) to 1; z has no gradient."""
    similarity = nn.functional.cosine_similarity
    first = similarity(p1.float(), z2.detach().float(), dim=1)  # (N,)
    second = similarity(p2.float(), z1.detach().float(), dim=1)
    return -(first.mean() + second.mean()) / 2


def embedding_std(z: torch.Tensor) -> torch.Tensor:
    """Return the mean over channels of the deviation of normalised z (N, P): near 1 / sqrt(P), 0 where collapsed."""
    return nn.functional.normalize(z.detach().float(), dim=1).std(dim=0, correction=0).mean()
