"""Decoding for the service: untrusted images within limits, as many at once as the memory allows."""

from __future__ import annotations

from PIL import Image

from artifacts.metadata import ModelMetadata
from common.errors import UserError
from data_loader.preprocess import decode
from deploy.inference.predictor import Prepared, prepare

BYTES_A_PIXEL = 40  # peak while a 32-bit float TIFF, the costliest format, is decoded (measured; 16-bit PNG 37, JPEG 8)
MIN_SMALL_PIXELS = 250_000


class DecodingError(UserError):
    """Limits that contradict each other; the message is one sentence for the user."""


class ImageDecoder:
    """Decodes any image within `memory_bytes`: small ones in `workers` threads at once, large ones in another thread.

    A large image has up to `max_pixels`, a small one the share that remains for each worker. Raises DecodingError where
    that is too little.
    """

    def __init__(self, metadata: ModelMetadata, max_pixels: int, memory_bytes: int, workers: int) -> None:
        self._metadata = metadata
        self._max_pixels = min(max_pixels, metadata.preprocess.max_pixels)
        self._max_small_pixels = min((memory_bytes // BYTES_A_PIXEL - self._max_pixels) // workers, self._max_pixels)
        if self._max_small_pixels < min(MIN_SMALL_PIXELS, self._max_pixels):
            needed = (self._max_pixels + MIN_SMALL_PIXELS * workers) * BYTES_A_PIXEL
            raise DecodingError(
                f"--decode_memory_mb must be at least {-(-needed // 10**6)} for images of {self._max_pixels / 1e6:g} "
                f"megapixels and {workers} workers, got {memory_bytes // 10**6}"
            )

    def prepare(self, data: bytes, *, may_be_large: bool) -> Prepared:
        """Return an image decoded and preprocessed for the net, or the reason why it cannot be used."""
        try:
            image = self.decode(data, self._metadata.preprocess.channels, may_be_large=may_be_large)
            return Prepared("", prepare(image, self._metadata))
        except (UserError, MemoryError) as error:
            return Prepared("", None, str(error) or "it is too large for the memory")

    def decode(self, data: bytes, channels: int, *, may_be_large: bool) -> Image.Image:
        """Return a decoded image. Raises ImageError, also for a large image unless `may_be_large`."""
        max_pixels = self._max_pixels if may_be_large else self._max_small_pixels
        return decode(data, channels, max_pixels, icc_profiles=self._metadata.preprocess.icc_profiles)
