"""Heat maps for the service: the map of an answer laid over the image it was given for, as a data URL."""

from __future__ import annotations

import asyncio
import base64
import io

import numpy as np
from PIL import Image

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import ImageError, as_array
from deploy.backends.base import HeatMap, HeatMapper
from deploy.inference.image_writers import JPEG_QUALITY
from deploy.service.batching import MicroBatcher
from deploy.service.image_decoder import ImageDecoder
from visualization.heatmap_overlay import heat_map_image

MAX_SIDE_PX = 1024  # of what is sent back
SIDES_PX = (448, MAX_SIDE_PX)


class HeatMaps:
    """Makes heat maps, `at_once` at a time: each holds its image, and takes the net longer than an answer."""

    def __init__(
        self, mapper: HeatMapper, metadata: ModelMetadata, decoder: ImageDecoder, batcher: MicroBatcher, at_once: int
    ) -> None:
        self._mapper, self._metadata, self._decoder, self._batcher = mapper, metadata, decoder, batcher
        self._turn = asyncio.Semaphore(at_once)

    async def data_url(self, data: bytes, label: int) -> str:
        """Give data:image/jpeg;base64,... of an encoded decoded under its map. Raises BackendError, ImageError."""
        async with self._turn:
            try:
                decoded, image = await asyncio.wrap_future(self._batcher.in_pool(self._seen, data, False))
            except ImageError:  # it is a large one
                seen = self._batcher.in_pool(self._seen, data, True, is_large=True)
                decoded, image = await asyncio.wrap_future(seen)
            found = await asyncio.wrap_future(self._batcher.in_net_thread(self._mapper, image, label))
            return await asyncio.wrap_future(self._batcher.in_pool(self._drawn, decoded, found))

    def _seen(self, data: bytes, may_be_large: bool) -> tuple[Image.Image, np.ndarray]:
        """Return the image to draw on, and the net's input, float32 (C, H, W)."""
        preprocess = self._metadata.preprocess
        decoded = seen = self._decoder.decode(data, 3, may_be_large=may_be_large)
        if preprocess.channels != 3:
            seen = self._decoder.decode(data, preprocess.channels, may_be_large=may_be_large)
        image = preprocess(as_array(seen))
        if max(decoded.size) > MAX_SIDE_PX:
            decoded.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        return decoded, image

    def _drawn(self, image: Image.Image, found: HeatMap) -> str:
        made = heat_map_image(image, found.heat, self._metadata.preprocess.resize, found.marks, SIDES_PX)
        file = io.BytesIO()
        made.save(file, "JPEG", quality=JPEG_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
