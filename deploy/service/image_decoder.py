"""Decoding for the service: untrusted images within limits, as many at once as the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from artifacts.metadata import ModelMetadata
from common.errors import UserError
from data_loader.band_image import Decoded
from data_loader.decoder_process import DecoderPool, DecodeTimeoutError
from data_loader.preprocess import ImageError, Preprocess
from deploy.inference.predictor import Prepared, prepared_from
from deploy.inference.tiles import DecodedImage

BYTES_A_PIXEL = 40  # peak while a 32-bit float TIFF, the costliest format, is decoded (measured; 16-bit PNG 37, JPEG 8)
MIN_SMALL_PIXELS = 250_000
STALL_S = 5.0  # in which no decoder finishes anything, though all are busy: the service is not ready
BLOCK_BYTES = 128 * 10**6  # of GDAL's blocks and their threads, for images of bands
OWN_BYTES = 48 * 10**6  # of a process, beside its share: the encoded image, and what plugins load when first used

T = TypeVar("T")
Shown = tuple[Image.Image, Decoded]  # the image to draw on, and the one fitted to the net's input


class DecodingError(UserError):
    """Limits that contradict each other; the message is one sentence for the user."""


class ImageDecoder:
    """Decodes any image within `memory_bytes`: small ones in `workers` processes at once, large ones in another.

    A large image has up to `max_pixels`, a small one the share that remains for each worker. No image takes longer than
    `timeout_s`. A process that takes more memory than its share gets none. Raises DecodingError where that is too
    little.
    """

    def __init__(
        self, metadata: ModelMetadata, max_pixels: int, memory_bytes: int, workers: int, timeout_s: float
    ) -> None:
        self._metadata = metadata
        self._max_pixels = min(max_pixels, metadata.preprocess.max_pixels)
        self._bytes_a_pixel = bytes_a_pixel(metadata.preprocess)
        most = memory_bytes // self._bytes_a_pixel
        self._max_small_pixels = min((most - self._max_pixels) // workers, self._max_pixels)
        if self._max_small_pixels < min(MIN_SMALL_PIXELS, self._max_pixels):
            needed = (self._max_pixels + MIN_SMALL_PIXELS * workers) * self._bytes_a_pixel
            raise DecodingError(
                f"--decode_memory_mb must be at least {-(-needed // 10**6)} for images of {self._max_pixels / 1e6:g} "
                f"megapixels and {workers} workers, got {memory_bytes // 10**6}"
            )
        self._small = self._pool(workers, self._max_small_pixels, timeout_s)
        self._large = self._pool(1, self._max_pixels, timeout_s)

    def start(self) -> None:
        """Start the processes, and wait for them. Raises DecoderStartError."""
        self._small.start()
        self._large.start()

    def prepare(self, data: bytes, *others: bytes, may_be_large: bool) -> Prepared | None:
        """Return an image, or both of a pair, decoded and preprocessed for the net, or why it cannot be used.

        None unless `may_be_large`: it is large or damaged, and another try has to find out.
        """
        fitted = self._decoded(DecoderPool.fit, (data, *others), may_be_large)
        if isinstance(fitted, str):
            return Prepared("", None, fitted)
        return None if fitted is None else prepared_from(fitted, ("", ""), self._metadata)

    def whole(self, images: Sequence[bytes], *, may_be_large: bool) -> list[DecodedImage] | str | None:
        """Return an image, or both of a pair, at their own size, or why they cannot be used; None as `prepare` does."""
        found = self._decoded(DecoderPool.whole, images, may_be_large)
        return [DecodedImage(*image) for image in found] if isinstance(found, list) else found

    def show(self, data: bytes, side_px: int, *, may_be_large: bool) -> Shown | None:
        """Return the RGB image, no side longer than `side_px`, and the one that is fitted to the net's input.

        None unless `may_be_large`, as in `prepare`. Raises ImageError.
        """
        try:
            pool, max_pixels = self._pool_for(may_be_large)
            return pool.show(data, max_pixels, side_px)
        except DecodeTimeoutError:
            raise
        except ImageError:
            if may_be_large:
                raise
            return None

    def is_stalled(self) -> bool:
        """Return whether all processes for small images are busy, and none has finished anything for STALL_S."""
        return self._small.is_stalled(STALL_S)

    def close(self) -> None:
        """Kill the processes; images that they still decode get an error."""
        self._small.close()
        self._large.close()

    def _decoded(
        self, decode: Callable[[DecoderPool, bytes, int], T], images: Sequence[bytes], may_be_large: bool
    ) -> list[T] | str | None:
        """Return what `decode` gives for each image, or a sentence; None where another try has to find out."""
        pool, max_pixels = self._pool_for(may_be_large)
        decoded: list[T] = []
        try:
            for image in images:
                decoded.append(decode(pool, image, max_pixels))
            return decoded
        except (UserError, MemoryError) as error:
            text = str(error) or "it is too large for the memory"
            text = f"its second image: {text}" if decoded else text
            is_final = may_be_large or isinstance(error, DecodeTimeoutError)
            return text if is_final else None

    def _pool(self, count: int, pixels: int, timeout_s: float) -> DecoderPool:
        own_bytes = OWN_BYTES + BLOCK_BYTES * self._metadata.preprocess.has_bands
        return DecoderPool(self._metadata.preprocess, count, timeout_s, pixels * self._bytes_a_pixel + own_bytes)

    def _pool_for(self, may_be_large: bool) -> tuple[DecoderPool, int]:
        return (self._large, self._max_pixels) if may_be_large else (self._small, self._max_small_pixels)


def bytes_a_pixel(preprocess: Preprocess) -> int:
    """Return what decoding takes for a pixel: of bands the values as stored, as bytes twice, a mask, and two floats."""
    if not preprocess.has_bands:
        return BYTES_A_PIXEL
    stored = np.dtype(preprocess.band_type or "float64").itemsize
    return max(BYTES_A_PIXEL, preprocess.image_channels * (stored + 3) + 32)
