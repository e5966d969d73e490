"""A process that decodes images for another one, started by `data_loader.decoder_process`.

Standard input is a socket. A request is REQUEST and the source; the reply is REPLY and the pixels, or a reason (UTF-8).
Nothing is unpickled on either side. The process imports no torch: it starts in 0.1 s and takes 30 MB.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import struct
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import AvifImagePlugin, Image

from common.malloc import return_freed_memory
from data_loader.band_image import Decoded, gaps_of
from data_loader.bands import has_rasterio
from data_loader.decode_guard import GUARD
from data_loader.decoding import decode, image_size
from data_loader.preprocess import Preprocess, as_array

# FIT, WHOLE, SHOW, LOOK or MEASURE, BYTES or PATH, max_pixels, longest side to show, bytes of the source
REQUEST = struct.Struct("<ccQIQ")
REPLY = struct.Struct("<cQ")  # READY, PIXELS, BAD or BUG, bytes that follow
SIZE = struct.Struct("<II")  # width and height of an image as decoded, or to show, before the pixels
FIT, WHOLE, SHOW, LOOK, MEASURE = b"f", b"w", b"s", b"l", b"m"
BYTES, PATH = b"b", b"p"
READY, PIXELS, BAD, BUG = b"r", b"p", b"e", b"x"
OVERTIME = 3  # times the deadline, after which the process ends itself: its parent was killed


def main() -> None:
    """Decode until the socket is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # its parent's, which finishes what it has begun
        signal.signal(number, signal.SIG_IGN)
    settings = json.loads(sys.argv[1])
    preprocess = Preprocess.from_dict(settings["preprocess"])
    return_freed_memory()
    GUARD.timeout_s = 0.0  # its parent watches it
    warnings.simplefilter("ignore")  # of odd metadata
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each has a stack of 8 MB, and other images are decoded beside it
    Image.init()
    if preprocess.has_bands and has_rasterio():
        importlib.import_module("rasterio")  # before the limit: its libraries take 100 MB of addresses
    if settings["memory_bytes"]:
        _limit_memory(settings["memory_bytes"])
    connection = socket.socket(fileno=sys.stdin.fileno())
    with connection.makefile("rb") as requests, contextlib.suppress(ConnectionError):
        connection.sendall(REPLY.pack(READY, 0))
        while header := requests.read(REQUEST.size):
            status, content = _reply(requests, header, preprocess, OVERTIME * settings["timeout_s"])
            connection.sendall(REPLY.pack(status, len(content)))
            connection.sendall(content)


def _reply(requests: BinaryIO, header: bytes, preprocess: Preprocess, most_s: float) -> tuple[bytes, bytes]:
    kind, form, max_pixels, side_px, size = REQUEST.unpack(header)
    source: bytes | str = requests.read(size)
    if form == PATH:
        source = os.fsdecode(source)
    work: dict[bytes, Callable[..., bytes]] = {FIT: _fit, WHOLE: _whole, SHOW: _show, LOOK: _look, MEASURE: _measure}
    signal.setitimer(signal.ITIMER_REAL, most_s)
    try:
        return PIXELS, work[kind](source, preprocess, max_pixels, side_px)
    except ValueError as error:  # ImageError, or an image that cannot be fitted
        return BAD, str(error).encode("utf-8", "surrogateescape")
    except MemoryError:
        return BAD, b"it is too large for the memory"
    except Exception:
        return BUG, traceback.format_exc().encode("utf-8", "backslashreplace")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _fit(source: bytes | str, preprocess: Preprocess, max_pixels: int, _: int) -> bytes:
    """Return SIZE of the decoded image, and the fitted pixels, uint8 (height, width, channels).

    Where pixels of the image itself hold no data, they follow as bits, (H, W).
    """
    decoded = _decoded(source, preprocess, max_pixels)
    return _with_gaps(decoded, preprocess.fit(decoded))


def _whole(source: bytes | str, preprocess: Preprocess, max_pixels: int, _: int) -> bytes:
    """Return SIZE of the decoded image and all its pixels, uint8 (H, W, channels), and the bits as `_fit` does."""
    decoded = _decoded(source, preprocess, max_pixels)
    return _with_gaps(decoded, as_array(decoded))


def _with_gaps(decoded: Decoded, pixels: np.ndarray) -> bytes:
    gaps = gaps_of([decoded])
    bits = b"" if gaps is None else np.packbits(gaps).tobytes()
    return b"".join([SIZE.pack(*decoded.size), pixels.tobytes(), bits])


def _show(source: bytes | str, preprocess: Preprocess, max_pixels: int, side_px: int) -> bytes:
    """Return SIZE, the RGB image with no side longer than `side_px`, and what `_fit` returns."""
    if preprocess.has_bands:
        bands = _decoded(source, preprocess, max_pixels)
        shown, fitted = bands.convert("RGB"), SIZE.pack(*bands.size) + preprocess.fit(bands).tobytes()
    elif preprocess.image_channels == 3:
        shown = decode(source, 3, max_pixels, icc_profiles=preprocess.icc_profiles)
        fitted = SIZE.pack(*shown.size) + preprocess.fit(shown).tobytes()
    else:
        shown = decode(source, 3, max_pixels, icc_profiles=preprocess.icc_profiles)
        fitted = _fit(source, preprocess, max_pixels, 0)
    if max(shown.size) > side_px:
        shown.thumbnail((side_px, side_px))
    return SIZE.pack(*shown.size) + as_array(shown).tobytes() + fitted


def _look(source: bytes | str, preprocess: Preprocess, max_pixels: int, side_px: int) -> bytes:
    """Return SIZE and the RGB image with no side longer than `side_px`, decoded at about that size where it can be."""
    image = decode(source, 3, max_pixels, (side_px, side_px), preprocess.icc_profiles)
    if max(image.size) > side_px:
        image.thumbnail((side_px, side_px))
    return SIZE.pack(*image.size) + as_array(image).tobytes()


def _measure(source: bytes | str, preprocess: Preprocess, max_pixels: int, _: int) -> bytes:
    """Return SIZE as `decode` would give it; no pixel is decoded."""
    return SIZE.pack(*image_size(source, max_pixels)[0])


def _decoded(source: bytes | str, preprocess: Preprocess, max_pixels: int) -> Decoded:
    if preprocess.has_bands:
        return replace(preprocess, max_pixels=max_pixels).decode(source)
    return decode(source, preprocess.image_channels, max_pixels, icc_profiles=preprocess.icc_profiles)


def _limit_memory(more_bytes: int) -> None:
    """Let the process take so many bytes of addresses beside those that it has; beyond them a decoder gets none."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):  # no /proc, or a hard limit that is lower already
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
