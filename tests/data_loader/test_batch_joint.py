"""Views of a batch of images with masks: both move together, and are distributed as those of one sample at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_loader.augment import AugmentSettings
from data_loader.batch_augment import BatchViewsError
from data_loader.batch_crops import nearest_crops
from data_loader.batch_joint import JointBatchViews
from data_loader.joint_view import JointView
from data_loader.mask_classes import VOID
from data_loader.preprocess import Preprocess
from tests.helpers.augmented import compare

SIDE, DRAWS = 32, 1000
MOVES = AugmentSettings(
    random_crop_scale=(0.4, 1.0),
    random_crop_ratio=(0.75, 4 / 3),
    horizontal_flip=0.3,
    vertical_flip=0.2,
    quarter_turns=True,
    translate=0.2,
)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Return an image uint8 (SIDE, SIDE, 3) of five shades, and the mask (SIDE, SIDE) of the shades' numbers."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:12], mask[20:, :9], mask[14:18, 16:], mask[5:9, 3:20] = 1, 2, 3, 4
    return np.repeat(mask[:, :, None] * 50 + 25, 3, axis=2), mask


def batch(count: int, images: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (count, 3 * images, SIDE, SIDE), of a pair twice the same, and (count, SIDE, SIDE)."""
    pixels, mask = scene()
    one = torch.from_numpy(pixels).permute(2, 0, 1).repeat(images, 1, 1)
    return one.expand(count, -1, -1, -1).contiguous(), torch.from_numpy(mask).expand(count, -1, -1).contiguous()


def test_nearest_crops_are_pillows() -> None:
    """But where a pixel's middle lies on the line between two others: Pillow's sums take either."""
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 256, (40, 37, 51), dtype=np.uint8)
    tops, lefts = generator.integers(0, 20, (2, 40))
    heights, widths = generator.integers(1, 17, 40), generator.integers(1, 31, 40)
    flips = generator.random((2, 40)) < 0.5
    boxes = torch.tensor(np.stack([tops, lefts, heights, widths], 1)).float()
    mirrored, upside_down = (torch.tensor(flip) for flip in flips)
    got = nearest_crops(torch.from_numpy(masks), boxes, mirrored, upside_down, (24, 20)).numpy()
    for row, mask in enumerate(masks):
        left, top = int(lefts[row]), int(tops[row])
        crop = Image.fromarray(mask).crop((left, top, left + int(widths[row]), top + int(heights[row])))
        expected = np.asarray(crop.resize((20, 24), Image.Resampling.NEAREST))
        expected = expected[:, ::-1] if flips[0, row] else expected
        expected = expected[::-1] if flips[1, row] else expected
        places = np.ix_(*(off_lines(size, int(n[row])) for size, n in ((24, heights), (20, widths))))
        assert np.array_equal(got[row][places], expected[places])


def off_lines(size: int, extent: int) -> np.ndarray:
    """Return the pixels of a resize of `extent` to `size` whose middles lie on no line, symmetric for a flip."""
    is_on = (2 * np.arange(size) + 1) * extent % (2 * size) == 0
    return np.flatnonzero(~(is_on | is_on[::-1]))


@pytest.mark.parametrize("images", [1, 2])
def test_images_and_masks_move_together(images: int) -> None:
    torch.manual_seed(0)
    for settings, least in ((replace(MOVES, random_crop_scale=(1, 1), random_crop_ratio=(1, 1)), 1.0), (MOVES, 0.8)):
        views, masks = JointBatchViews(settings, images).of_batch(*batch(60, images))
        assert views.shape == (60, 3 * images, SIDE, SIDE) and masks.shape == (60, SIDE, SIDE)
        expected = torch.where(masks == VOID, 0, masks * 50 + 25)[:, None]  # black beside the image
        assert (views == expected).float().mean() >= least
        assert len(torch.unique(masks.flatten(1), dim=0)) > (15 if least == 1 else 50)


def shares(masks: torch.Tensor) -> dict[str, np.ndarray]:
    """Statistics (N,) of masks (N, H, W), at least one for each way of moving."""
    numbers: dict[str, np.ndarray] = {}
    for label in (0, 1, 2, 3, 4, VOID):
        is_label = (masks == label).float()
        left, top = is_label[:, :, : SIDE // 2].sum((1, 2)), is_label[:, : SIDE // 2].sum((1, 2))
        numbers[f"pixels of {label}"] = is_label.sum((1, 2)).numpy()
        numbers[f"{label} left"], numbers[f"{label} above"] = left.numpy(), top.numpy()
    return numbers


@pytest.mark.parametrize("turns", [True, False])
def test_views_are_distributed_as_those_of_one_sample(turns: bool) -> None:
    settings = replace(MOVES, quarter_turns=turns)
    torch.manual_seed(12)
    pixels, mask = scene()
    view = JointView(Preprocess(SIDE, SIDE), settings)
    single = [view([Image.fromarray(pixels)], Image.fromarray(mask))[1] for _ in range(DRAWS)]
    _, masks = JointBatchViews(settings).of_batch(*batch(DRAWS))
    compare(shares(torch.from_numpy(np.stack(single))), shares(masks))


@pytest.mark.parametrize(
    "changes", [{"horizontal_flip": 0.9}, {"vertical_flip": 0.6}, {"translate": 0.0}, {"random_crop_scale": (0.8, 1.0)}]
)
def test_another_distribution_would_be_seen(changes: dict[str, Any]) -> None:
    torch.manual_seed(2)
    still = replace(MOVES, quarter_turns=False)
    found = [shares(JointBatchViews(each).of_batch(*batch(DRAWS))[1]) for each in (still, replace(still, **changes))]
    with pytest.raises(AssertionError, match="differ"):
        compare(*found)


def test_each_image_of_a_pair_has_its_own_colours() -> None:
    torch.manual_seed(3)
    images, masks = batch(50, 2)
    views, same = JointBatchViews(AugmentSettings(color_jitter=(0.5, 0.5, 0.5, 0.1)), 2).of_batch(images, masks)
    before, after = views.float().mean((2, 3)).chunk(2, dim=1)
    assert torch.equal(same, masks) and ((before - after).abs().sum(1) > 1).float().mean() > 0.9
    assert (views != images).float().mean() > 0.9


def test_a_seed_gives_the_same_views_and_alternating_flips_their_turn() -> None:
    images, masks = batch(8)
    drawn = []
    for _ in range(2):
        torch.manual_seed(4)
        drawn.append(JointBatchViews(MOVES).of_batch(images, masks))
    assert all(torch.equal(first, second) for first, second in zip(*drawn, strict=True))
    mirrored = torch.arange(8) % 2 == 0
    views, moved = JointBatchViews(AugmentSettings(horizontal_flip_alternates=True)).of_batch(images, masks, mirrored)
    assert torch.equal(moved[::2], masks[::2].flip(2)) and torch.equal(moved[1::2], masks[1::2])
    assert torch.equal(views[::2], images[::2].flip(3))


def test_what_takes_one_sample_at_a_time_is_refused() -> None:
    sentence = r'balanced_crops and copy_paste: for one image at a time; set augment_on to "cpu"'
    with pytest.raises(BatchViewsError, match=sentence):
        JointBatchViews(AugmentSettings(balanced_crops=0.5, copy_paste=0.5))
