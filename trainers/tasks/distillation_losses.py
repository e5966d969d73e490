"""What a net learns from its teachers' outputs. Shapes: N images, K classes, A positions of a detector."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torchvision.ops import generalized_box_iou_loss

NON_TARGET_WEIGHT = 8.0  # beta of decoupled distillation, as published for most pairs of nets (section 4)
LEAST = 1e-8  # of a probability whose logarithm is taken


def soft_labels(logits: list[Tensor], temperature: float) -> Tensor:
    """Return the mean over the teachers of their softened probabilities, like each of their logits (N, K, ...)."""
    return torch.stack([(one.float() / temperature).softmax(dim=1) for one in logits]).mean(dim=0)


def soft_cross_entropy(logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teachers || net), the mean over images and pixels; logits and soft labels (N, K, ...).

    Hinton et al. 2015, sec. 2: the square keeps the gradients' size as the temperature changes.
    """
    own = (logits.float() / temperature).log_softmax(dim=1)
    return temperature**2 * _divergence(soft, own.exp(), own).mean()


def decoupled(logits: Tensor, soft: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the decoupled loss, the mean over images; logits and soft labels (N, K), targets (N,).

    Zhao et al. 2022 (https://arxiv.org/abs/2203.08679), eq. 7 with alpha 1: how sure the teachers are of the true
    class, and, by itself and more heavily, how they see the other classes.
    """
    own = (logits.float() / temperature).softmax(dim=1)
    is_target = one_hot(targets, logits.shape[1]).bool()
    sure, unsure = (values[is_target].clamp(LEAST, 1 - LEAST) for values in (soft, own))  # (N,)
    of_target = _divergence(torch.stack([sure, 1 - sure], 1), torch.stack([unsure, 1 - unsure], 1))
    others, own_others = (
        values.masked_fill(is_target, 0) / (1 - values[is_target]).clamp(min=LEAST)[:, None] for values in (soft, own)
    )
    of_others = _divergence(others, own_others)
    return temperature**2 * (of_target + NON_TARGET_WEIGHT * of_others).mean()


def imitated_boxes(outputs: Tensor, teachers: list[Tensor]) -> Tensor:
    """Return the loss of rows (N, A, 4 + K), boxes and logits of the classes, beside the teachers', a mean over images.

    Their mean scores are learnt where the net differs, as in the focal loss of hard labels, and their mean boxes by
    GIoU where they are sure of an object. An image's terms are divided by the sum of its own scores, at least 1.
    """
    boxes, logits = outputs[:, :, :4].float(), outputs[:, :, 4:].float()
    scores = torch.stack([one[:, :, 4:].float().sigmoid() for one in teachers]).mean(dim=0)  # (N, A, K)
    aims = torch.stack([one[:, :, :4].float() for one in teachers]).mean(dim=0)  # (N, A, 4)
    weight = (scores - logits.detach().sigmoid()) ** 2
    of_classes = (weight * binary_cross_entropy_with_logits(logits, scores, reduction="none")).sum(dim=(1, 2))
    sure = scores.amax(dim=2)  # (N, A)
    of_boxes = (generalized_box_iou_loss(boxes.flatten(0, 1), aims.flatten(0, 1)).view_as(sure) * sure).sum(dim=1)
    mean: Tensor = ((of_classes + of_boxes) / sure.sum(dim=1).clamp(min=1.0)).mean()
    return mean


def _divergence(soft: Tensor, own: Tensor, log_own: Tensor | None = None) -> Tensor:
    """Return KL(soft || own) along the classes of (N, K, ...)."""
    log_own = own.clamp(min=LEAST).log() if log_own is None else log_own
    return (soft * (soft.clamp(min=LEAST).log() - log_own)).sum(dim=1)
