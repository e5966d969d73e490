"""The resize as docs/tensorrt-json.md words it, written anew in numpy: the same bits, and the examples of the page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import PIL
import pytest
from PIL import Image

from common.paths import ROOT
from data_loader.preprocess import Preprocess, as_array

PAGE = (ROOT / "docs" / "tensorrt-json.md").read_text(encoding="utf-8")
PILLOW = int(PIL.__version__.partition(".")[0])
Box = tuple[float, float, float, float]


def lanczos(t: float) -> float:
    def sinc(value: float) -> float:
        return math.sin(math.pi * value) / (math.pi * value) if value else 1.0

    return sinc(t) * sinc(t / 3) if -3 <= t < 3 else 0.0


def bicubic(t: float) -> float:
    t = abs(t)
    if t < 1:
        return (1.5 * t - 2.5) * t * t + 1
    return ((-0.5 * t + 2.5) * t - 4) * t + 2 if t < 2 else 0.0


FILTERS: dict[str, tuple[int, Callable[[float], float]]] = {
    "bilinear": (1, lambda t: max(0.0, 1 - abs(t))),
    "bicubic": (2, bicubic),
    "lanczos": (3, lanczos),
}


def resampled(pixels: np.ndarray, start: float, end: float, count: int, interpolation: str) -> np.ndarray:
    """Return uint8 (n, ...) along its first axis at `count` places of the box from start to end."""
    size = len(pixels)
    start, end = float(np.float32(start)), float(np.float32(end))
    if count == size and start == 0 and end == size:
        return pixels
    scale = float(np.float32(end - start)) / count
    if interpolation == "nearest":
        places = [start + scale * 0.5]
        for _ in range(count - 1):
            places.append(places[-1] + scale)
        return pixels[[int(place) for place in places]]
    radius, weight_of = FILTERS[interpolation]
    stretch = max(scale, 1.0)
    result = np.empty((count, *pixels.shape[1:]), np.uint8)
    for place in range(count):
        centre = start + (place + 0.5) * scale
        first = max(0, int(centre - radius * stretch + 0.5))
        last = min(size, int(centre + radius * stretch + 0.5))
        weights = [weight_of((source - centre + 0.5) / stretch) for source in range(first, last)]
        shares = [weight / sum(weights) * 2**22 for weight in weights]
        fixed = np.array([int(share + math.copysign(0.5, share)) for share in shares], np.int64)
        sums = 2**21 + np.tensordot(fixed, pixels[first:last].astype(np.int64), 1)
        result[place] = np.clip(sums >> 22, 0, 255)
    return result


def resized(pixels: np.ndarray, box: Box, width: int, height: int, interpolation: str) -> np.ndarray:
    left, top, right, bottom = box
    fewer_rows, fewer_columns = pixels.shape[0] - height, pixels.shape[1] - width
    if PILLOW >= 13 and fewer_rows > 0 and fewer_rows > 2 * fewer_columns:
        rows = resampled(pixels, top, bottom, height, interpolation).swapaxes(0, 1)
        return resampled(rows, left, right, width, interpolation).swapaxes(0, 1)
    columns = resampled(pixels.swapaxes(0, 1), left, right, width, interpolation).swapaxes(0, 1)
    return resampled(columns, top, bottom, height, interpolation)


def fitted(pixels: np.ndarray, width: int, height: int, resize: str, interpolation: str) -> np.ndarray:
    """Return uint8 (H, W, C) resized to (height, width, C)."""
    source_height, source_width = pixels.shape[:2]
    whole = (0.0, 0.0, float(source_width), float(source_height))
    if resize == "squash":
        return resized(pixels, whole, width, height, interpolation)
    wanted, ratio = width / height, source_width / source_height
    if resize == "letterbox":
        inner_width, inner_height = width, height
        if ratio > wanted:
            inner_height = round(source_height / source_width * width)
        elif ratio < wanted:
            inner_width = round(source_width / source_height * height)
        result = np.zeros((height, width, pixels.shape[2]), np.uint8)
        if inner_width and inner_height:
            x, y = round((width - inner_width) * 0.5), round((height - inner_height) * 0.5)
            inner = resized(pixels, whole, inner_width, inner_height, interpolation)
            result[y : y + inner_height, x : x + inner_width] = inner
        return result
    box_width, box_height = float(source_width), float(source_height)
    if ratio > wanted:
        box_width = wanted * source_height
    elif ratio < wanted:
        box_height = source_width / wanted
    left, top = (source_width - box_width) * 0.5, (source_height - box_height) * 0.5
    return resized(pixels, (left, top, left + box_width, top + box_height), width, height, interpolation)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_the_words_give_the_same_bits(resize: str, interpolation: str) -> None:
    generator = np.random.default_rng(0)
    sizes = [
        (7, 5, 4, 6),
        (5, 7, 6, 4),
        (8, 8, 8, 8),
        (16, 8, 8, 4),
        (9, 9, 7, 7),
        (1, 1, 5, 3),
        (3, 2, 17, 9),
        (90, 1, 8, 8),
    ]
    sizes += [tuple(generator.integers(1, 60, 4).tolist()) for _ in range(40)]
    for width, height, net_width, net_height in sizes:
        pixels = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
        preprocess = Preprocess(net_height, net_width, resize=resize, interpolation=interpolation)
        got = fitted(pixels, net_width, net_height, resize, interpolation)
        np.testing.assert_array_equal(
            got, preprocess.fit(Image.fromarray(pixels)), str((width, height, net_width, net_height))
        )


def example(resize: str) -> np.ndarray:
    """Return the page's table of a mode, (6, 4)."""
    found = re.search(rf"^`{resize}`:\n\n```\n(.*?)```", PAGE, re.S | re.M)
    assert found is not None
    return np.array([line.split() for line in found[1].splitlines()], int)


def page_image() -> np.ndarray:
    """Return the page's image: 7 wide, 5 high, one channel."""
    y, x = np.mgrid[0:5, 0:7]
    return ((37 * x + 59 * y) % 256).astype(np.uint8)[..., None]


def test_the_image_of_the_page() -> None:
    found = re.search(r"4 columns and 6 rows\.\n\n```\n(.*?)```", PAGE, re.S)
    assert found is not None
    np.testing.assert_array_equal(np.array([line.split() for line in found[1].splitlines()], int), page_image()[..., 0])


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_the_examples_of_the_page(resize: str) -> None:
    by_words = fitted(page_image(), 4, 6, resize, "bilinear")[..., 0]
    np.testing.assert_array_equal(example(resize), by_words)
    preprocess = Preprocess(6, 4, channels=1, resize=resize)
    np.testing.assert_array_equal(example(resize), preprocess.fit(Image.fromarray(page_image()[..., 0]))[..., 0])


def test_the_example_of_the_page_after_the_resize() -> None:
    """Mean 0.449 and std 0.226, of the first pixel of crop."""
    found = re.search(r"\((\d+) / 255 - 0\.449\) / 0\.226 = (-?\d+\.\d+)", PAGE)
    assert found is not None
    first = int(example("crop")[0, 0])
    assert int(found[1]) == first and float(found[2]) == round((first / 255 - 0.449) / 0.226, 4)
    preprocess = Preprocess(6, 4, channels=1, resize="crop")
    assert preprocess(page_image())[0, 0, 0] == pytest.approx(float(found[2]), abs=1e-4)
    assert as_array(Image.fromarray(page_image()[..., 0])).shape == (5, 7, 1)
