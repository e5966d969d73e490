"""Meta pseudo labels: a student learns from a teacher's guesses alone, and the teacher from whether they help.

Pham et al. 2021, https://arxiv.org/abs/2003.10580.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainers.runtime.distributed import mean_over_processes
from trainers.tasks.base import Batch, Setup
from trainers.tasks.classification import loss_options
from trainers.tasks.semi_supervised import SemiSupervisedTask


class MplTask(SemiSupervisedTask):
    """Owns a student, which is validated and deployed, and as its companion a teacher of the same kind.

    The student learns classes that are drawn from the teacher's scores for images without label. The teacher learns the
    labels; of a strongly changed view what it says of a weak one (UDA, appendix C.2); and its own guesses, times how
    much the student's step on them lowers the student's loss on the labels: rate * (gradient of the labelled loss .
    gradient of the guesses' loss), eq. 12 with the labelled gradient before the student's step, not behind it. That is
    a plain step's gain to first order, and needs neither a second loop nor a second optimizer.
    """

    companion: nn.Module

    def __init__(
        self,
        net: nn.Module,
        teacher: nn.Module,
        num_classes: int,
        *,
        temperature: float = 0.7,
        threshold: float = 0.6,
        weight: float = 8.0,
        warmup_steps: int = 5000,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        self.companion, self.num_classes = teacher, num_classes
        self.temperature, self.threshold = temperature, threshold
        self.weight, self.warmup_steps = weight, warmup_steps

    @classmethod
    def from_setup(cls, net: nn.Module, setup: Setup) -> Self:
        """Return the task with the config's loss; the teacher starts from the same weights."""
        config = setup.config
        return cls(
            net,
            copy.deepcopy(net),
            config.num_classes,
            temperature=config.mpl_temperature,
            threshold=config.mpl_threshold,
            weight=config.mpl_unlabelled_weight,
            warmup_steps=config.mpl_warmup_steps,
            **loss_options(setup),
            test_time_views=config.test_time_views,
        )

    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, Tensor]:
        """Return {"loss": ..., "student", "teacher": their losses, "feedback": the guesses' gain for the student}."""
        images, targets = self.training_inputs(batch, generator)
        weak, strong = batch["unlabelled"][0::2], batch["unlabelled"][1::2]
        teacher = self.companion
        logits, on_strong = teacher(torch.cat([images, strong])).float().split([len(images), len(strong)])
        with torch.no_grad():
            answers = (teacher(weak).float() / self.temperature).softmax(dim=1)  # (M, K)
        is_sure = (answers.amax(dim=1) >= self.threshold).float()
        consistency = (cross_entropy(on_strong, answers, reduction="none") * is_sure).mean()
        share = min(1.0, self.step / self.warmup_steps) if self.warmup_steps else 1.0
        guesses = torch.multinomial(on_strong.detach().softmax(dim=1), 1)[:, 0]  # (M,)
        of_student, gradients = self._student_step(strong, guesses)
        gain = self.feedback(images, targets, gradients)
        of_teacher = self.cross_entropy(logits, targets) + share * self.weight * consistency
        of_teacher = of_teacher + gain * cross_entropy(on_strong, guesses)
        loss = of_student + of_teacher
        return {"loss": loss, "student": of_student, "teacher": of_teacher, "feedback": gain}

    def feedback(self, images: Tensor, targets: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Return by how much a plain step along the student's gradients lowers its loss on the labels, a scalar."""
        of_labels = torch.autograd.grad(self.cross_entropy(self.net(images), targets), self._trained())
        pairs = zip(of_labels, gradients, strict=True)
        product = torch.stack([(one.float() * other.float()).sum() for one, other in pairs]).sum()
        return mean_over_processes(self.rate * product)

    def _student_step(self, strong: Tensor, guesses: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the student's loss on guesses (M,), and its gradients, which the loss hands on when it is backward.

        They are needed twice, and so computed once: the loss has the value of the student's, and is linear in its
        parameters with these gradients.
        """
        loss = cross_entropy(self.net(strong).float(), guesses, label_smoothing=self.label_smoothing)
        trained = self._trained()
        gradients = list(torch.autograd.grad(loss, trained))
        linear = torch.stack(
            [(value * gradient).sum() for value, gradient in zip(trained, gradients, strict=True)]
        ).sum()
        return loss.detach() + linear - linear.detach(), gradients

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.net.parameters() if parameter.requires_grad]

    def guesser(self, validated: nn.Module) -> tuple[nn.Module, Tensor]:
        """Return the teacher, whose every guess is learnt: thresholds of 0, (K,)."""
        return self.companion, torch.zeros(self.num_classes, device=self.device)
