"""Losses of segmentation against values worked out by hand, and against counts."""

from __future__ import annotations

import math

import pytest
import torch

from data_loader.mask_classes import VOID
from trainers.tasks.segmentation_losses import LOSSES, segmentation_loss

# Two pixels: scores (3/4, 1/4) of class 0, (1/2, 1/2) of class 1.
LOGITS = torch.tensor([[[[math.log(3), 0.0]], [[0.0, 0.0]]]])
MASKS = torch.tensor([[[0, 1]]], dtype=torch.uint8)
CROSS_ENTROPY = (math.log(4 / 3) + math.log(2)) / 2
DICE = (1 / 3 + 3 / 7) / 2  # class 0: 1 - (2 * 3/4) / (5/4 + 1); class 1: 1 - (2 * 1/2) / (3/4 + 1)
# Class 0: errors 1/2 (another class) and 1/4, each adds 1/2 to the Jaccard loss: 3/8. Class 1: its own pixel's error
# of 1/2 comes first and adds all of it: 1/2.
LOVASZ = (3 / 8 + 1 / 2) / 2


@pytest.mark.parametrize(("name", "expected"), [("cross_entropy", CROSS_ENTROPY), ("dice", DICE), ("lovasz", LOVASZ)])
def test_loss_has_the_value_worked_out_by_hand(name: str, expected: float) -> None:
    loss = segmentation_loss(name)
    assert loss(LOGITS, MASKS).tolist() == pytest.approx([expected])
    # A third, ignored pixel changes nothing, whatever the net thinks of it.
    more = torch.cat([LOGITS, torch.tensor([[[[-5.0]], [[9.0]]]])], dim=3)
    masks = torch.cat([MASKS, torch.full((1, 1, 1), VOID, dtype=torch.uint8)], dim=2)
    more.requires_grad_()
    value = loss(more, masks)
    assert value.tolist() == pytest.approx([expected])
    value.sum().backward()
    assert more.grad is not None
    assert not more.grad[..., 2].any()
    assert more.grad[..., :2].any()


def test_class_weights_scale_the_pixels_of_a_class() -> None:
    loss = segmentation_loss("cross_entropy", [1.0, 3.0])
    assert loss(LOGITS, MASKS).tolist() == pytest.approx([(math.log(4 / 3) + 3 * math.log(2)) / 2])


def test_a_sum_of_losses_adds_them() -> None:
    loss = segmentation_loss("cross_entropy+dice+lovasz")
    assert loss(LOGITS, MASKS).tolist() == pytest.approx([CROSS_ENTROPY + DICE + LOVASZ])


@pytest.mark.parametrize("name", LOSSES)
def test_each_image_has_its_own_loss_and_one_without_pixels_none(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, generator=generator).requires_grad_()
    masks = torch.randint(0, 4, (3, 5, 6), generator=generator, dtype=torch.uint8)
    masks[1] = VOID
    loss = segmentation_loss(name)
    losses = loss(logits, masks)
    each = [loss(logits[i : i + 1], masks[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(losses, torch.cat(each))
    assert losses[1] == 0 < losses[0]
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_lovasz_of_certain_predictions_is_one_minus_iou() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(0, 3, (1, 8, 8), generator=generator, dtype=torch.uint8)  # class 3 is absent
    masks[0, 0, :4] = VOID
    predicted = torch.randint(0, 4, (1, 8, 8), generator=generator)
    logits = torch.nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2) * 200.0
    ious = []
    for label in range(3):
        pairs = [
            (t, p) for t, p in zip(masks.flatten().tolist(), predicted.flatten().tolist(), strict=True) if t != 255
        ]
        both, either = (sum(rule((t == label, p == label)) for t, p in pairs) for rule in (all, any))
        ious.append(both / either)
    assert segmentation_loss("lovasz")(logits, masks).item() == pytest.approx(1 - sum(ious) / 3, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_right_net_has_no_loss(name: str) -> None:
    masks = torch.tensor([[[0, 1, 2], [2, VOID, 0]]], dtype=torch.uint8)
    logits = torch.nn.functional.one_hot(masks.long() % 255, 4).permute(0, 3, 1, 2) * 100.0
    assert segmentation_loss(name)(logits, masks).item() == pytest.approx(0, abs=1e-6)


def test_an_unknown_loss_is_told() -> None:
    with pytest.raises(ValueError, match=r'one of cross_entropy, dice, lovasz or a sum of them, got "focal"'):
        segmentation_loss("dice+focal")
