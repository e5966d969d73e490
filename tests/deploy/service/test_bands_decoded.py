"""Images of bands in the service: decoded from bytes, within their share of the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from deploy.service.image_decoder import BYTES_A_PIXEL, ImageDecoder, bytes_a_pixel

BANDS = Preprocess(16, 16, channels=6, band_range=((0.0, 3000.0),) * 6, band_type="uint16")


def test_what_a_pixel_takes() -> None:
    assert bytes_a_pixel(Preprocess(8, 8)) == BYTES_A_PIXEL
    assert bytes_a_pixel(BANDS) == 6 * (2 + 3) + 32


def test_a_request_of_bands() -> None:
    rasterio: Any = pytest.importorskip("rasterio", reason="needs requirements-geo.txt")
    from rasterio.io import MemoryFile

    values = np.random.default_rng(0).integers(1, 3000, (6, 40, 30)).astype(np.uint16)
    values[:, :5] = 0
    place = rasterio.Affine(0.5, 0, 3e5, 0, -0.5, 2.8e6)
    form = {"driver": "GTiff", "dtype": "uint16", "count": 6, "nodata": 0, "crs": "EPSG:32640", "transform": place}
    with MemoryFile() as memory:
        with memory.open(width=30, height=40, **form) as file:
            file.write(values)
        data = memory.read()
    metadata = ModelMetadata(("a", "b"), BANDS, {"module": "m", "name": "n", "args": {}}, output="mask_logits")
    decoder = ImageDecoder(metadata, 10**6, 2 * 10**6 * bytes_a_pixel(BANDS), 1, 60)
    try:
        prepared = decoder.prepare(data, may_be_large=False)
        refused = decoder.prepare(b"P5 2 2 255 abcd", may_be_large=True)
    finally:
        decoder.close()
    assert prepared is not None and prepared.pixels is not None and prepared.size == (30, 40)
    assert np.array_equal(prepared.pixels, BANDS.net_input(BANDS.fit(BANDS.decode(data))))
    assert prepared.gaps is not None and prepared.gaps.sum() == 5 * 30 and prepared.gaps[:5].all()
    assert refused is not None and refused.error == "it has 1 band of uint8, and 6 bands of uint16 are needed"
