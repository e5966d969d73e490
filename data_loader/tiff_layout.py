"""What the tags of a TIFF say of its values. Source: TIFF 6.0 (Adobe, 1992), and BigTIFF."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import BinaryIO

from data_loader.errors import ImageError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 266, 274, 277
STRIPS, ROWS_PER_STRIP, STRIP_BYTES, MAX_SAMPLE_VALUE, PLANAR, PREDICTOR, COLOUR_MAP = 273, 278, 279, 281, 284, 317, 320
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES, EXTRA_SAMPLES, SAMPLE_FORMAT, ICC_PROFILE = (
    322,
    323,
    324,
    325,
    338,
    339,
    34675,
)
VALUE_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 16: "Q"}  # of the tags that are used
# Values of PHOTOMETRIC, SAMPLE_FORMAT, EXTRA_SAMPLES and COMPRESSION.
WHITE_IS_0, BLACK_IS_0, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4  # UNDEFINED is read as UNSIGNED
PREMULTIPLIED, STRAIGHT = 1, 2  # alpha
NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 8, 32946, 32773, 34925, 50000
READ = (NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD)
COMPRESSION_NAMES = {
    **{2: "CCITT RLE", 3: "CCITT Group 3", 4: "CCITT Group 4", 6: "old-style JPEG", 7: "JPEG", 34712: "JPEG 2000"},
    **{33003: "JPEG 2000", 33005: "JPEG 2000", 34676: "SGI LogLuv", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL"},
}
COLOUR_NAMES = {
    **{4: "transparency mask", 6: "YCbCr", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32803: "colour filter array"},
    **{32844: "LogL", 32845: "LogLuv", 34892: "linear raw"},
}
KIND_NAMES = {UNSIGNED: "integers", SIGNED: "signed integers", FLOAT: "floating-point numbers"}
WHITES = (1023, 4095, 16383)  # of MAX_SAMPLE_VALUE, which say that 10, 12 or 14 of 16 bits are used
BYTES_A_PIXEL = 8  # stored, up to which an image may have max_pixels; with more to a pixel it may have fewer


@dataclass(frozen=True)
class TiffTags:
    """The tags of a page: integers by tag, and the names of all tags."""

    byteorder: str
    values: dict[int, tuple[int, ...]]
    names: frozenset[int]

    def first(self, tag: int, default: int = 0) -> int:
        """Return the first value of a tag."""
        return (self.values.get(tag) or (default,))[0]

    def alike(self, tag: int, default: int) -> int:
        """Return the value of a tag that has one for each band. Raises ImageError where they differ."""
        values = set(self.values.get(tag, ())) or {default}
        if len(values) > 1:
            raise ImageError(f"a TIFF whose bands are of different kinds (tag {tag}: {sorted(values)}) is not read")
        return values.pop()


def read_tags(file: BinaryIO) -> tuple[TiffTags, int]:
    """Read the tags of the first page, and the place of the next page, 0 for none."""
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = struct.unpack(order + "H", head[2:4])[0] == 43
    number, entry_format, size = ("Q", "HHQ8s", 20) if is_big else ("I", "HHI4s", 12)
    file.seek(struct.unpack_from(order + number, head, 8 if is_big else 4)[0])
    (count,) = struct.unpack(order + ("Q" if is_big else "H"), file.read(8 if is_big else 2))
    directory = file.read(min(count, 65535) * size)
    (following,) = struct.unpack(order + number, file.read(8 if is_big else 4))
    values: dict[int, tuple[int, ...]] = {}
    names = set()
    for tag, kind, length, field in struct.iter_unpack(order + entry_format, directory):
        names.add(tag)
        if (letter := VALUE_TYPES.get(kind)) is None:
            continue
        num_bytes = length * struct.calcsize(letter)
        if num_bytes > len(field):
            field = read_bytes(file, struct.unpack(order + number, field)[0], num_bytes)
        values[tag] = struct.unpack(f"{order}{length}{letter}", field[:num_bytes])
    return TiffTags(order, values, frozenset(names)), following


@dataclass(frozen=True)
class TiffLayout:
    """How the values are stored; `channels` are the samples of a pixel that are used, alpha the last of them."""

    width: int
    height: int
    samples: int
    bits: int
    kind: int  # UNSIGNED, SIGNED or FLOAT
    byteorder: str
    photometric: int
    channels: tuple[int, ...]
    alpha: int  # PREMULTIPLIED, STRAIGHT or 0
    has_planes: bool
    segment: tuple[int, int]  # rows, columns
    is_tiled: bool
    compression: int
    predictor: int
    is_reversed: bool  # the bits of each byte
    white: int

    @property
    def stored(self) -> int:
        """Number of samples a pixel of one segment."""
        return 1 if self.has_planes else self.samples

    @property
    def row_bytes(self) -> int:
        """Number of bytes of one row of a segment."""
        return math.ceil(self.segment[1] * self.stored * self.bits / 8)


def read_bytes(file: BinaryIO, place: int, count: int) -> bytes:
    """Return `count` bytes, or as many as there are: Python allocates what a damaged file asks for."""
    end = file.seek(0, io.SEEK_END)
    file.seek(min(place, end))
    return file.read(min(count, max(0, end - place)))


def read_layout(tags: TiffTags, max_pixels: int) -> TiffLayout:
    """Return the layout. Raises ImageError for a kind that is not read, by its name."""
    width, height, samples, bits = tags.first(WIDTH), tags.first(HEIGHT), tags.first(SAMPLES, 1), tags.alike(BITS, 1)
    is_tiled = TILE_WIDTH in tags.values
    rows, columns = min(tags.first(ROWS_PER_STRIP, height), height), width
    if is_tiled:
        rows, columns = tags.first(TILE_HEIGHT), tags.first(TILE_WIDTH)
    if min(width, height, samples, rows, columns, bits) < 1:
        raise ImageError("it has no pixels")
    weight = max(1, samples * bits / 8 / BYTES_A_PIXEL)
    if max(width * height, rows * columns / 4) * weight > max_pixels:
        size = f"{width}x{height}" + (f" ({samples} x {bits} bits)" if weight > 1 else "")
        raise ImageError(f"{size} is more than max_pixels ({max_pixels}) allows")
    photometric, compression = tags.first(PHOTOMETRIC), tags.first(COMPRESSION, NONE)
    channels, alpha = _used_channels(photometric, samples, tags.values.get(EXTRA_SAMPLES, ()))
    kind = _sample_kind(tags, photometric, bits)
    if compression not in READ:
        name = COMPRESSION_NAMES.get(compression, f"method {compression}")
        raise ImageError(f"a TIFF of this kind compressed with {name} is not read; save it with LZW or deflate")
    white = tags.first(MAX_SAMPLE_VALUE)
    return TiffLayout(
        width=width,
        height=height,
        samples=samples,
        bits=bits,
        kind=kind,
        byteorder=tags.byteorder,
        photometric=photometric,
        channels=channels,
        alpha=alpha,
        has_planes=tags.first(PLANAR, 1) == 2 and samples > 1,
        segment=(rows, columns),
        is_tiled=is_tiled,
        compression=compression,
        predictor=tags.first(PREDICTOR, 1),
        is_reversed=tags.first(FILL_ORDER, 1) == 2,
        white=white if (bits, kind) == (16, UNSIGNED) and white in WHITES else (1 << bits) - 1,
    )


def _used_channels(photometric: int, samples: int, extra: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return the samples that are read, and the kind of alpha. Raises ImageError for bands that mean no colour."""
    colours = {WHITE_IS_0: 1, BLACK_IS_0: 1, RGB: 3, PALETTE: 1, CMYK: 4}.get(photometric, 0)
    if not 0 < colours <= samples:
        name = COLOUR_NAMES.get(photometric, f"photometric {photometric}")
        raise ImageError(f"a TIFF of the colour space {name} with {samples} bands of this kind is not read")
    extra = extra or ((STRAIGHT,) if photometric == RGB and samples == 4 else ())  # as Pillow has it
    alpha = next(((samples - len(extra) + at, kind) for at, kind in enumerate(extra) if kind in (1, 2)), None)
    bands = samples - (alpha is not None)
    if photometric == BLACK_IS_0 and bands > 4:
        raise ImageError(f"it has {bands} bands without a colour space; keep three, as red, green and blue")
    if photometric == BLACK_IS_0 and bands > 2:
        colours = 3
    if alpha is None or photometric not in (WHITE_IS_0, BLACK_IS_0, RGB):
        return tuple(range(colours)), 0
    return (*range(colours), alpha[0]), alpha[1]


def _sample_kind(tags: TiffTags, photometric: int, bits: int) -> int:
    """Return the sample format. Raises ImageError where no rule says which value is white."""
    kind = tags.alike(SAMPLE_FORMAT, UNSIGNED)
    kind = UNSIGNED if kind == UNDEFINED else kind
    known = {UNSIGNED: (*range(1, 17), 32), SIGNED: (8, 16), FLOAT: (16, 32, 64)}
    if bits not in known.get(kind, ()) or (photometric == PALETTE and (kind != UNSIGNED or bits > 16)):
        name = KIND_NAMES.get(kind, "complex numbers")
        hint = "save it with unsigned integers of 8 or 16 bits, or with floats from 0 to 1"
        raise ImageError(f"a TIFF of {name} of {bits} bits is not read, as no rule says which is white; {hint}")
    return kind
