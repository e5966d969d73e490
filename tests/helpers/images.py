"""Image files by their bytes."""

from __future__ import annotations

import struct
import zlib

import numpy as np

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises more pixels than it holds."""
    return _png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"\0" * 100)


def png_file(values: np.ndarray, further: dict[bytes, bytes] | None = None) -> bytes:
    """Return a PNG of uint8 or uint16 (H, W, C), with further chunks before the pixels."""
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    head = struct.pack(">IIBBBBB", width, height, bits, COLOUR_TYPES[channels], 0, 0, 0)
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    return _png(head, b"".join(b"\0" + row.tobytes() for row in rows), further)


def _png(head: bytes, rows: bytes, further: dict[bytes, bytes] | None = None) -> bytes:
    chunks = {b"IHDR": head, **(further or {}), b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks.items())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
