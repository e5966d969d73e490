"""Views of an image and its boxes: where the pixels of an object lie says where its box must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_loader.augment import AugmentSettings, seeded
from data_loader.box_target import Boxes, BoxTarget
from data_loader.box_view import BoxView
from data_loader.preprocess import Preprocess

SIDE = 48
MOVES: dict[str, Any] = {
    "random_crop_scale": (0.2, 0.9),
    "random_crop_ratio": (0.7, 1.4),
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "quarter_turns": True,
    "balanced_crops": 0.5,
}


def picture(seed: int, size: tuple[int, int] = (90, 70)) -> tuple[Image.Image, Boxes]:
    """Return an image with one rectangle for each colour channel, and their boxes; class k is channel k."""
    generator = np.random.default_rng(seed)
    width, height = size
    pixels, boxes = np.zeros((height, width, 3), np.uint8), []
    for channel in range(3):
        left, top = generator.integers(0, width - 30), generator.integers(0, height - 30)
        right, bottom = left + generator.integers(10, 30), top + generator.integers(10, 30)
        pixels[top:bottom, left:right, channel] = 255
        boxes.append([left, top, right, bottom])
    return Image.fromarray(pixels), Boxes(np.array(boxes, float), np.arange(3), np.zeros(3, bool), size)


def extent(pixels: np.ndarray, channel: int) -> list[float] | None:
    rows, columns = np.nonzero(pixels[:, :, channel] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def check(pixels: np.ndarray, rows: np.ndarray, tolerance: float) -> int:
    """Compare every box with the pixels of its channel; return how many there were."""
    by_label = {int(row[4]): row for row in rows}
    for channel in range(3):
        seen = extent(pixels, channel)
        if channel in by_label:
            assert seen is not None
            np.testing.assert_allclose(by_label[channel][:4], seen, atol=tolerance)
        else:  # out of the crop, but for a line of pixels
            assert seen is None or min(seen[2] - seen[0], seen[3] - seen[1]) <= 1
    return len(by_label)


def views_of(settings: AugmentSettings, count: int, resize: str = "squash", **more: Any) -> list[Any]:
    preprocess = Preprocess(SIDE, SIDE, resize=resize, interpolation="nearest")
    view, target, made = BoxView(preprocess, settings), BoxTarget(3), []
    for number in range(count):
        image, boxes = picture(number)
        with seeded(0, 1, number):
            made.append(target.apply_view(view, [image.resize(more.get("decoded", image.size))], False, boxes))
    return made


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.3, 1.0)])
def test_the_boxes_of_a_mosaic_lie_on_their_pixels(resize: str, scale: tuple[float, float]) -> None:
    """Each image has a colour of its own, so that the object of each must lie on the pixels of that colour."""
    side = 96
    settings = AugmentSettings(**{**MOVES, "random_crop_scale": scale}, mosaic=1.0)
    view = BoxView(Preprocess(side, side, resize=resize, interpolation="nearest"), settings)
    target, found, corners = BoxTarget(4), 0, set()
    for number in range(40):
        parts = []
        for label in range(4):
            pixels = np.zeros((70, 90, 3), np.uint8)
            left, top = np.random.default_rng((number, label)).integers(5, 40, 2)
            pixels[top : top + 24, left : left + 40] = 60 * (label + 1)
            boxes = np.array([[left, top, left + 40, top + 24]], float)
            parts.append(([Image.fromarray(pixels)], Boxes(boxes, np.array([label]), np.zeros(1, bool), (90, 70))))
        with seeded(0, 1, number):
            pixels, rows = target.apply_joined(view, parts, False)
        assert pixels.shape == (side, side, 3) and rows.dtype == np.float32
        for row in rows:
            ys, xs = np.nonzero(pixels[:, :, 0] == 60 * (int(row[4]) + 1))
            np.testing.assert_allclose(row[:4], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=0.501)
            found += 1
        corners.add(tuple(np.round(rows[:, :2].mean(axis=0) / side, 1)))
    assert found > 120 and len(corners) > 5


@pytest.mark.parametrize(
    ("resize", "aspect"), [("squash", 40 / 24 * 70 / 90), ("letterbox", 40 / 24), ("crop", 40 / 24)]
)
def test_a_mosaic_stretches_its_images_as_validation_does(resize: str, aspect: float) -> None:
    view = BoxView(Preprocess(96, 96, resize=resize), AugmentSettings(mosaic=1.0))
    middle = np.array([[40, 32, 50, 38, 0, 0]], np.float32)  # 10 to 6 pixels, in every crop of the middle
    for number in range(20):
        with seeded(0, 1, number):
            _, rows = view.mosaic([(Image.new("RGB", (90, 70)), middle)] * 4, False)
        assert len(rows) == 4
        np.testing.assert_allclose((rows[:, 2] - rows[:, 0]) / (rows[:, 3] - rows[:, 1]), aspect, rtol=0.05)


def test_a_mosaic_is_drawn_for_its_share_of_the_views_and_its_epochs() -> None:
    view = BoxView(Preprocess(32, 32), AugmentSettings(mosaic=0.5, mosaic_epochs=3))
    drawn = []
    for number in range(400):
        with seeded(0, 2, number):
            drawn.append(view.partners(2, 10))
    chosen = [others for others in drawn if others]
    assert 160 <= len(chosen) <= 240 and {len(others) for others in chosen} == {3}
    assert {index for others in chosen for index in others} == set(range(10))
    for epoch, share in ((3, 0), (4, 0), (0, None)):
        with seeded(0, epoch, 1):
            others = [view.partners(epoch, 10) for _ in range(50)]
        assert any(others) is (share is None)


def test_mixup_keeps_the_boxes_of_both_images_on_their_pixels() -> None:
    """One image is red alone, the other blue alone: each object lies on its colour, at one weight w and at 1 - w."""
    view = BoxView(Preprocess(96, 96, interpolation="nearest"), AugmentSettings(**MOVES, mixup_boxes=1.0))
    shares, found = [], 0
    for number in range(40):
        parts = []
        for label in range(2):
            pixels = np.zeros((70, 90, 3), np.uint8)
            left, top = np.random.default_rng((number, label)).integers(5, 40, 2)
            pixels[top : top + 24, left : left + 40, 2 * label] = 200
            boxes = np.array([[left, top, left + 40, top + 24]], float)
            parts.append(([Image.fromarray(pixels)], Boxes(boxes, np.array([label]), np.zeros(1, bool), (90, 70))))
        with seeded(0, 1, number):
            assert len(view.partners(1, 9)) == 1
            pixels, rows = BoxTarget(2).apply_joined(view, parts, False)
        with seeded(0, 1, number):
            view.partners(1, 9)
            again, _ = BoxTarget(2).apply_joined(view, parts, False)
        assert (pixels == again).all() and pixels.shape == (96, 96, 3) and not pixels[:, :, 1].any()
        weights = {}
        for row in rows:
            ys, xs = np.nonzero(pixels[:, :, 2 * int(row[4])])
            np.testing.assert_allclose(row[:4], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=0.501)
            weights[int(row[4])] = pixels[ys, xs, 2 * int(row[4])].max() / 200
            found += 1
        if len(weights) == 2:
            assert weights[0] + weights[1] == pytest.approx(1, abs=0.006)
            shares.append(weights[0])
    assert found > 50 and np.mean(shares) == pytest.approx(0.5, abs=0.15) and np.std(shares) > 0.1


def test_mixup_is_drawn_where_there_is_no_mosaic() -> None:
    """Half of the views are mosaics in the first epoch; of the rest, or later of all, a half are blends."""
    view = BoxView(Preprocess(32, 32), AugmentSettings(mosaic=0.5, mosaic_epochs=1, mixup_boxes=0.5))
    for epoch, expected in ((0, {3: 200, 1: 100, 0: 100}), (1, {3: 0, 1: 200, 0: 200})):
        counts = dict.fromkeys(expected, 0)
        for number in range(400):
            with seeded(0, epoch, number):
                counts[len(view.partners(epoch, 10))] += 1
        assert counts == {key: pytest.approx(count, abs=45 if count else 0) for key, count in expected.items()}


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_boxes_lie_on_their_pixels(resize: str) -> None:
    """To the pixel: nearest neighbour puts an edge between two of them half a pixel away at the most."""
    found = 0
    for pixels, rows in views_of(AugmentSettings(**MOVES), 60, resize):
        assert pixels.shape == (SIDE, SIDE, 3) and rows.dtype == np.float32
        found += check(pixels, rows, 0.501)
    assert found > 80


@pytest.mark.parametrize("size", [(90, 70), (71, 96), (33, 41), (200, 131), (48, 48)])
@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_fitted_boxes_lie_on_their_pixels(resize: str, size: tuple[int, int]) -> None:
    preprocess = Preprocess(SIDE, 56, resize=resize, interpolation="nearest")
    for seed in range(10):
        image, boxes = picture(seed, size)
        pixels = preprocess.fit(image)
        check(pixels, BoxTarget(3).fit(preprocess, boxes), 0.501)


@pytest.mark.parametrize("settings", [{"horizontal_flip": 1.0}, {"vertical_flip": 1.0}, {"quarter_turns": True}])
def test_flips_and_turns_are_exact(settings: dict[str, Any]) -> None:
    preprocess = Preprocess(64, 64)
    view = BoxView(preprocess, AugmentSettings(**settings))
    for number in range(20):
        image, boxes = picture(number, (64, 64))
        with seeded(0, 1, number):
            pixels, rows = BoxTarget(3).apply_view(view, [image], False, boxes)
        for row in rows:
            assert row[:4].tolist() == extent(pixels, int(row[4])) or (pixels[:, :, int(row[4])] > 0).sum() == 0


def test_an_object_mostly_cut_off_is_ignored() -> None:
    """The visible share is counted in pixels of an image that is cut without being resized."""
    preprocess = Preprocess(60, 60, resize="crop", interpolation="nearest")
    seen = set()
    for left in range(0, 100, 3):
        pixels = np.zeros((60, 120, 3), np.uint8)
        pixels[10:30, left : left + 20] = 255
        boxes = Boxes(np.array([[left, 10, left + 20, 30]], float), np.zeros(1, int), np.zeros(1, bool), (120, 60))
        rows = BoxTarget(1).fit(preprocess, boxes)
        visible = (preprocess.fit(Image.fromarray(pixels))[:, :, 0] > 0).sum() / 400
        if len(rows):
            assert rows[0, 5] == (visible < 0.3)
        else:
            assert visible == 0
        seen.add((len(rows), visible >= 0.3))
    assert seen == {(0, False), (1, False), (1, True)}


def test_crops_around_objects_hold_a_whole_one_of_any_class() -> None:
    settings = {"random_crop_scale": (0.3, 0.3), "random_crop_ratio": (1.0, 1.0)}
    held = []
    for balanced in (0.0, 1.0):
        counts = np.zeros(3)
        for number, (_, rows) in enumerate(views_of(AugmentSettings(**settings, balanced_crops=balanced), 120)):
            boxes = picture(number)[1]
            for row in rows:  # whole: as large as it was, by the scale of the crop
                before = boxes.boxes[int(row[4])]
                share = (row[2] - row[0]) * (row[3] - row[1]) / np.prod(before[2:] - before[:2])
                counts[int(row[4])] += share > 0.98 * SIDE**2 / (0.3 * 90 * 70)
        held.append(counts / 120)
    assert held[1].min() > held[0].max() * 0.9 and held[1].sum() > held[0].sum() + 0.3


def test_images_decoded_at_half_their_size_have_the_same_boxes() -> None:
    settings = AugmentSettings(**{**MOVES, "random_crop_ratio": (1.0, 1.0)})
    found = 0
    for pixels, rows in views_of(settings, 30, decoded=(45, 35)):
        found += check(pixels, rows, 3.0)  # a pixel of the small image
    assert found > 40


def test_a_view_follows_from_its_key_alone() -> None:
    settings = AugmentSettings(**MOVES, color_jitter=(0.3, 0.3, 0.3, 0.1))
    first = views_of(settings, 6)
    torch.rand(17)
    for (pixels, rows), (again, rows_again) in zip(first, views_of(settings, 6), strict=True):
        np.testing.assert_array_equal(pixels, again)
        np.testing.assert_array_equal(rows, rows_again)
    assert not np.array_equal(first[0][0], first[1][0])
