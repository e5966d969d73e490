"""TIFFs of every kind, written by hand from TIFF 6.0, against the values that they hold."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_loader.decoding import decode
from data_loader.preprocess import ImageError, as_array
from tests.helpers.tiff_files import tiff_file

HEIGHT, WIDTH = 21, 34  # neither strips nor tiles divide them
WHITE_IS_0, BLACK_IS_0, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2


def ramps(samples: int) -> np.ndarray:
    """Return values from 0 to 1, (H, W, samples), both ends among them, each channel another."""
    ramp = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    return np.stack([ramp, ramp[::-1], ramp[:, ::-1] * 0.5, 1 - ramp * 0.7], axis=-1)[..., :samples]


def stored(shares: np.ndarray, dtype: str, bits: int = 0) -> np.ndarray:
    """Return shares of the range of a type's values; floats as they are."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return shares.astype(kind)
    low, high = (0, (1 << bits) - 1) if bits else (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    return np.clip(np.rint(low + shares * (high - low)), low, high).astype(np.int64).astype(kind)


def expected(shares: np.ndarray) -> np.ndarray:
    """Return the RGB values, 0 to 255, of one or three channels from 0 to 1."""
    return np.broadcast_to(shares, (*shares.shape[:2], 3)) * 255


def assert_decoded(data: bytes, wanted: np.ndarray, name: object, tolerance: int = 1) -> None:
    got = as_array(decode(data)).astype(float)
    assert got.shape == wanted.shape, name
    assert np.abs(got - wanted).max() <= tolerance, (name, np.abs(got - wanted).max())


def kinds(dtype: str) -> Iterator[dict[str, Any]]:
    """Yield every way to store values of one type."""
    predictors = (1, 2, 3) if dtype[0] == "f" else (1, 2)
    compressions = ("none", "lzw", "deflate", "packbits")
    table = itertools.product("<>", compressions, predictors, (False, True), (0, 16), (False, True))
    for order, compression, predictor, planar, tile, is_big in table:
        if predictor == 1 or compression in ("lzw", "deflate"):
            yield {
                "order": order,
                "compression": compression,
                "predictor": predictor,
                "planar": planar,
                "tile": tile,
                "is_big": is_big,
            }


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "f2", "f4", "f8"])
@pytest.mark.parametrize("photometric", [WHITE_IS_0, BLACK_IS_0, RGB])
def test_every_way_to_store_a_value(dtype: str, photometric: int) -> None:
    shares = ramps(3 if photometric == RGB else 1)
    wanted = expected(1 - shares if photometric == WHITE_IS_0 else shares)
    for kind in kinds(dtype):
        assert_decoded(tiff_file(stored(shares, dtype), photometric, **kind), wanted, kind)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("photometric", [WHITE_IS_0, BLACK_IS_0, RGB])
def test_packed_bits(bits: int, photometric: int) -> None:
    shares = ramps(3 if photometric == RGB else 1)
    wanted = expected(1 - shares if photometric == WHITE_IS_0 else shares)
    table = itertools.product("<>", ("none", "lzw", "deflate"), (False, True), (0, 16))
    for order, compression, planar, tile in table:
        kind: dict[str, Any] = {"order": order, "compression": compression, "planar": planar, "tile": tile}
        assert_decoded(tiff_file(stored(shares, "u2", bits), photometric, bits=bits, **kind), wanted, kind)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_bands(dtype: str, planar: bool, order: str) -> None:
    """Alpha lies on white; bands that are no colours are left out."""
    four, alpha = ramps(4), ramps(4)[..., 3:]
    options: dict[str, Any] = {"planar": planar, "order": order}

    def check(bands: np.ndarray, photometric: int, extra: tuple[int, ...], wanted: np.ndarray) -> None:
        data = tiff_file(stored(bands, dtype), photometric, extra=extra, **options)
        assert_decoded(data, expected(wanted), (photometric, extra), 2)  # colour and alpha are both rounded

    check(four, RGB, (STRAIGHT,), four[..., :3] * alpha + 1 - alpha)
    check(four[..., :3].clip(0, alpha), RGB, (), four[..., :3].clip(0, alpha))
    check(np.concatenate([four[..., :3] * alpha, alpha], -1), RGB, (PREMULTIPLIED,), four[..., :3] * alpha + 1 - alpha)
    check(four, RGB, (UNSPECIFIED,), four[..., :3])
    check(four[..., [0, 3]], BLACK_IS_0, (STRAIGHT,), four[..., :1] * alpha + 1 - alpha)
    check(four[..., :2], BLACK_IS_0, (UNSPECIFIED,), four[..., :1])
    # As rasterio writes 16 bits by default: MinIsBlack, all further bands unspecified.
    check(four[..., :3], BLACK_IS_0, (UNSPECIFIED,) * 2, four[..., :3])
    check(four, BLACK_IS_0, (UNSPECIFIED,) * 3, four[..., :3])
    check(four, BLACK_IS_0, (UNSPECIFIED, UNSPECIFIED, STRAIGHT), four[..., :3] * alpha + 1 - alpha)
    ink = (1 - four[..., :3]) * (1 - alpha)
    check(four, CMYK, (), ink)


def test_a_fourth_band_called_alpha_of_a_georeferenced_file() -> None:
    """GDAL tags it so by default; it is one only where it is a mask."""
    four = stored(ramps(4), "u1")
    tie_points = {33922: (4, [0] * 6)}
    near_infrared = tiff_file(four, RGB, extra=(STRAIGHT,), further=tie_points)
    assert_decoded(near_infrared, four[..., :3].astype(float), "no mask")
    four[..., 3] = np.where(np.arange(WIDTH) < 9, 0, 255)
    wanted = np.where(four[..., 3:] == 0, 255, four[..., :3]).astype(float)
    assert_decoded(tiff_file(four, RGB, extra=(STRAIGHT,), further=tie_points), wanted, "a mask")
    assert_decoded(tiff_file(four.astype(np.uint16) * 257, RGB, extra=(STRAIGHT,), further=tie_points), wanted, "16")


@pytest.mark.parametrize(("most", "white"), [(1023, 1023), (4095, 4095), (16383, 16383), (3000, 65535), (65535, 65535)])
@pytest.mark.parametrize("samples", [1, 3])
def test_max_sample_value_says_how_many_of_16_bits_are_used(most: int, white: int, samples: int) -> None:
    values = np.rint(ramps(samples) * min(most, white)).astype(np.uint16)
    data = tiff_file(values, RGB if samples == 3 else BLACK_IS_0, further={281: (3, [most] * samples)})
    assert_decoded(data, expected(values / white), most)


def test_12_bits_in_a_file_of_16_are_scaled_by_16() -> None:
    values = np.rint(ramps(3) * 4095).astype(np.uint16)
    assert_decoded(tiff_file(values, RGB), expected(values / 65535), "dark")


def test_a_palette_of_16_bit_indices() -> None:
    indices = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH, 1)
    colours = np.zeros((3, 65536), np.int64)
    colours[:, : HEIGHT * WIDTH] = np.random.default_rng(0).integers(0, 256, (3, HEIGHT * WIDTH)) * 257
    data = tiff_file(indices, PALETTE, further={320: (3, colours.reshape(-1).tolist())})
    np.testing.assert_array_equal(as_array(decode(data)), colours[:, indices[..., 0]].transpose(1, 2, 0) // 257)


@pytest.mark.parametrize("fill_order", [1, 2])
def test_bytes_with_their_bits_reversed(fill_order: int) -> None:
    values = stored(ramps(1), "u2")
    data = bytearray(tiff_file(values, BLACK_IS_0, order="<", further={266: (3, [fill_order])}))
    if fill_order == 2:
        for place in range(8, 8 + values.nbytes):
            data[place] = int(f"{data[place]:08b}"[::-1], 2)
    assert_decoded(bytes(data), expected(ramps(1)), fill_order)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientation(orientation: int) -> None:
    data = tiff_file(stored(ramps(3), "u2"), RGB, further={274: (3, [orientation])})
    turned = np.rot90(ramps(3), {1: 0, 3: 2, 6: -1}[orientation])
    assert_decoded(data, expected(turned), orientation)


def test_one_channel() -> None:
    got = as_array(decode(tiff_file(stored(ramps(3), "u2"), RGB), 1))[..., 0]
    assert np.abs(got - ramps(3) @ [0.299, 0.587, 0.114] * 255).max() <= 1  # ITU-R 601


@pytest.mark.parametrize(
    ("dtype", "samples", "photometric", "further", "reason"),
    [
        ("i4", 1, BLACK_IS_0, {}, "a TIFF of signed integers of 32 bits is not read, as no rule says which is white"),
        ("u8", 1, BLACK_IS_0, {}, "a TIFF of integers of 64 bits is not read"),
        ("u2", 2, BLACK_IS_0, {339: (3, [5, 5])}, "a TIFF of complex numbers of 16 bits is not read"),
        ("u2", 1, BLACK_IS_0, {259: (3, [34887])}, "compressed with LERC is not read; save it with LZW or deflate"),
        ("u2", 1, BLACK_IS_0, {259: (3, [7])}, "compressed with JPEG is not read"),
        ("u1", 3, RGB, {259: (3, [50002])}, "compressed with JPEG XL is not read"),
        ("u2", 3, 8, {}, "a TIFF of the colour space CIE Lab with 3 bands of this kind is not read"),
        ("u2", 1, 32803, {}, "a TIFF of the colour space colour filter array"),
        ("u2", 13, BLACK_IS_0, {}, "it has 13 bands without a colour space; keep three, as red, green and blue"),
        ("u2", 3, RGB, {258: (3, [16, 16, 8])}, "a TIFF whose bands are of different kinds"),
        ("u2", 1, BLACK_IS_0, {317: (3, [9])}, "a TIFF with predictor 9 is not read"),
        ("u2", 1, BLACK_IS_0, {257: (4, [300])}, "it is damaged: it has only 3 strips or tiles"),
    ],
)
def test_other_kinds_are_refused_by_their_name(
    dtype: str, samples: int, photometric: int, further: dict[int, Any], reason: str
) -> None:
    values = np.zeros((HEIGHT, WIDTH, samples), dtype)
    with pytest.raises(ImageError, match=reason):
        decode(tiff_file(values, photometric, further=further))


def test_pixels_and_bytes_are_limited_before_any_is_decoded() -> None:
    data = tiff_file(stored(ramps(3), "f8"), RGB, compression="deflate")
    assert decode(data, max_pixels=3 * HEIGHT * WIDTH)
    with pytest.raises(ImageError, match=r"34x21 \(3 x 64 bits\) is more than max_pixels \(2141\) allows"):
        decode(data, max_pixels=3 * HEIGHT * WIDTH - 1)
    wide = tiff_file(stored(ramps(1), "u2"), BLACK_IS_0, tile=16, further={322: (4, [1 << 20]), 323: (4, [1 << 20])})
    with pytest.raises(ImageError, match="is more than max_pixels"):
        decode(wide)
    huge = tiff_file(stored(ramps(1), "u2"), BLACK_IS_0, further={256: (4, [60_000]), 257: (4, [60_000])})
    with pytest.raises(ImageError, match="max_pixels"):
        decode(huge)


def test_damage_anywhere_gives_an_image_or_an_image_error() -> None:
    generator = np.random.default_rng(3)
    for kind in (
        {"compression": "lzw", "predictor": 2},
        {"compression": "deflate", "planar": True},
        {"tile": 16, "is_big": True, "order": ">"},
    ):
        data = tiff_file(stored(ramps(3), "u2"), RGB, **kind)
        for _ in range(150):
            broken = bytearray(data[: generator.integers(4, len(data) + 1)])
            for place in [
                *generator.integers(0, len(broken), 2),
                len(broken) - generator.integers(1, min(200, len(broken))),
            ]:
                broken[place] = generator.integers(0, 256)
            try:
                assert as_array(decode(bytes(broken), max_pixels=10**6)).dtype == np.uint8
            except ImageError as error:
                assert str(error)


def test_files_of_tifffile() -> None:
    """The library that most scientific TIFFs come from."""
    for dtype, order, planar, tile in itertools.product(
        ("u2", "i2", "f4"), "<>", ("contig", "separate"), (None, (16, 16))
    ):
        bands = stored(ramps(3), dtype)
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            bands if planar == "contig" else np.moveaxis(bands, -1, 0),
            photometric="rgb",
            planarconfig=planar,
            byteorder=order,
            tile=tile,
            compression="zlib",
            metadata=None,
        )
        assert_decoded(file.getvalue(), expected(ramps(3)), (dtype, order, planar, tile))


def test_what_pillow_reads_right_goes_on_being_read_by_pillow() -> None:
    """Eight bits: the same to the bit, with JPEG in TIFF among them."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    for mode, compression in itertools.product(
        ("RGB", "L", "CMYK", "1", "P", "RGBA"), (None, "tiff_lzw", "tiff_deflate", "jpeg")
    ):
        if compression == "jpeg" and mode in ("1", "P", "RGBA"):
            continue
        image = Image.fromarray(pixels).convert(mode)
        file = io.BytesIO()
        image.save(file, "TIFF", compression=compression)
        with Image.open(file) as reread:
            plain = Image.alpha_composite(Image.new("RGBA", image.size, "white"), reread.convert("RGBA")).convert("RGB")
            wanted = plain if mode == "RGBA" else reread.convert("RGB")
        np.testing.assert_array_equal(as_array(decode(file.getvalue())), np.asarray(wanted), f"{mode} {compression}")
