"""The base of the tasks that learn classes from images without labels, too."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from trainers.tasks.classification import ClassificationTask


class SemiSupervisedTask(ClassificationTask):
    """A classification task whose batches have "unlabelled", (2 M, C, H, W): a weak and a strong view of an image."""

    @abstractmethod
    def guesser(self, validated: nn.Module) -> tuple[nn.Module, Tensor]:
        """Return the net whose answers are pseudo-labels, and from which score on they are, for each class (K,)."""
