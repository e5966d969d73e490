"""PIM's task: the four loss terms of fine-grained classification, and the choice of the head that predicts.

Chou, Lin & Kao 2022, sec. 3.4, https://arxiv.org/abs/2202.03822.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import nn

from artifacts.metadata import ModelMetadata
from data_loader.augment import BatchMixer
from data_loader.samples import SampleList
from nets.pim_module import HEADS, PIM, PimOutputs
from nets.support.errors import NetError
from trainers.evaluation.classification_metrics import ClassificationMetrics, ClassificationValidation
from trainers.evaluation.validation import Validation, evaluating
from trainers.tasks.base import Batch, BatchSource, Setup
from trainers.tasks.classification import ClassificationTask, loss_options


@dataclass(frozen=True)
class PimLossWeights:
    """The weight of each term of the loss; the defaults are the published ones."""

    stages: float = 0.5
    selected: float = 0.0
    dropped: float = 5.0
    combiner: float = 1.0


class PimTask(ClassificationTask):
    """Owns a PIM net and its losses.

    loss = stages * sum over stages of CE(mean of the positions' logits, y)
         + selected * sum over stages of CE(each selected position's logits, y)
         + dropped * sum over stages of MSE(tanh(dropped logits), -1)
         + combiner * CE(combiner's logits, y)
    A stage of which nothing is dropped adds 0. Cross entropies are weighted, smoothed and mixed as
    ClassificationTask's. Raises NetError where no term with the labels in it counts.
    """

    name = "pim"
    loss_names = ("loss of all terms", "val cross entropy")  # which are not alike
    net: PIM

    def __init__(
        self,
        net: PIM,
        weights: PimLossWeights,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] = (),
        mixer: BatchMixer | None = None,
    ) -> None:
        super().__init__(net, label_smoothing=label_smoothing, class_weights=class_weights, mixer=mixer)
        self.weights = weights
        if not (weights.stages or weights.selected or (weights.combiner and net.combiner is not None)):
            end = "the net has no combiner" if net.combiner is None else "so is pim_combiner_weight"
            raise NetError(f"the loss would teach no class: pim_stages_weight and pim_selected_weight are 0, and {end}")

    @classmethod
    def from_setup(cls, net: nn.Module, setup: Setup) -> Self:
        """Return the task with the config's losses. Raises NetError."""
        assert isinstance(net, PIM)
        config = setup.config
        weights = PimLossWeights(
            stages=config.pim_stages_weight,
            selected=config.pim_selected_weight,
            dropped=config.pim_dropped_weight,
            combiner=config.pim_combiner_weight,
        )
        return cls(net, weights, **loss_options(setup))

    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return the loss to minimise and its four terms, each before its weight."""
        images, targets = self.training_inputs(batch, generator)
        outputs = self.net.outputs(images)
        terms = self.loss_terms(outputs, targets)
        weights = self.weights
        loss = (
            weights.stages * terms["stages_loss"]
            + weights.selected * terms["selected_loss"]
            + weights.dropped * terms["dropped_loss"]
            + weights.combiner * terms["combiner_loss"]
        )
        return {"loss": loss, **terms}

    def loss_terms(self, outputs: PimOutputs, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the four terms for labels (N,) or probabilities (N, K)."""
        nothing = outputs.stage_logits[0].new_zeros((), dtype=torch.float32)
        stages = [self.cross_entropy(logits.mean(dim=1), targets) for logits in outputs.stage_logits]
        selected = []
        if self.weights.selected:
            for logits in outputs.selected_logits:  # (N, k, K)
                repeated = targets.repeat_interleave(logits.shape[1], dim=0)  # (N k,) or (N k, K)
                selected.append(self.cross_entropy(logits.flatten(0, 1), repeated))
        dropped = [(torch.tanh(x.float()) + 1).square().mean() for x in outputs.dropped_logits if x.shape[1]]
        combined = outputs.combiner_logits
        return {
            "stages_loss": sum(stages, nothing),
            "selected_loss": sum(selected, nothing),
            "dropped_loss": sum(dropped, nothing),
            "combiner_loss": nothing if combined is None else self.cross_entropy(combined, targets),
        }

    @torch.inference_mode()
    def validate(self, batches: BatchSource, samples: SampleList) -> ClassificationValidation:
        """Measure every head in eval mode on this process's part; the result is that of the best one, named in it.

        Of equal heads the one that comes first in HEADS wins, all of them together before each alone.
        """
        heads = [head for head in HEADS if head != "combiner" or self.net.combiner is not None]
        metrics = {head: ClassificationMetrics(len(samples.class_names), self.device) for head in heads}
        with evaluating(self.net):
            for batch in batches():
                outputs = self.net.outputs(batch["image"])
                for head in heads:
                    metrics[head].update(self.net.logits(outputs, head).float(), batch["target"], batch["index"])
        paths = [sample.path for sample in samples.samples]
        results = {head: metrics[head].compute(paths, samples.class_names) for head in heads}
        best = max(heads, key=lambda head: results[head].top1)
        return replace(results[best], head=best, head_top1={head: results[head].top1 for head in heads})

    def declare(self, metadata: ModelMetadata, validation: Validation) -> ModelMetadata:
        """Have the net predict with the head that validation found best, wherever it is built again."""
        assert isinstance(validation, ClassificationValidation)
        return replace(metadata, net={**metadata.net, "args": {**metadata.net["args"], "head": validation.head}})

    def with_net(self, net: nn.Module) -> PimTask:
        """Return the same task around another net, such as the averaged one."""
        assert isinstance(net, PIM)
        return PimTask(net, self.weights, label_smoothing=self.label_smoothing)
