"""Views of images and mask together: they stay on each other to the pixel, and follow from their key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_loader.augment import AugmentSettings, TrainingView, seeded
from data_loader.joint_view import JointView
from data_loader.mask_classes import VOID
from data_loader.preprocess import Preprocess

MOVES: dict[str, Any] = {
    "random_crop_scale": (0.2, 0.9),
    "random_crop_ratio": (0.7, 1.4),
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "quarter_turns": True,
}


def indices_of(seed: int, shape: tuple[int, int] = (90, 70)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, shape).astype(np.uint8)


def views_of(
    settings: AugmentSettings, count: int, *, images: int = 1, resize: str = "squash", **more: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return views of images whose channels are 50 times their mask."""
    preprocess = Preprocess(32, 32, 3 * images, resize=resize, interpolation="nearest", images=images)
    view, made = JointView(preprocess, settings), []
    for number in range(count):
        indices = more.get("indices", indices_of(number))
        pixels = Image.fromarray(np.dstack([indices * 50] * 3))
        with seeded(0, 1, number):
            made.append(view([pixels] * images, Image.fromarray(indices), False))
    return made


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("images", [1, 2])
def test_images_and_mask_move_together_to_the_pixel(resize: str, images: int) -> None:
    for pixels, mask in views_of(AugmentSettings(**MOVES), 30, images=images, resize=resize):
        assert pixels.shape == (32, 32, 3 * images) and mask.shape == (32, 32)
        inside = mask != VOID
        for channel in range(3 * images):
            np.testing.assert_array_equal(pixels[:, :, channel][inside], mask[inside] * 50)
        assert resize == "letterbox" or inside.all()


def test_every_way_round_is_drawn() -> None:
    """Of an image with four corners of four classes, all eight positions of a square come about equally often."""
    indices = np.kron(np.array([[0, 1], [2, 3]]), np.ones((20, 20))).astype(np.uint8)
    settings = AugmentSettings(horizontal_flip=0.5, quarter_turns=True)
    made = [mask[[0, 0, -1, -1], [0, -1, 0, -1]] for _, mask in views_of(settings, 400, indices=indices)]
    _, counts = np.unique(np.stack(made), axis=0, return_counts=True)
    assert len(counts) == 8 and counts.min() > 25  # 50 each; 25 is 3.8 deviations below


def test_quarter_turns_of_an_image_with_a_label() -> None:
    corners = np.kron(np.array([[0, 80], [160, 240]]), np.ones((16, 16))).astype(np.uint8)
    view, seen = TrainingView(Preprocess(32, 32), AugmentSettings(quarter_turns=True)), []
    for number in range(200):
        with seeded(0, 1, number):
            pixels = view(Image.fromarray(np.dstack([corners] * 3)))
        seen.append(tuple(pixels[[0, 0, -1, -1], [0, -1, 0, -1], 0].tolist()))
    turns = [(0, 80, 160, 240), (80, 240, 0, 160), (240, 160, 80, 0), (160, 0, 240, 80)]
    counts = [seen.count(turn) for turn in turns]
    assert sum(counts) == 200 and min(counts) > 25  # 50 each; 25 is 4 deviations below


def test_turning_and_shifting_fill_the_mask_with_void() -> None:
    indices = np.kron(indices_of(0, (4, 4)), np.ones((25, 25))).astype(np.uint8)
    settings = AugmentSettings(rotation_degrees=40, translate=0.2)
    for pixels, mask in views_of(settings, 20, indices=indices):
        inside = mask != VOID
        assert 0.4 < inside.mean() < 1
        same = pixels[:, :, 0][inside] == mask[inside] * 50  # images are turned bilinearly
        assert same.mean() > 0.7


def test_colours_change_each_date_by_itself_and_never_the_mask() -> None:
    settings = AugmentSettings(color_jitter=(0.5, 0.5, 0.0, 0.0), random_crop_scale=(0.5, 0.5))
    plain = AugmentSettings(random_crop_scale=(0.5, 0.5))
    coloured, same = views_of(settings, 8, images=2), views_of(plain, 8, images=2)
    for (pixels, mask), (_, expected) in zip(coloured, same, strict=True):
        np.testing.assert_array_equal(mask, expected)
        assert not np.array_equal(pixels[:, :, :3], pixels[:, :, 3:])
        for date in (pixels[:, :, 0], pixels[:, :, 3]):  # still one grey for each class
            assert all(len(np.unique(date[mask == label])) == 1 for label in np.unique(mask))


def test_a_view_follows_from_its_key_alone() -> None:
    settings = AugmentSettings(**MOVES, rotation_degrees=20, color_jitter=(0.3, 0.3, 0.3, 0.1), balanced_crops=0.5)
    first = views_of(settings, 6)
    torch.rand(17)
    for (pixels, mask), (again, mask_again) in zip(first, views_of(settings, 6), strict=True):
        np.testing.assert_array_equal(pixels, again)
        np.testing.assert_array_equal(mask, mask_again)
    assert not np.array_equal(first[0][0], first[1][0])


@pytest.mark.parametrize("images", [1, 2])
def test_half_the_classes_of_another_image_are_pasted_with_their_mask(images: int) -> None:
    view = JointView(
        Preprocess(32, 32, 3 * images, resize="squash", interpolation="nearest", images=images),
        AugmentSettings(**MOVES, copy_paste=1.0),
    )
    base = indices_of(0) % 2  # classes 0 and 1
    other = indices_of(1)  # 0 to 4
    other[other < 2] = VOID  # which is never pasted
    coded = np.where(other == VOID, 0, other * 50).astype(np.uint8)
    parts = [
        ([Image.fromarray(np.dstack([pixels] * 3))] * images, Image.fromarray(mask))
        for pixels, mask in (((base * 50).astype(np.uint8), base), (coded, other))
    ]
    pairs = set()
    for number in range(40):
        with seeded(0, 1, number):
            pixels, mask = view.joined(parts, False)
            np.testing.assert_array_equal(pixels, np.dstack([mask * 50] * (3 * images)))
        classes = set(np.unique(mask).tolist())
        assert classes & {0, 1} and len(classes & {2, 3, 4}) == 2  # of three classes two
        pairs.add(frozenset(classes & {2, 3, 4}))
    assert len(pairs) == 3


def test_so_many_views_are_pasted_onto() -> None:
    preprocess = Preprocess(32, 32, 3)
    half = JointView(preprocess, AugmentSettings(copy_paste=0.5))
    drawn = []
    for number in range(400):
        with seeded(0, 1, number):
            drawn.append(half.partners(0, 7))
    others = [place for found in drawn for place in found]
    assert 150 < len(others) < 250 and set(others) == set(range(7))
    assert JointView(preprocess, AugmentSettings()).partners(0, 7) == []


def test_balanced_crops_find_the_rare_class() -> None:
    indices = np.zeros((200, 200), np.uint8)
    indices[150:153, 20:23] = 4
    crop = {"random_crop_scale": (0.02, 0.02), "random_crop_ratio": (1.0, 1.0)}
    shares = []
    for balanced in (0.0, 1.0):
        made = views_of(AugmentSettings(**crop, balanced_crops=balanced), 60, indices=indices)
        shares.append(np.mean([bool((mask == 4).any()) for _, mask in made]))
    assert shares[0] < 0.15 and 0.3 < shares[1] < 0.75  # half around it, half around the ground


def test_images_decoded_at_half_their_size_give_the_same_part() -> None:
    indices = np.kron(indices_of(3, (6, 6)), np.ones((32, 32))).astype(np.uint8)  # 192 x 192
    preprocess = Preprocess(32, 32, interpolation="nearest")
    view = JointView(preprocess, AugmentSettings(**MOVES))
    half = Image.fromarray(np.dstack([indices * 50] * 3)).resize((96, 96), Image.Resampling.NEAREST)
    for number in range(20):
        with seeded(0, 1, number):
            pixels, mask = view([half], Image.fromarray(indices))
        assert (pixels[:, :, 0] == mask * 50).mean() > 0.9  # but for pixels beside an edge
