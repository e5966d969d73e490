"""Transparency of rare PNG and BMP kinds, by the PNG specification (11.3.1) and the masks of BMP's headers."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from data_loader.decoding import decode
from data_loader.preprocess import as_array
from tests.helpers.images import bmp_file, png_file


def key(*values: int) -> dict[bytes, bytes]:
    return {b"tRNS": struct.pack(f">{len(values)}H", *values)}


def on_white(values: np.ndarray, shown: np.ndarray, most: int) -> np.ndarray:
    """Return what is seen, 0 to 255, (H, W, 3)."""
    scaled = np.where(shown[..., None], values * (255 / most), 255.0)
    return np.broadcast_to(scaled, (*shown.shape, 3))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_value_of_a_png(bits: int) -> None:
    most = (1 << bits) - 1
    grey = (np.arange(24) * most // 23).astype(np.uint16).reshape(4, 6, 1)
    for value in {0, 1, most // 2, most}:
        data = png_file(grey if bits == 16 else grey.astype(np.uint8), key(value), bits if bits < 8 else 0)
        wanted = on_white(grey, grey[..., 0] != value, most)
        assert np.abs(as_array(decode(data)) - wanted).max() <= 0.5, value
        assert np.abs(as_array(decode(data, 1)) - wanted[..., :1]).max() <= 0.5, value


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_transparent_colour_of_a_png(dtype: type) -> None:
    most = int(np.iinfo(dtype).max)
    colours: np.ndarray = np.array(
        [[[1, 2, 3], [most] * 3], [[most // 2, 7, 9], [0, 0, 0]], [[1, 2, 4], [0, 0, 1]]], dtype
    )
    for value in ((1, 2, 3), (most,) * 3, (most // 2, 7, 9), (0, 0, 0), (5, 5, 5)):
        wanted = on_white(colours, (colours != value).any(2), most)
        assert np.abs(as_array(decode(png_file(colours, key(*value)))) - wanted).max() <= 1, value


def test_of_a_transparent_value_the_lowest_bits_count() -> None:
    grey = np.arange(4, dtype=np.uint8).reshape(1, 4, 1)
    wanted = on_white(grey, grey[..., 0] != 2, 3)
    np.testing.assert_array_equal(as_array(decode(png_file(grey, key(0xFF02), 2))), wanted)
    wanted = on_white(grey, grey[..., 0] != 2, 255)
    np.testing.assert_array_equal(as_array(decode(png_file(grey, key(0xFF02)))), wanted)


def test_orientation_of_a_png_with_a_transparent_value() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4, 1) * 5000
    data = png_file(grey, {**key(5000), b"eXIf": exif.tobytes().removeprefix(b"Exif\0\0")})
    wanted = np.rot90(on_white(grey, grey[..., 0] != 5000, 65535), -1)
    assert np.abs(as_array(decode(data)) - wanted).max() <= 0.5


MASKS32 = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def test_alpha_of_a_32_bit_bmp() -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 4)).astype(np.uint8)
    values[0, :2, 3] = 0, 255
    data = bmp_file(values[::-1, :, [2, 1, 0, 3]].tobytes(), 5, 3, 32, MASKS32)
    alpha = values[..., 3:] / 255
    assert np.abs(as_array(decode(data)) - (values[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


def test_a_bmp_whose_alpha_is_0_everywhere_is_opaque() -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 4)).astype(np.uint8)
    values[..., 3] = 0
    data = bmp_file(values[::-1, :, [2, 1, 0, 3]].tobytes(), 5, 3, 32, MASKS32)
    np.testing.assert_array_equal(as_array(decode(data)), values[..., :3])
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")  # a PNG says what it means
    assert (as_array(decode(file.getvalue())) == 255).all()


@pytest.mark.parametrize("top_first", [False, True])
def test_the_alpha_bit_of_a_16_bit_bmp(top_first: bool) -> None:
    fives = np.random.default_rng(1).integers(0, 32, (3, 5, 3))
    shown = np.random.default_rng(2).integers(0, 2, (3, 5)) > 0
    words = fives @ [1 << 10, 1 << 5, 1] | shown << 15
    rows = np.pad(words.astype("<u2"), ((0, 0), (0, 1)))  # rows begin at whole 4 bytes
    for alpha_mask, seen in ((0x8000, shown), (0, np.ones_like(shown))):
        masks = (0x7C00, 0x3E0, 0x1F, alpha_mask)
        data = bmp_file((rows if top_first else rows[::-1]).tobytes(), 5, -3 if top_first else 3, 16, masks)
        assert np.abs(as_array(decode(data)) - on_white(fives, seen, 31)).max() <= 1
    opaque = bmp_file((rows & 0x7FFF).tobytes(), 5, -3, 16, (0x7C00, 0x3E0, 0x1F, 0x8000))
    assert np.abs(as_array(decode(opaque)) - on_white(fives, np.ones_like(shown), 31)).max() <= 1
