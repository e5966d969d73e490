"""The TIFF kinds that Pillow decodes to other values, or not at all, as 8-bit images.

Segments (strips, tiles) are decompressed by zlib, or as plain bytes by the libtiff in Pillow; byte order, packed bits,
predictor, planes and scale are settled here. Source: TIFF 6.0 (Adobe, 1992) and its technical note 3.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from common.formatting import first_line
from data_loader.errors import ImageError
from data_loader.tiff_layout import (
    BITS,
    BLACK_IS_0,
    CMYK,
    COLOUR_MAP,
    COMPRESSION,
    DEFLATE,
    FLOAT,
    HEIGHT,
    ICC_PROFILE,
    NONE,
    OLD_DEFLATE,
    ORIENTATION,
    PALETTE,
    PHOTOMETRIC,
    PLANAR,
    PREMULTIPLIED,
    READ,
    ROWS_PER_STRIP,
    SAMPLE_FORMAT,
    SAMPLES,
    SIGNED,
    STRIP_BYTES,
    STRIPS,
    TILE_BYTES,
    TILES,
    UNSIGNED,
    WHITE_IS_0,
    WIDTH,
    TiffLayout,
    TiffTags,
    read_bytes,
    read_layout,
    read_tags,
)

GEO_TAGS = {33550, 33922, 34264, 34735}  # pixel scale, tie points, transformation, keys
MASK_SHARE = 0.95  # of the values of a band called alpha that are 0 or 255 where it is one
ROWS = 64  # that are unpacked and scaled at a time
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_BROKEN = (OSError, ValueError, TypeError, LookupError, ArithmeticError, zlib.error)


def is_read_right(image: TiffImageFile) -> bool:
    """Return whether Pillow decodes an opened TIFF to the values that it holds: unsigned integers of up to 8 bits.

    In planes it does not: grey with alpha gives noise, grey with white at 0 the negative.
    """
    tags = image.tag_v2
    is_8bit = set(tags.get(BITS, (1,))) <= {1, 2, 4, 8} and set(tags.get(SAMPLE_FORMAT, (UNSIGNED,))) == {UNSIGNED}
    return is_8bit and not (tags.get(PLANAR, 1) == 2 and tags.get(COMPRESSION, NONE) in READ)


def without_false_alpha(image: Image.Image, tags: Any) -> Image.Image:
    """Return a georeferenced image without the band that is called alpha, where that is no mask.

    GDAL calls the fourth band of 8 bits alpha by default, near infrared included. A mask is 0 or 255 almost everywhere.
    """
    return image.convert("RGB") if GEO_TAGS & set(tags) and not has_mask(image) else image


def has_mask(image: Image.Image) -> bool:
    """Return whether an image's alpha is a mask, as far as it has any."""
    if image.mode != "RGBA":
        return True
    counts = image.getchannel("A").histogram()
    return counts[0] + counts[255] >= MASK_SHARE * sum(counts)


def read_tiff(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Return the first page as "L", "RGB", "RGBA" or "CMYK", with its orientation, and in `info` its "icc_profile",
    "bits" and "several_frames".

    Integers are scaled by the range of their bits, signed ones of 8 and 16 bits from their least value; white is
    MaxSampleValue where that says that 10, 12 or 14 of 16 bits are used. Floats are 0..1, or 0..255 where any is
    above 1. Of bands without a colour space, three or four, the first three are red, green and blue.
    Raises ImageError.
    """
    try:
        tags, following = read_tags(file)
        layout = read_layout(tags, max_pixels)
        image = _to_image(layout, _read_pixels(layout, tags, file), tags)
        image.info["several_frames"] = following != 0
        return without_false_alpha(image, tags.names)
    except ImageError:
        raise
    except struct.error as error:
        raise ImageError("it is damaged: its tags cannot be read") from error
    except _BROKEN as error:
        raise ImageError(f"it is damaged: {first_line(error) or type(error).__name__}") from error


def _read_pixels(layout: TiffLayout, tags: TiffTags, file: BinaryIO) -> np.ndarray:
    """Return the used channels of all pixels, (H, W, C) uint8, or uint16 indices into a palette."""
    is_late = layout.kind == FLOAT  # the scale of floats depends on all of them
    shape = (layout.height, layout.width, len(layout.channels))
    pixels = np.zeros(shape, np.float32 if is_late else np.uint16 if layout.photometric == PALETTE else np.uint8)
    scale = _unscaled if is_late or layout.photometric == PALETTE else _integer_scale(layout)
    for plane, top, left, data in _segments(layout, tags, file):
        rows, columns = layout.segment
        target = pixels[top : top + rows, left : left + columns]
        for first, values in _row_blocks(layout, data):  # (rows, columns, samples)
            values = values[: len(target) - first, : target.shape[1]]
            with np.errstate(over="ignore"):  # of 64-bit floats
                block = scale(values).astype(pixels.dtype, copy=False)
            if layout.has_planes:
                target[first : first + len(block), :, layout.channels.index(plane)] = block[:, :, 0]
            else:
                target[first : first + len(block)] = block[:, :, layout.channels]
    return _scale_floats(layout, pixels) if is_late else pixels


def _segments(layout: TiffLayout, tags: TiffTags, file: BinaryIO) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the plane, row and column of each used segment, and its bytes. Raises ImageError where one is missing."""
    rows, columns = layout.segment
    across = math.ceil(layout.width / columns)
    count = math.ceil(layout.height / rows) * across
    places = tags.values.get(TILES if layout.is_tiled else STRIPS, ())
    sizes = tags.values.get(TILE_BYTES if layout.is_tiled else STRIP_BYTES, ())
    if layout.compression == NONE and len(places) == 1:
        sizes = sizes or (layout.row_bytes * rows,)  # some writers leave it out
    for index in range(count * (layout.samples if layout.has_planes else 1)):
        plane, place = divmod(index, count)
        if layout.has_planes and plane not in layout.channels:
            continue
        if index >= min(len(places), len(sizes)):
            raise ImageError(f"it is damaged: it has only {index} strips or tiles")
        top = place // across * rows
        needed = layout.row_bytes * (rows if layout.is_tiled else min(rows, layout.height - top))
        data = _decompressed(layout, read_bytes(file, places[index], sizes[index]), needed)
        if len(data) < needed:
            raise ImageError(f"it is damaged: strip or tile {index} has {len(data)} of {needed} bytes")
        yield plane, top, place % across * columns, data[:needed]


def _decompressed(layout: TiffLayout, data: bytes, needed: int) -> bytes:
    """Return about the first `needed` bytes of a segment."""
    if layout.is_reversed:
        data = data.translate(_REVERSED)
    if layout.compression in (DEFLATE, OLD_DEFLATE):
        return zlib.decompressobj().decompress(data, needed)
    if layout.compression == NONE:
        return data
    return _by_libtiff(data, layout.compression, layout.row_bytes, needed // layout.row_bytes)


def _by_libtiff(data: bytes, compression: int, width: int, height: int) -> bytes:
    """Return what a segment holds, decompressed as the strip of an 8-bit grey TIFF of `width` x `height`."""
    tags = {WIDTH: width, HEIGHT: height, BITS: 8, COMPRESSION: compression, PHOTOMETRIC: BLACK_IS_0, STRIPS: 8}
    tags |= {SAMPLES: 1, ROWS_PER_STRIP: height, STRIP_BYTES: len(data)}
    place = 8 + len(data) + len(data) % 2
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    file = struct.pack("<2sHI", b"II", 42, place) + data + bytes(len(data) % 2)
    file += struct.pack("<H", len(tags)) + directory + bytes(4)
    with TiffImageFile(io.BytesIO(file)) as image:  # its size is checked already, not by Pillow's own limit
        return image.tobytes()


def _row_blocks(layout: TiffLayout, data: bytes) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the values of a segment in blocks of rows, (rows, columns, samples), with the number of the first."""
    columns, stored, size = layout.segment[1], layout.stored, layout.bits // 8
    raw = np.frombuffer(data, np.uint8).reshape(-1, layout.row_bytes)
    for first in range(0, len(raw), ROWS):
        block = raw[first : first + ROWS]
        if layout.bits not in (8, 16, 32, 64):
            if layout.predictor != 1:
                raise ImageError(f"a TIFF of {layout.bits} bits with a predictor is not read")
            bits = np.unpackbits(block, axis=1)[:, : columns * stored * layout.bits]
            bits = bits.reshape(len(block), columns, stored, layout.bits)
            yield first, bits @ (1 << np.arange(layout.bits)[::-1]).astype(np.uint16)
            continue
        if layout.predictor == 3:  # bytes of equal weight side by side, the heaviest first, as differences
            bytes_ = np.cumsum(block.reshape(len(block), -1, stored), axis=1, dtype=np.uint8)
            planes = bytes_.reshape(len(block), size, columns * stored).transpose(0, 2, 1)
            values = np.ascontiguousarray(planes).view(f">u{size}")
        else:
            values = block.view(f"{layout.byteorder}u{size}")
        values = values.astype(f"=u{size}").reshape(len(block), columns, stored)
        if layout.predictor == 2:
            values = np.cumsum(values, axis=1, dtype=values.dtype)
        elif layout.predictor not in (1, 3) or (layout.predictor == 3 and layout.kind != FLOAT):
            raise ImageError(f"a TIFF with predictor {layout.predictor} is not read")
        yield first, values.view(f"=f{size}") if layout.kind == FLOAT else values


def _integer_scale(layout: TiffLayout) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that brings integers, stored as unsigned ones, to uint8."""
    factor = 255 / layout.white
    if layout.bits > 16:
        return lambda values: np.rint(values * factor).astype(np.uint8)
    values = np.arange(1 << layout.bits, dtype=np.float64)
    if layout.kind == SIGNED:
        values = np.roll(values, 1 << (layout.bits - 1))  # the least one is stored in the middle
    table = np.minimum(np.rint(values * factor), 255).astype(np.uint8)
    return lambda values: table[values]


def _unscaled(values: np.ndarray) -> np.ndarray:
    return values


def _scale_floats(layout: TiffLayout, values: np.ndarray) -> np.ndarray:
    """Bring floats, 0..1 or 0..255 where any is above 1, to uint8; alpha by itself."""
    scaled = np.empty(values.shape, np.uint8)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    colours = len(layout.channels) - bool(layout.alpha)
    for part in (slice(0, colours), slice(colours, None)):
        factor = 255 if values[:, :, part].max(initial=0) <= 1 else 1
        for first in range(0, layout.height, ROWS):
            rows = slice(first, first + ROWS)
            scaled[rows, :, part] = np.clip(np.rint(values[rows, :, part].astype(np.float64) * factor), 0, 255)
    return scaled


def _to_image(layout: TiffLayout, pixels: np.ndarray, tags: TiffTags) -> Image.Image:
    """Return uint8 (H, W, C), or indices into a palette, as an image of its colour space."""
    alpha = pixels[:, :, -1:] if layout.alpha else None
    colours = pixels[:, :, : len(layout.channels) - bool(layout.alpha)]
    if layout.photometric == WHITE_IS_0:
        colours = 255 - colours
    elif layout.photometric == PALETTE:
        palette = np.array(tags.values[COLOUR_MAP], np.uint16).reshape(3, -1) >> 8
        colours = palette.astype(np.uint8).T[colours[:, :, 0]]
    if alpha is not None:
        if layout.alpha == PREMULTIPLIED:
            straight = (colours.astype(np.uint16) * 255 + alpha // 2) // np.maximum(alpha, 1)
            colours = np.minimum(straight, 255).astype(np.uint8)
        colours = np.concatenate([np.broadcast_to(colours, (*colours.shape[:2], 3)), alpha], axis=2)
    mode = {1: "L", 3: "RGB", 4: "CMYK" if layout.photometric == CMYK else "RGBA"}[colours.shape[2]]
    image = Image.frombytes(mode, (layout.width, layout.height), np.ascontiguousarray(colours).tobytes())
    image.format = "TIFF"
    image.info["bits"] = layout.bits
    image.getexif()[ORIENTATION] = tags.first(ORIENTATION, 1)
    if profile := tags.values.get(ICC_PROFILE):
        image.info["icc_profile"] = bytes(profile)
    return image
