"""TIFF files of any kind by their bytes, written from TIFF 6.0; Pillow compresses LZW alone."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "packbits": 32773}
LETTERS = {1: "B", 2: "s", 3: "H", 4: "I", 16: "Q"}


def tiff_file(
    values: np.ndarray,
    photometric: int,
    *,
    order: str = "<",
    compression: str = "none",
    predictor: int = 1,
    planar: bool = False,
    tile: int = 0,
    bits: int = 0,
    extra: Sequence[int] = (),
    is_big: bool = False,
    further: dict[int, tuple[int, Sequence[int]]] | None = None,
) -> bytes:
    """Return a TIFF of values (H, W, C); `bits` packs unsigned ones. `further` gives tags as type and values."""
    height, width, samples = values.shape
    rows = tile or 7  # strips that do not divide the height
    parts = np.moveaxis(values, -1, 0)[..., None] if planar else values[None]  # (planes, H, W, samples)
    segments = []
    for plane in parts:
        for top in range(0, height, rows):
            for left in range(0, width, tile or width):
                part = plane[top : top + rows, left : left + (tile or width)]
                if tile:
                    part = np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)), mode="edge")
                segments.append(_compressed(_bytes(part, order, predictor, bits), len(part), compression))
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits or values.dtype.itemsize * 8] * samples),
        259: (3, [COMPRESSIONS[compression]]),
        262: (3, [photometric]),
        277: (3, [samples]),
        284: (3, [2 if planar else 1]),
        339: (3, [kind] * samples),
        **({317: (3, [predictor])} if predictor > 1 else {}),
        **({338: (3, list(extra))} if extra else {}),
        **({322: (4, [tile]), 323: (4, [tile])} if tile else {278: (4, [rows])}),
        **(further or {}),
    }
    return _file(order, tags, segments, (324, 325) if tile else (273, 279), is_big)


def _bytes(part: np.ndarray, order: str, predictor: int, bits: int) -> bytes:
    rows, columns, samples = part.shape
    size = part.dtype.itemsize
    if bits:  # packed, the highest bit first, each row from a new byte
        digits = (part.reshape(rows, -1, 1).astype(np.int64) >> np.arange(bits)[::-1]) & 1
        return np.packbits(digits.reshape(rows, -1).astype(np.uint8), axis=1).tobytes()
    if predictor == 2:  # differences of whole values, wrapping round
        whole = np.ascontiguousarray(part).view(f"u{size}")
        part = np.diff(whole, axis=1, prepend=np.zeros((rows, 1, samples), whole.dtype))
    if predictor == 3:  # the bytes of all values of a row by weight, the heaviest first, then their differences
        weights = np.ascontiguousarray(part.astype(part.dtype.newbyteorder(">"))).view(np.uint8)
        weights = weights.reshape(rows, columns * samples, size).transpose(0, 2, 1).reshape(rows, -1, samples)
        return np.diff(weights, axis=1, prepend=np.zeros((rows, 1, samples), np.uint8)).tobytes()
    return part.astype(part.dtype.newbyteorder(order)).tobytes()


def _compressed(data: bytes, rows: int, compression: str) -> bytes:
    if compression == "deflate":
        return zlib.compress(data)
    if compression == "packbits":  # each run of up to 128 bytes as it is
        runs = [data[first : first + 128] for first in range(0, len(data), 128)]
        return b"".join(bytes([len(run) - 1]) + run for run in runs)
    if compression == "lzw":
        file = io.BytesIO()
        Image.frombytes("L", (len(data) // rows, rows), data).save(file, "TIFF", compression="tiff_lzw")
        with Image.open(file) as image:
            tags: Any = image.tag_v2
            (place,), (size,) = tags[273], tags[279]
        return file.getvalue()[place : place + size]
    return data


def _file(
    order: str,
    tags: dict[int, tuple[int, Sequence[int]]],
    segments: list[bytes],
    place_tags: tuple[int, int],
    is_big: bool,
) -> bytes:
    number, kind, field_size = ("Q", 16, 8) if is_big else ("I", 4, 4)
    head_size = 16 if is_big else 8
    places = [head_size + sum(map(len, segments[:index])) for index in range(len(segments))]
    tags = {**tags, place_tags[0]: (kind, places), place_tags[1]: (kind, [len(data) for data in segments])}
    start = head_size + sum(map(len, segments))
    beyond = start + (8 if is_big else 2) + len(tags) * (20 if is_big else 12) + field_size
    directory = struct.pack(order + ("Q" if is_big else "H"), len(tags))
    blob = b""
    for tag, (letter_kind, values) in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(values)}{LETTERS[letter_kind]}", *values)
        field = raw.ljust(field_size, b"\0")
        if len(raw) > field_size:
            field = struct.pack(order + number, beyond + len(blob))
            blob += raw + bytes(len(raw) % 2)
        directory += struct.pack(order + "HH" + number, tag, letter_kind, len(values)) + field
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHHQ", 43, 8, 0, start) if is_big else struct.pack(order + "HI", 42, start)
    return mark + head + b"".join(segments) + directory + bytes(field_size) + blob
