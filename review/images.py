"""The images as a browser shows them: a file as it is where every browser reads it right, else as the decoder does."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data_loader.decoder_process import DecoderPool
from data_loader.decoding import MAX_PIXELS
from data_loader.errors import ImageError
from data_loader.preprocess import Preprocess

TIMEOUT_S = 20.0  # for one image
MEASURE_S = 5.0  # for its head
CACHE_BYTES = 64_000_000
HEAD_BYTES = 65_536
SMALL_SIDES = (160, 320, 640)  # that the page asks for
LARGEST_SIDE = 16_384
JPEG_QUALITY = {"small": 80, "whole": 92}


class ShownImage(NamedTuple):
    """An encoded image; where it is a file as it is, `path` instead of `content`."""

    media_type: str
    content: bytes = b""
    path: Path | None = None


class ImageShow:
    """Shows images at a few sizes, decoded in `workers` processes; the newest small ones are kept."""

    def __init__(self, workers: int = 0) -> None:
        self._pool = DecoderPool(Preprocess(8, 8), workers or min(os.cpu_count() or 1, 4), TIMEOUT_S)
        self._heads = DecoderPool(Preprocess(8, 8), 1, MEASURE_S)  # it starts when it is first needed
        self._cache: OrderedDict[tuple[str, int, str], bytes] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def image(self, path: Path, side_px: int = 0) -> ShownImage:
        """Return an image, its longer side at most `side_px`, one of SMALL_SIDES; 0: as large as it is.

        Raises ImageError, OSError, DecoderStartError. It may take seconds; call it from any thread.
        """
        if side_px:
            return ShownImage("image/jpeg", self._small(path, side_px))
        if media_type := own_type(path):
            return ShownImage(media_type, path=path)
        return ShownImage("image/jpeg", self._decoded(path, LARGEST_SIDE, JPEG_QUALITY["whole"]))

    def size(self, path: Path) -> tuple[int, int]:
        """Return an image's width and height, from its head; call it from any thread.

        Raises ImageError, DecoderStartError.
        """
        return self._heads.measure(str(path), MAX_PIXELS)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
        self._heads.close()

    def _small(self, path: Path, side_px: int) -> bytes:
        key = (str(path), side_px, version_of(path))
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        content = self._decoded(path, side_px, JPEG_QUALITY["small"])
        with self._lock:
            if key not in self._cache:
                self._cache[key] = content
                self._cached_bytes += len(content)
            while self._cached_bytes > CACHE_BYTES:
                self._cached_bytes -= len(self._cache.popitem(last=False)[1])
        return content

    def _decoded(self, path: Path, side_px: int, quality: int) -> bytes:
        image = self._pool.look(str(path), MAX_PIXELS, side_px)
        return _jpeg(image, quality)


def own_type(path: Path) -> str:
    """Return the media type of a file that every browser shows as the decoder does; else "". Raises ImageError.

    Those are JPEG, and PNG without EXIF, whose orientation browsers take differently.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/png" if head.startswith(b"\x89PNG\r\n\x1a\n") and b"eXIf" not in head else ""


def version_of(path: Path) -> str:
    """Return what changes when a file does. Raises ImageError where it is not a file."""
    try:
        found = path.stat()
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    if not path.is_file():
        raise ImageError("it is not a file")
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
