"""Image files by their bytes."""

from __future__ import annotations

import struct
import zlib

import numpy as np

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises more pixels than it holds."""
    return _png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"\0" * 100)


def png_file(values: np.ndarray, further: dict[bytes, bytes] | None = None, bits: int = 0) -> bytes:
    """Return a PNG of uint8 or uint16 (H, W, C), with further chunks before the pixels; `bits` packs grey values."""
    height, width, channels = values.shape
    head = struct.pack(">IIBB3x", width, height, bits or values.dtype.itemsize * 8, COLOUR_TYPES[channels])
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    if bits:
        digits = (rows[:, :, None] >> np.arange(bits)[::-1]) & 1
        rows = np.packbits(digits.reshape(height, -1).astype(np.uint8), axis=1)
    return _png(head, b"".join(b"\0" + row.tobytes() for row in rows), further)


def bmp_file(pixels: bytes, width: int, height: int, bits: int, masks: tuple[int, int, int, int]) -> bytes:
    """Return a BMP (version 4) whose colours and alpha stand where masks say; a height below 0: the top row first."""
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, bits, 3, len(pixels), 0, 0, 0, 0)
    head += struct.pack("<4I", *masks) + bytes(52)
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(pixels), 0, 0, 14 + 108) + head + pixels


def _png(head: bytes, rows: bytes, further: dict[bytes, bytes] | None = None) -> bytes:
    chunks = {b"IHDR": head, **(further or {}), b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks.items())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
