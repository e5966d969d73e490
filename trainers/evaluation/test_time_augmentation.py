"""Test-time augmentation: what a net answers to several views of an image together, measured beside its plain answer.

Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", sec. 3.5, https://arxiv.org/abs/2404.00498.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn import functional

from trainers.tasks.classification import Batch, ClassifyTask


@torch.inference_mode()
def right_answers(task: ClassifyTask, batches: Iterable[Batch], views: int) -> int:
    """Count the images whose label the mean over `views` views finds, in eval mode."""
    was_training = task.net.training
    task.net.eval()
    count = torch.zeros((), dtype=torch.int64, device=next(task.net.parameters()).device)
    for batch in batches:
        count += (mean_logits(task.predict, batch["image"], views).argmax(1) == batch["label"]).sum()
    task.net.train(was_training)
    return int(count)


def mean_logits(predict: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, views: int) -> torch.Tensor:
    """Give the mean logits (N, K) over views of images (N, C, H, W): 2, plain and mirrored; 6, and a pixel aside.

    Those a pixel up and left and a pixel down and right, whose edges are mirrored, count half as much as the middle.
    """
    middle = _both_ways(predict, images)
    if views == 2:
        return middle
    padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")  # (N, C, H + 2, W + 2)
    aside = _both_ways(predict, padded[:, :, 2:, 2:]) + _both_ways(predict, padded[:, :, :-2, :-2])
    return middle / 2 + aside / 4


def _both_ways(predict: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    return (predict(images) + predict(images.flip(3))) / 2
