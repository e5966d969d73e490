"""Losses of segmentation: a value for each image, from the pixels that count.

In shapes N is the batch, K the classes. A mean over the images of a batch adds up over accumulated batches and over
processes; Dice or Jaccard over a whole batch would not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from data_loader.mask_classes import VOID

PixelLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits (N, K, H, W) and masks (N, H, W) to (N,)


def segmentation_loss(name: str, class_weights: Sequence[float] = ()) -> PixelLoss:
    """Return the loss that `name` names: one of LOSSES, or a sum such as "cross_entropy+dice".

    It takes logits (N, K, H, W) and masks uint8 (N, H, W), 255 ignored, and returns float32 (N,). `class_weights` are
    cross entropy's. Raises ValueError for another name.
    """
    names = name.split("+")
    if unknown := [part for part in names if part not in LOSSES]:
        raise ValueError(f'a loss must be one of {", ".join(LOSSES)} or a sum of them, got "{unknown[0]}"')

    def loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        weights = torch.tensor(class_weights, device=logits.device) if class_weights else None
        logits = logits.float()
        return torch.stack([LOSSES[part](logits, masks, weights) for part in names]).sum(dim=0)

    return loss


def cross_entropy(logits: torch.Tensor, masks: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean over an image's pixels of w[y] * CE (N,), 0 where no pixel counts.

    Unlike `F.cross_entropy(weight=...)` the mean is over pixels, not over weights.
    """
    losses = functional.cross_entropy(logits, masks.long(), class_weights, ignore_index=VOID, reduction="none")
    counted = (masks != VOID).sum(dim=(1, 2)).clamp(min=1)  # (N,)
    return losses.sum(dim=(1, 2)) / counted


def dice(logits: torch.Tensor, masks: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return 1 - 2 sum(p g) / (sum(p) + sum(g)), its mean over the classes of an image (N,), 0 where it has none.

    Milletari et al. 2016, "V-Net", https://arxiv.org/abs/1606.04797, section 3, without its squares. `class_weights`
    are not used: every class counts the same already.
    """
    scores, truth = _scores_and_truth(logits, masks)  # (N, K, P) each
    sizes = truth.sum(dim=2)  # (N, K)
    losses = 1 - 2 * (scores * truth).sum(dim=2) / (scores.sum(dim=2) + sizes).clamp(min=1e-6)
    return _mean_over_present(losses, sizes)


def lovasz(logits: torch.Tensor, masks: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the Lovász-softmax loss (N,), its mean over the classes of an image, 0 where it has none.

    Berman, Triki & Blaschko 2018, https://arxiv.org/abs/1705.08790, eq. 9 and 12, image by image: the convex surrogate
    of 1 - IoU. `class_weights` are not used.
    """
    scores, truth = _scores_and_truth(logits, masks)  # (N, K, P) each
    errors, order = (scores - truth).abs().sort(dim=2, descending=True)  # eq. 8; ignored pixels have 0 and stand last
    with torch.no_grad():
        hits = truth.gather(2, order)
        sizes = truth.sum(dim=2)  # (N, K)
        left = sizes.unsqueeze(2) - hits.cumsum(dim=2)  # intersection, where the pixels up to here are wrong
        union = sizes.unsqueeze(2) + (1 - hits).cumsum(dim=2)
        jaccard = 1 - left / union.clamp(min=1)
        steps = torch.diff(jaccard, dim=2, prepend=torch.zeros_like(jaccard[:, :, :1]))  # algorithm 1
    return _mean_over_present((errors * steps).sum(dim=2), sizes)


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "lovasz": lovasz,
}


def _scores_and_truth(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmaxes and one-hot masks, float32 (N, K, H * W), both 0 where a pixel is ignored."""
    counted = (masks != VOID).flatten(1).unsqueeze(1)  # (N, 1, P)
    labels = masks.long().flatten(1).masked_fill(~counted.squeeze(1), 0)  # (N, P)
    truth = functional.one_hot(labels, logits.shape[1]).transpose(1, 2)  # (N, P, K) to (N, K, P)
    return logits.softmax(dim=1).flatten(2) * counted, (truth * counted).to(logits.dtype)


def _mean_over_present(losses: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return the mean (N,) of losses (N, K) over the classes with pixels, whose numbers are (N, K)."""
    present = sizes > 0
    return (losses * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
