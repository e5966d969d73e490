"""Georeferenced images by rasterio (requirements-geo.txt): read by rows, and masks written in the same place."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_loader.bands import Bands, check_dataset, has_rasterio, scaled, window_values
from data_loader.decoding import quiet_decoders
from data_loader.mask_classes import VOID, MaskClass
from data_loader.preprocess import ImageError, Preprocess, as_array, image_of

SUFFIXES = (".tif", ".tiff")
INSTALL_GEO = "pip install -r requirements-geo.txt"
BLOCK_PX = 256  # of a written GeoTIFF
CACHE_MB = "256"  # of GDAL's blocks: three rows of tiles of 512 px, 50,000 px wide
WGS84 = "EPSG:4326"  # GeoJSON's longitude and latitude
DEGREE_DIGITS = 8  # 1 mm
POLYGON_BLOCK_PX = 2048


class GeoImage:
    """A TIFF that is read by rows; `is_georeferenced` where it has a place on the earth.

    A net of bands gets all of them, as `data_loader.bands` reads them. For others the first three of three and more
    bands count as red, green and blue, one is repeated; 16 bits are scaled to 8 as by the decoder. Nodata and alpha say
    which pixels hold data.
    """

    def __init__(self, dataset: Any, preprocess: Preprocess) -> None:
        self._dataset, self._preprocess = dataset, preprocess
        self.size = (dataset.width, dataset.height)
        self._has_gaps = any("all_valid" not in {flag.name for flag in flags} for flags in dataset.mask_flag_enums)

    def check_bands(self) -> None:
        """Raise ImageError for bands that cannot be read by rows, or that the net was not trained on."""
        if self._preprocess.has_bands:
            check_dataset(self._dataset)
            self._preprocess.check_kind((self._dataset.count, self._dataset.dtypes[0]))
            return
        types = set(self._dataset.dtypes[: self._bands])
        if not types <= {"uint8", "uint16"}:
            raise ImageError(
                f"its bands are of {', '.join(sorted(types))}, and tiles are read from bands of 8 or 16 bits without a "
                "sign: scale it (gdal_translate -ot Byte -scale)"
            )
        if self._dataset.colorinterp[0].name == "palette":
            raise ImageError("it has a palette: expand it to colours (gdal_translate -expand rgb)")

    @property
    def is_georeferenced(self) -> bool:
        """Whether it has a coordinate system, by a transform or by ground control points."""
        return bool(self._dataset.crs or self._dataset.gcps[1])

    def rows(self, first: int, end: int) -> np.ndarray:
        """Return rows first..end-1, uint8 (rows, W, C). Raises ImageError."""
        return self._pixels(window=((first, end), (0, self.size[0])))

    def valid(self, first: int, end: int) -> np.ndarray | None:
        """Return which of these pixels (rows, W) hold data; None where all do. Raises ImageError."""
        if self._preprocess.has_bands:
            gaps = self._window(first, end).gaps
            return None if gaps is None else ~gaps
        if not self._has_gaps:
            return None
        with _reading():
            return np.asarray(self._dataset.dataset_mask(window=((first, end), (0, self.size[0]))) > 0)

    def overview(self, side_px: int) -> Image.Image:
        """Return it as RGB, no side longer than `side_px`. Raises ImageError."""
        scale = min(1.0, side_px / max(self.size))
        shape = (max(1, round(self.size[1] * scale)), max(1, round(self.size[0] * scale)))
        pixels = self._pixels(out_shape=shape)
        return image_of(pixels).convert("RGB")

    def write_mask(
        self, path: Path, rows: Callable[[int, int], np.ndarray], classes: Sequence[MaskClass], lookup: np.ndarray
    ) -> None:
        """Write a mask's rows as a GeoTIFF of one band in the same place, with the classes' colours and names.

        `rows(first, end)` gives class indices (rows, W); `lookup` (256,) the pixel value of each, that of VOID being
        nodata. Raises ImageError.
        """
        import rasterio

        source, (width, height) = self._dataset, self.size
        place: dict[str, Any] = {"crs": source.crs, "transform": source.transform}
        points, points_crs = source.gcps
        if points and not source.crs:
            place = {"gcps": points, "crs": points_crs}
        form = {"driver": "GTiff", "dtype": "uint8", "count": 1, "width": width, "height": height}
        packing = {"compress": "deflate", "BIGTIFF": "IF_SAFER", "nodata": int(lookup[VOID])}
        if min(width, height) >= BLOCK_PX:
            packing |= {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX}
        with _reading(), rasterio.open(path, "w", **form, **packing, **place) as target:
            for first in range(0, height, BLOCK_PX):
                end = min(first + BLOCK_PX, height)
                target.write(lookup[rows(first, end)], 1, window=((first, end), (0, width)))
            values = lookup[: len(classes)].tolist()
            target.write_colormap(1, {value: found.color for value, found in zip(values, classes, strict=True)})
            target.update_tags(
                1, **{f"class_{value}": found.name for value, found in zip(values, classes, strict=True)}
            )

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    @property
    def _bands(self) -> int:
        return 3 if self._dataset.count >= 3 else 1

    def _pixels(self, **part: Any) -> np.ndarray:
        if self._preprocess.has_bands:
            with _reading():
                found = window_values(self._dataset, **part)
            return np.moveaxis(scaled(found, self._preprocess.ranges, self._preprocess.fill), 0, 2)
        with _reading():
            bands = self._dataset.read(list(range(1, self._bands + 1)), **part)  # (B, rows, W)
        if bands.dtype == np.uint16:
            bands = np.rint(bands * (255 / 65535))
        pixels = np.moveaxis(bands, 0, 2).astype(np.uint8)
        if pixels.shape[2] == self._preprocess.image_channels:
            return pixels
        return as_array(image_of(pixels).convert("RGB" if self._preprocess.image_channels == 3 else "L"))

    def _window(self, first: int, end: int) -> Bands:
        with _reading():
            return window_values(self._dataset, window=((first, end), (0, self.size[0])))


def opened_by_gdal(path: str, preprocess: Preprocess) -> GeoImage | None:
    """Return a TIFF that GDAL reads; None for other formats, and where rasterio is not installed. Raises ImageError."""
    if not path.lower().endswith(SUFFIXES) or not has_rasterio():
        return None
    os.environ.setdefault("GDAL_CACHEMAX", CACHE_MB)  # read once, at the first block; else 5 % of the memory
    import rasterio

    with _reading(), quiet_decoders():
        return GeoImage(rasterio.open(path), preprocess)


def write_polygons(mask: Path, path: Path, classes: Sequence[MaskClass], lookup: np.ndarray, least_pixels: int) -> None:
    """Write the areas of a mask's GeoTIFF as GeoJSON in longitude and latitude, one feature an area.

    Properties: class, title, value, pixels, and area_m2 where the coordinate system is in metres. Areas of less than
    `least_pixels` count as part of their largest neighbour. Large masks are cut into blocks of POLYGON_BLOCK_PX, which
    bounds the memory. Raises ImageError.
    """
    import rasterio
    from rasterio.warp import transform_geom

    by_value = {int(lookup[index]): found for index, found in enumerate(classes)}
    with _reading(), rasterio.open(mask) as source, path.open("w", encoding="utf-8") as file:
        pixel_area = abs(source.transform.determinant)
        is_metric = source.crs.is_projected and source.crs.linear_units_factor[1] == 1.0
        file.write('{"type": "FeatureCollection", "features": [')
        between = ""
        for areas in _areas(source, least_pixels):
            placed = transform_geom(source.crs, WGS84, [geometry for geometry, _ in areas], precision=DEGREE_DIGITS)
            for (geometry, value), degrees in zip(areas, placed, strict=True):
                outer, *holes = map(ring_area, geometry["coordinates"])
                area, found = outer - sum(holes), by_value[value]
                properties: dict[str, Any] = {"class": found.name, "title": found.title, "value": value}
                properties["pixels"] = round(area / pixel_area)
                if is_metric:
                    properties["area_m2"] = round(area, 2)
                feature = {"type": "Feature", "properties": properties, "geometry": degrees}
                file.write(f"{between}\n{json.dumps(feature, ensure_ascii=False)}")
                between = ","
        file.write("\n]}\n")


def _areas(source: Any, least_pixels: int) -> Iterator[list[tuple[dict[str, Any], int]]]:
    """Yield geometries in the mask's own coordinates with their pixel values, block by block."""
    from rasterio.features import shapes, sieve
    from rasterio.windows import Window

    for top, left in itertools.product(*(range(0, side, POLYGON_BLOCK_PX) for side in source.shape)):
        height, width = (min(POLYGON_BLOCK_PX, side - at) for side, at in zip(source.shape, (top, left), strict=True))
        window = Window(left, top, width, height)
        values = sieve(source.read(1, window=window), least_pixels)
        found = shapes(values, mask=values != source.nodata, transform=source.window_transform(window))
        yield [(geometry, int(value)) for geometry, value in found]


def ring_area(ring: Sequence[Sequence[float]]) -> float:
    """Return the area that a closed ring of points encloses, in their units squared (the shoelace formula)."""
    points = np.asarray(ring, np.float64) - np.asarray(ring[0])  # (n, 2), near 0: large coordinates cancel
    return abs(float((points[:-1, 0] * points[1:, 1] - points[1:, 0] * points[:-1, 1]).sum())) / 2


@contextmanager
def _reading() -> Iterator[None]:
    """Turn rasterio's errors into an ImageError."""
    import rasterio

    try:
        yield
    except rasterio.errors.RasterioError as error:
        raise ImageError(f"it cannot be read or written by GDAL: {error}") from error
