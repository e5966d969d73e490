"""The loss of boxes and classes, with targets that follow from the predictions themselves.

Task alignment learning (TOOD: Feng et al. 2021, https://arxiv.org/abs/2108.07755): section 3.2.1 chooses the positions
that learn an object, section 3.2.2 how much. In shapes N is the batch, M its padded objects, A the positions of the
net, K the classes; boxes are left, top, right, bottom in pixels of the net's input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

MOST_POSITIONS = 13  # of an object (section 4.1: m)
ALPHA, BETA = 1.0, 6.0  # powers of score and IoU in the alignment (section 4.1)
GAMMA = 2.0  # of the focal weight (section 3.2.2)
BOX_WEIGHT = 2.0  # of the boxes beside the classes


class Assignment(NamedTuple):
    """What each position is to learn: a box (N, A, 4), a score for each class (N, A, K), and whether it counts (N, A).

    The scores of a position that learns no object are 0; one in an ignored object does not count.
    """

    boxes: Tensor
    scores: Tensor
    counts: Tensor


def unpacked(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (N, M, 4) float32, labels (N, M) int64 and ignored (N, M) bool of a batch (N, M, 6).

    Rows of padding have boxes and labels of -1, and are not ignored.
    """
    return target[:, :, :4], target[:, :, 4].long(), target[:, :, 5] > 0.5


def detection_losses(outputs: Tensor, target: Tensor, points: Tensor) -> dict[str, Tensor]:
    """Return the losses (N,) of each image by itself: "loss" and its terms "class_loss" and "box_loss".

    outputs (N, A, 4 + K), target (N, M, 6) as `BoxTarget` collates it, points (A, 3) as `anchor_points` gives them.
    An image's terms are divided by the sum of its own target scores, or by 1 where that is less: accumulated batches
    and several processes add up to the big batch.
    """
    outputs = outputs.float()
    boxes, logits = outputs[:, :, :4], outputs[:, :, 4:]
    aims = assigned(boxes.detach(), logits.detach().sigmoid(), target, points)
    weight = (aims.scores - logits.detach().sigmoid()).abs() ** GAMMA * aims.counts[:, :, None]
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, aims.scores, reduction="none")
    quality = aims.scores.sum(dim=2)  # (N, A)
    divisor = quality.sum(dim=1).clamp(min=1.0)  # (N,)
    of_boxes: Tensor = complete_box_iou_loss(boxes.flatten(0, 1), aims.boxes.flatten(0, 1))  # (N * A,)
    class_loss = (weight * entropy).sum(dim=(1, 2)) / divisor
    box_loss = BOX_WEIGHT * (of_boxes.view_as(quality) * quality).sum(dim=1) / divisor
    return {"loss": class_loss + box_loss, "class_loss": class_loss, "box_loss": box_loss}


@torch.no_grad()
def assigned(boxes: Tensor, scores: Tensor, target: Tensor, points: Tensor) -> Assignment:
    """Return what each position is to learn from its box (N, A, 4) and scores (N, A, K); see the module."""
    truths, labels, ignored = unpacked(target)
    is_object = (labels >= 0) & ~ignored  # (N, M)
    overlaps = pairwise_iou(truths, boxes)  # (N, M, A)
    of_class = scores.gather(2, labels.clamp(min=0)[:, None, :].expand(-1, scores.shape[1], -1)).transpose(1, 2)
    alignment = of_class**ALPHA * overlaps**BETA  # (N, M, A)
    candidates = _near(truths, points) & is_object[:, :, None]
    ranked = torch.where(candidates, alignment, -1.0)
    best = ranked.topk(min(MOST_POSITIONS, ranked.shape[2]), dim=2).indices  # (N, M, 13)
    chosen = torch.zeros_like(candidates).scatter_(2, best, True) & candidates
    # A position of several objects learns the one that its box overlaps most.
    first = torch.where(chosen, overlaps, -1.0).argmax(dim=1, keepdim=True)  # (N, 1, A)
    chosen &= torch.zeros_like(chosen).scatter_(1, first, True)
    alignment, overlaps = alignment * chosen, overlaps * chosen
    highest = alignment.amax(dim=2, keepdim=True).clamp(min=torch.finfo(alignment.dtype).tiny)
    aligned = alignment / highest * overlaps.amax(dim=2, keepdim=True)  # (N, M, A)
    learns = chosen.any(dim=1)  # (N, A)
    owner = first[:, 0]  # (N, A)
    of_owner = truths.gather(1, owner[:, :, None].expand(-1, -1, 4))
    aims = torch.zeros_like(scores)
    aims.scatter_(2, labels.clamp(min=0).gather(1, owner)[:, :, None], aligned.sum(dim=1)[:, :, None])
    in_ignored = (_inside(truths, points) & ignored[:, :, None]).any(dim=1)
    return Assignment(torch.where(learns[:, :, None], of_owner, boxes), aims, learns | ~in_ignored)


def pairwise_iou(truths: Tensor, boxes: Tensor) -> Tensor:
    """Return intersection over union (N, M, A) of truths (N, M, 4) and boxes (N, A, 4)."""
    corners = torch.minimum(truths[:, :, None, 2:], boxes[:, None, :, 2:])  # (N, M, A, 2)
    sides = (corners - torch.maximum(truths[:, :, None, :2], boxes[:, None, :, :2])).clamp(min=0)
    common = sides[..., 0] * sides[..., 1]  # (N, M, A)
    areas = [(x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (truths, boxes)]
    union = areas[0][:, :, None] + areas[1][:, None, :] - common
    return common / union.clamp(min=1e-9)


def _near(truths: Tensor, points: Tensor) -> Tensor:
    """Return whether each position (A,) lies in each box (N, M, 4), or within half a stride of its middle.

    So every object has a position on every map, however small it is: a departure from the paper.
    """
    middles, halves = (truths[:, :, :2] + truths[:, :, 2:]) / 2, (truths[:, :, 2:] - truths[:, :, :2]) / 2
    reach = torch.maximum(halves[:, :, None], points[None, None, :, 2:] / 2)  # (N, M, A, 2)
    return ((points[None, None, :, :2] - middles[:, :, None]).abs() <= reach).all(dim=3)


def _inside(truths: Tensor, points: Tensor) -> Tensor:
    x, y = points[:, 0], points[:, 1]
    left, top, right, bottom = (truths[:, :, None, side] for side in range(4))
    return (x >= left) & (x <= right) & (y >= top) & (y <= bottom)  # (N, M, A)
