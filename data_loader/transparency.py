"""The transparency of PNG and BMP kinds in which Pillow has another than the file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image

STEPS = {"L;2": 85, "L;4": 17, "L": 1, "RGB": 1}  # Pillow scales the values by these, and not the transparent one
BITFIELDS = 3  # compression of a BMP whose colours stand where masks say


def with_stored_alpha(image: Image.Image, reopen: Callable[[], BinaryIO]) -> Image.Image:
    """Return an opened PNG or BMP, not yet loaded, with the alpha of its file; others as they are.

    A transparent value of 2, 4 or 16 bits is compared before values are scaled (PNG, third edition, 11.3.1). Of a BMP
    alpha counts where a mask names it, unless it is 0 everywhere: such files are meant to be opaque.
    """
    if image.format == "PNG" and "transparency" in image.info and image.tile:  # type: ignore[attr-defined]
        return _png(image, reopen)
    return _bmp(image, reopen) if image.format in ("BMP", "DIB") else image


def _png(image: Image.Image, reopen: Callable[[], BinaryIO]) -> Image.Image:
    raw, key = image.tile[0][3], image.info["transparency"]  # type: ignore[attr-defined]
    if step := STEPS.get(raw, 0):
        most = 255 // step  # the file has 16 bits, of which the lowest count
        image.info["transparency"] = tuple(v & most for v in key) if raw == "RGB" else (key & most) * step
        return image
    if raw == "I;16B":
        values = np.asarray(image)
        shown = values != key
        colours = Image.fromarray(np.rint(values * (255 / 65535)).astype(np.uint8))
    elif raw == "RGB;16B":
        with reopen() as file, Image.open(file, formats=("PNG",)) as again:
            again.tile = [again.tile[0]._replace(args="RGB;16L")]  # the low bytes, as high ones of the other byte order
            low = np.asarray(again).astype(np.uint16)
        shown = (np.asarray(image).astype(np.uint16) << 8 | low != key).any(axis=2)
        colours = image.copy()
    else:
        return image
    info = {name: value for name, value in image.info.items() if name != "transparency"}
    colours.putalpha(Image.fromarray(shown))
    colours.info = info
    return colours


def _bmp(image: Image.Image, reopen: Callable[[], BinaryIO]) -> Image.Image:
    if image.mode == "RGBA":
        return image if image.getchannel("A").getbbox() else image.convert("RGB")
    with reopen() as file:
        data = file.read(14 + 56) if image.format == "BMP" else bytes(14) + file.read(56)
        size, _, height, _, bits, compression = struct.unpack_from("<IiiHHI", data, 14)
        if size < 56 or (bits, compression) != (16, BITFIELDS):
            return image
        (mask,) = struct.unpack_from("<I", data, 14 + 52)
        if not mask or image.format != "BMP":
            return image
        file.seek(struct.unpack_from("<I", data, 10)[0])
        stride = -(-image.width * 2 // 4) * 4
        rows = np.frombuffer(file.read(stride * image.height), "<u2").reshape(image.height, stride // 2)
    alpha = (rows[:, : image.width] & mask) != 0
    shown = alpha if height < 0 else alpha[::-1]
    if not shown.any():
        return image
    image = image.convert("RGB")
    image.putalpha(Image.fromarray(shown))
    return image
