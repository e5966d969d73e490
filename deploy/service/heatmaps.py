"""Heat maps for the service: the map of a prediction laid over its image, as a data URL."""

from __future__ import annotations

import asyncio
import io

import numpy as np
from PIL import Image

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import as_array
from deploy.backends.base import HeatMap, HeatMapper
from deploy.inference.image_writers import JPEG_QUALITY
from deploy.service.batching import MicroBatcher
from deploy.service.image_decoder import ImageDecoder
from visualization.heatmap_overlay import heat_map_image
from visualization.html_page import data_uri

MAX_SIDE_PX = 1024  # of the JPEG in the response
SIDES_PX = (448, MAX_SIDE_PX)


class HeatMaps:
    """Makes heat maps, at most `at_once` at a time: each holds its image, and takes longer than a prediction."""

    def __init__(
        self, mapper: HeatMapper, metadata: ModelMetadata, decoder: ImageDecoder, batcher: MicroBatcher, at_once: int
    ) -> None:
        self._mapper, self._metadata, self._decoder, self._batcher = mapper, metadata, decoder, batcher
        self._slots = asyncio.Semaphore(at_once)

    async def data_url(self, data: bytes, label: int) -> str:
        """Return an encoded image under its map, as data:image/jpeg;base64,... Raises BackendError, ImageError."""
        async with self._slots:
            shown = await asyncio.wrap_future(self._batcher.in_pool(self._decode, data, False))
            if shown is None:  # it may be a large one
                large = self._batcher.in_pool(self._decode, data, True, is_large=True)
                shown = await asyncio.wrap_future(large)
                assert shown is not None  # it would have raised ImageError
            decoded, image = shown
            heat_map = await asyncio.wrap_future(self._batcher.in_net_thread(self._mapper, image, label))
            return await asyncio.wrap_future(self._batcher.in_pool(self._draw, decoded, heat_map))

    def _decode(self, data: bytes, may_be_large: bool) -> tuple[Image.Image, np.ndarray] | None:
        """Return the RGB image to draw on, at most MAX_SIDE_PX, and the net's input, float32 (C, H, W)."""
        shown = self._decoder.show(data, MAX_SIDE_PX, may_be_large=may_be_large)
        if shown is None:
            return None
        decoded, fitted = shown
        return decoded, self._metadata.preprocess(as_array(fitted))

    def _draw(self, image: Image.Image, heat_map: HeatMap) -> str:
        drawn = heat_map_image(image, heat_map.heat, self._metadata.preprocess.resize, heat_map.marks, SIDES_PX)
        file = io.BytesIO()
        drawn.save(file, "JPEG", quality=JPEG_QUALITY)
        return data_uri("image/jpeg", file.getvalue())
