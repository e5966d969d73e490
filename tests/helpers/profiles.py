"""ICC profiles by their bytes (ICC.1:2001-04), and the colours that they mean, by the CIE's formulas."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65_XY = (0.3127, 0.3290)
SRGB_XY = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3_XY = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
ADOBE_XY = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
PROPHOTO_XY, D50_XY = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), (0.3457, 0.3585)
SRGB_CURVE = 0.0  # instead of a gamma
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def matrix(primaries: Sequence[tuple[float, float]], white: tuple[float, float]) -> np.ndarray:
    """Return the matrix from linear RGB to XYZ, adapted to D50."""
    columns = np.stack([_xyz(*place) for place in primaries], 1)
    to_xyz = columns * np.linalg.solve(columns, _xyz(*white))
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ _xyz(*white))) @ BRADFORD
    return np.asarray(adapted @ to_xyz)


def to_srgb(
    values: np.ndarray, primaries: Sequence[tuple[float, float]], white: tuple[float, float], gamma: float
) -> np.ndarray:
    """Return the sRGB values, 0 to 255, of RGB values of 0 to 255 in another space."""
    shares = values / 255
    linear = shares**gamma if gamma else np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return encoded(linear @ matrix(primaries, white).T @ np.linalg.inv(matrix(SRGB_XY, D65_XY)).T)


def encoded(linear: np.ndarray) -> np.ndarray:
    """Return linear light as sRGB values, 0 to 255 (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.asarray(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


def rgb_profile(primaries: Sequence[tuple[float, float]], white: tuple[float, float], gamma: float) -> bytes:
    """Return a profile of three primaries; gamma SRGB_CURVE for sRGB's curve."""
    columns = matrix(primaries, white)
    tags = [(key, b"XYZ " + bytes(4) + _fixed(columns[:, at])) for at, key in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    return _profile(b"RGB ", b"XYZ ", [*tags, *((key, _curve(gamma)) for key in (b"rTRC", b"gTRC", b"bTRC"))])


def grey_profile(gamma: float) -> bytes:
    """Return a profile of grey values."""
    return _profile(b"GRAY", b"XYZ ", [(b"kTRC", _curve(gamma))])


def cmyk_profile(black_lightness: float) -> bytes:
    """Return a profile of CMYK in which black ink has this lightness (L*), all inks have 0, those without black 100."""
    even = bytes(range(256))
    lightness = [0 if inks == 15 else black_lightness if inks & 1 else 100 for inks in range(16)]
    nodes = b"".join(bytes([round(2.55 * value), 128, 128]) for value in lightness)
    identity = _fixed(np.eye(3).reshape(-1))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + even * 4 + nodes + even * 3
    return _profile(b"CMYK", b"Lab ", [(b"A2B0", table)])


def _profile(space: bytes, connection: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = [
        (b"desc", text),
        (b"wtpt", b"XYZ " + bytes(4) + _fixed(D50)),
        (b"cprt", b"text" + bytes(4) + b"CC0\0"),
        *tags,
    ]
    offset, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for key, data in tags:
        table += key + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(">I4sI4s4s4s", offset + len(body), bytes(4), 0x02400000, kind, space, connection)
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(D50) + bytes(48)
    return head + table + body


def _curve(gamma: float) -> bytes:
    if gamma == SRGB_CURVE:
        values = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _fixed(np.array(values))
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _fixed(values: np.ndarray) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values.tolist())


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1, (1 - x - y) / y])
