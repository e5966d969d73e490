"""SimSiam's task: two views of an image predict each other; the guard against collapse; what the features are worth.

Chen & He 2021, https://arxiv.org/abs/2011.10566.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from nets.simsiam_module import SimSiam
from trainers.evaluation.classification_metrics import ClassificationMetrics, ValidationResult
from trainers.evaluation.feature_probes import (
    FOLDS,
    LEAST_VOTE,
    Embedded,
    embed,
    knn_votes,
    of_all_processes,
    probe_accuracy,
)
from trainers.tasks.classification import Batch, ClassifyTask

COLLAPSED = 0.3  # of the healthy standard deviation
ADVICE = (
    "all images get nearly the same embedding, nothing is being learnt: lower learning_rate, raise batch_size, "
    "keep color_jitter and random_crop_scale on, and keep batch norm in projector and predictor"
)


class SimSiamTask(ClassifyTask):
    """Owns a SimSiam net and its loss, D(p1, sg(z2)) / 2 + D(p2, sg(z1)) / 2 with D the negative cosine (eq. 1 and 2).

    Each view goes through the net by itself, so that batch norm sees one view at a time, as published. What validation
    measures is a weighted kNN over the `bank`: the training images where they are labelled, else the validation
    images themselves, each without itself (`bank_is_validation`). The loss of a validation is that of the votes.
    """

    net: SimSiam
    output = "features"
    measure = "kNN"
    views = 2

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

    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Give the loss and `embedding_std` for images (2 N, C, H, W), the views of an image side by side."""
        images = batch["image"]
        first, p1 = self.net.projections(images[0::2])
        second, p2 = self.net.projections(images[1::2])
        loss = symmetric_loss(first, second, p1, p2)
        return {"loss": loss, "embedding_std": (embedding_std(first) + embedding_std(second)) / 2}

    def shown(self, batch: Batch, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the views, an image's two side by side, with its label on both."""
        return batch["image"], batch["label"].repeat_interleave(2)

    def warning(self, terms: Mapping[str, float]) -> str:
        """Say so where the embeddings' standard deviation is far below the healthy 1 / sqrt(P)."""
        healthy = 1 / math.sqrt(self.net.projector_size)
        std = terms["embedding_std"]
        if std >= COLLAPSED * healthy:
            return ""
        return f"embedding_std is {std:.4f}, healthy is {healthy:.4f}: {ADVICE}"

    @torch.inference_mode()
    def validate(
        self, batches: Iterable[Batch], num_classes: int, paths: Sequence[str], class_names: Sequence[str]
    ) -> ValidationResult:
        """Measure the kNN accuracy on this process's part; every process gets the result of all."""
        queries = embed(self.net, batches)
        bank = embed(self.net, self._heeding(self.bank()))
        metrics = ClassificationMetrics(num_classes, self._device())
        if len(queries.labels):
            votes = knn_votes(queries, bank, num_classes, self.neighbours, leave_out_own=self.bank_is_validation)
            metrics.update(votes.clamp(min=LEAST_VOTE).log(), queries.labels, queries.indices)
        self.last = of_all_processes(queries), bank
        return metrics.compute(paths, class_names)

    def _heeding(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.heed()
            yield batch

    def embedded(self) -> Embedded | None:
        """Give the features of the newest validation's images."""
        return self.last[0] if self.last else None

    def conclusions(self, num_classes: int) -> dict[str, float]:
        """Give the accuracy of a linear probe fitted on the newest validation's features, for the report."""
        if self.last is None:
            return {}
        queries, bank = self.last
        if self.bank_is_validation and len(bank.labels) < FOLDS:
            return {}
        if self.bank_is_validation:
            return {f"probe, {FOLDS} folds": probe_accuracy(bank, None, num_classes, self.seed)}
        return {"linear probe": probe_accuracy(queries, bank, num_classes, self.seed)}

    def with_net(self, net: nn.Module) -> SimSiamTask:
        """Give the same task around another net, such as the averaged one."""
        assert isinstance(net, SimSiam)
        return SimSiamTask(
            net, self.bank, bank_is_validation=self.bank_is_validation, neighbours=self.neighbours, seed=self.seed
        )


def symmetric_loss(z1: torch.Tensor, z2: torch.Tensor, p1: torch.Tensor, p2: torch.Tensor) -> torch.Tensor:
    """Give the loss of both views' projections z and predictions p (N, P), from -1 (alike) to 1; z has no gradient."""
    similarity = nn.functional.cosine_similarity
    first = similarity(p1.float(), z2.detach().float(), dim=1)  # (N,)
    second = similarity(p2.float(), z1.detach().float(), dim=1)
    return -(first.mean() + second.mean()) / 2


def embedding_std(z: torch.Tensor) -> torch.Tensor:
    """Give the mean over channels of the deviation of normalised z (N, P): near 1 / sqrt(P), 0 where collapsed."""
    return nn.functional.normalize(z.detach().float(), dim=1).std(dim=0, correction=0).mean()
