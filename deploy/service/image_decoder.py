"""Decoding for the service: hostile images within limits, and as many at once as the memory holds."""

from __future__ import annotations

from PIL import Image

from artifacts.metadata import ModelMetadata
from common.errors import UserError
from data_loader.preprocess import decode
from deploy.inference.predictor import Prepared, prepare

BYTES_A_PIXEL = 40  # a 32-bit float TIFF, the dearest format, while it is decoded (measured; 16-bit PNG 37, JPEG 8)
LEAST_SMALL_PIXELS = 250_000


class DecodingError(UserError):
    """Limits that do not go together; the message is one sentence for the user."""


class ImageDecoder:
    """Decodes within `memory_bytes`, whatever is sent: small images in `workers` threads, large ones in another.

    A large image has up to `max_pixels`, a small one what the memory leaves for each of the workers. Raises
    DecodingError where that is too little.
    """

    def __init__(self, metadata: ModelMetadata, max_pixels: int, memory_bytes: int, workers: int) -> None:
        self._metadata = metadata
        self._most = min(max_pixels, metadata.preprocess.max_pixels)
        self._small = min((memory_bytes // BYTES_A_PIXEL - self._most) // workers, self._most)
        if self._small < min(LEAST_SMALL_PIXELS, self._most):
            needed = (self._most + LEAST_SMALL_PIXELS * workers) * BYTES_A_PIXEL
            raise DecodingError(
                f"--decode_memory_mb must be at least {-(-needed // 10**6)} for images of {self._most / 1e6:g} "
                f"megapixels and {workers} workers, got {memory_bytes // 10**6}"
            )

    def prepared(self, data: bytes, *, may_be_large: bool) -> Prepared:
        """Decode an image and make it ready for the net, or say why that cannot be."""
        try:
            image = self.decode(data, self._metadata.preprocess.channels, may_be_large=may_be_large)
            return Prepared("", prepare(image, self._metadata))
        except (ValueError, MemoryError) as error:
            return Prepared("", None, str(error) or "it is too large for the memory")

    def decode(self, data: bytes, channels: int, *, may_be_large: bool) -> Image.Image:
        """Decode an image. Raises ImageError, also for a large one where it may not be."""
        return decode(data, channels, self._most if may_be_large else self._small)
