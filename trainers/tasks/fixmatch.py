"""FixMatch: where the net is sure of an image without a label, it learns to say the same of a strongly changed view."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainers.runtime.distributed import sum_over_processes
from trainers.tasks.base import Batch, Setup
from trainers.tasks.classification import loss_options
from trainers.tasks.semi_supervised import SemiSupervisedTask

DECAY = 0.999  # of the thresholds' averages, as published


class Thresholds(nn.Module):
    """How sure a net must be of each class: one threshold for all, or 0 for those that follow the net (SAT).

    Self-adaptive thresholding, Wang et al. 2023 (https://arxiv.org/abs/2205.07246), eq. 5 to 7: the mean highest score
    of all images, times how much of the scores a class gets beside the class that gets most; so a class that is hard to
    learn has a lower one. Both are averages over the steps, which start at 1 / K. The average's decay starts lower, as
    that of the weights does, for a training is shorter here than the published ones.
    """

    def __init__(self, num_classes: int, fixed: float = 0.0) -> None:
        super().__init__()
        self.fixed = fixed
        self.sure: Tensor
        self.shares: Tensor
        self.updates: Tensor
        self.register_buffer("sure", torch.tensor(1 / num_classes))
        self.register_buffer("shares", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("updates", torch.tensor(0))

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """Move the averages by a batch's scores (M, K) of images without labels, those of all processes."""
        sums = torch.cat([scores.amax(dim=1).sum()[None], scores.sum(dim=0), scores.new_tensor([len(scores)])])
        sums = sum_over_processes(sums)
        means = sums[:-1] / sums[-1]
        count = int(self.updates)
        share = 1 - min(DECAY, (1 + count) / (10 + count))
        self.sure.lerp_(means[0], share)
        self.shares.lerp_(means[1:], share)
        self.updates += 1

    def of_classes(self) -> Tensor:
        """Return the least score of each class, (K,)."""
        if self.fixed:
            return torch.full_like(self.shares, self.fixed)
        return self.sure * self.shares / self.shares.max()


class FixMatchTask(SemiSupervisedTask):
    """Owns a classifier that learns from labels and, of images without, from its own answers that are sure.

    The loss is the labels' plus weight times the mean over all images without label of CE(strong view, the weak view's
    class), 0 where the weak view's score is below its class's threshold. Sohn et al. 2020, Algorithm 1
    (https://arxiv.org/abs/2001.07685).
    """

    companion: Thresholds

    def __init__(self, net: nn.Module, thresholds: Thresholds, *, weight: float = 1.0, **options: Any) -> None:
        super().__init__(net, **options)
        self.companion, self.weight = thresholds, weight

    @classmethod
    def from_setup(cls, net: nn.Module, setup: Setup) -> Self:
        """Return the task with the config's loss and thresholds."""
        config = setup.config
        thresholds = Thresholds(config.num_classes, config.fixmatch_threshold)
        options = {**loss_options(setup), "test_time_views": config.test_time_views}
        return cls(net, thresholds, weight=config.fixmatch_weight, **options)

    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, Tensor]:
        """Return {"loss": ..., "of_pseudo_labels": their loss, "pseudo_labelled": the share of images with one}."""
        images, targets = self.training_inputs(batch, generator)
        weak, strong = batch["unlabelled"][0::2], batch["unlabelled"][1::2]
        with torch.no_grad():
            scores = self.net(weak).float().softmax(dim=1)  # (M, K)
        self.companion.update(scores)
        score, guess = scores.max(dim=1)
        is_sure = (score >= self.companion.of_classes()[guess]).float()
        logits, on_strong = self.net(torch.cat([images, strong])).split([len(images), len(strong)])
        term = (cross_entropy(on_strong.float(), guess, reduction="none") * is_sure).mean()
        loss = self.cross_entropy(logits, targets) + self.weight * term
        return {"loss": loss, "of_pseudo_labels": term, "pseudo_labelled": is_sure.mean()}

    def guesser(self, validated: nn.Module) -> tuple[nn.Module, Tensor]:
        """Return the net that is validated, and the thresholds (K,)."""
        return validated, self.companion.of_classes()
