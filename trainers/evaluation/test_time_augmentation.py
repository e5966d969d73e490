"""Test-time augmentation: the mean output for several views of an image, measured beside the plain output.

Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", sec. 3.5, https://arxiv.org/abs/2404.00498.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn import functional

Predict = Callable[[torch.Tensor], torch.Tensor]  # images (N, C, H, W) -> logits (N, K)


@torch.inference_mode()
def count_correct(predict: Predict, batches: Iterable[dict[str, torch.Tensor]], views: int) -> int:
    """Return the number of images whose label has the highest mean logit over `views` views."""
    counts = [(mean_logits(predict, batch["image"], views).argmax(1) == batch["target"]).sum() for batch in batches]
    return int(sum(counts))


def mean_logits(predict: Predict, images: torch.Tensor, views: int) -> torch.Tensor:
    """Return the mean logits (N, K) over views of images (N, C, H, W): 2, plain and mirrored; 6, and a pixel aside.

    Those a pixel up and left and a pixel down and right, whose edges are mirrored, count half as much as the middle.
    """
    middle = _both_ways(predict, images)
    if views == 2:
        return middle
    padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")  # (N, C, H + 2, W + 2)
    aside = _both_ways(predict, padded[:, :, 2:, 2:]) + _both_ways(predict, padded[:, :, :-2, :-2])
    return middle / 2 + aside / 4


def _both_ways(predict: Predict, images: torch.Tensor) -> torch.Tensor:
    return (predict(images) + predict(images.flip(3))) / 2
