"""Images of remote sensing: any number of bands of any type, each scaled to 8 bits by a range of its own.

TIFFs are read by rasterio (requirements-geo.txt); without it what Pillow decodes exactly: up to four bands of 8 bits.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from data_loader.band_image import BandImage
from data_loader.decode_guard import guarded
from data_loader.decoding import (
    EMPTY,
    FORMATS,
    MAX_PIXELS,
    UNREADABLE,
    check_regular,
    quiet_decoders,
    stream_of,
    unreadable_reason,
)
from data_loader.errors import ImageError
from data_loader.packed_images import content_of
from data_loader.streamed_packs import StreamError
from data_loader.tiff import is_read_right
from data_loader.tiff_layout import SIGNATURES

MAX_BANDS = 64
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
INSTALL_GEO = "pip install -r requirements-geo.txt"
EIGHT_BIT = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}  # Pillow's modes whose channels are what the file holds
GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": 64}  # no files beside the image; MB of blocks

Ranges = tuple[tuple[float, float], ...]  # of each band: the values that become 0 and 255


@dataclass(frozen=True)
class Bands:
    """What a file holds: values (B, H, W) of its type, and which pixels (H, W) hold no data; None where all do."""

    values: np.ndarray
    gaps: np.ndarray | None

    @property
    def kind(self) -> tuple[int, str]:
        """The number of bands and their type, which all images of a net share."""
        return self.values.shape[0], str(self.values.dtype)


@guarded
def read_bands(
    source: str | Path | bytes, ranges: Ranges, fill: Sequence[int], band_type: str = "", max_pixels: int = MAX_PIXELS
) -> BandImage:
    """Decode a file or its bytes into bands of 8 bits by their `ranges`; pixels without data become `fill`.

    A TIFF's orientation is not applied: georeferenced images are stored as they lie. Raises ImageError, also for
    another number of bands, or another type than `band_type`, where that is given.
    """
    bands = read_values(source, max_pixels)
    check_kind(bands.kind, (len(ranges), band_type))
    pixels = scaled(bands, ranges, fill)
    return BandImage(tuple(map(Image.fromarray, pixels)), bands.gaps)


def read_values(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Bands:
    """Return all values of a file, or of its bytes. Raises ImageError."""
    try:
        source = content_of(source)
        if _is_for_gdal(source):
            with opened(source, max_pixels) as dataset:
                return window_values(dataset)
        with _opened_by_pillow(source, max_pixels) as image:
            pixels = np.asarray(image)  # (H, W) or (H, W, B)
        return Bands(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0), None)
    except (ImageError, StreamError):
        raise
    except UNREADABLE as error:
        raise ImageError(unreadable_reason(error, source, max_pixels)) from error


@guarded
def band_kind(source: str, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, str], tuple[int, int]]:
    """Return the number of bands, their type, and (width, height) from a file's header. Raises ImageError."""
    try:
        content = content_of(source)
        if _is_for_gdal(content):
            with opened(content, max_pixels) as dataset:
                return (dataset.count, dataset.dtypes[0]), (dataset.width, dataset.height)
        with _opened_by_pillow(content, max_pixels) as image:
            return (EIGHT_BIT[image.mode], "uint8"), image.size
    except (ImageError, StreamError):
        raise
    except UNREADABLE as error:
        raise ImageError(unreadable_reason(error, source, max_pixels)) from error


def band_image_size(path: str, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Return what `decoding.image_size` returns, of an image of bands, which is never turned. Raises ImageError."""
    size = band_kind(path, max_pixels)[1]
    return size, size, 1


def check_kind(found: tuple[int, str], wanted: tuple[int, str]) -> None:
    """Raise ImageError for another number of bands, or type, than wanted; no type is wanted where it is ""."""
    if found != (wanted[0], wanted[1] or found[1]):
        raise ImageError(f"it has {kind_text(found)}, and {kind_text(wanted)} are needed")


def kind_text(kind: tuple[int, str]) -> str:
    """Return "6 bands of uint16"."""
    count, of_type = kind
    return f"{count} band{'s' * (count != 1)}" + (f" of {of_type}" if of_type else "")


def scaled(bands: Bands, ranges: Ranges, fill: Sequence[int]) -> np.ndarray:
    """Return bands of 8 bits (B, H, W): each range's ends become 0 and 255, what lies beyond is clipped."""
    pixels = np.empty(bands.values.shape, np.uint8)
    for band, ((low, high), empty) in enumerate(zip(ranges, fill, strict=True)):
        values = (bands.values[band].astype(np.float64) - low) * (255 / (high - low))
        if bands.gaps is not None:
            values[bands.gaps] = empty
        pixels[band] = np.clip(np.rint(values, out=values), 0, 255, out=values)
    return pixels


def check_dataset(dataset: Any) -> None:
    """Raise ImageError for what a GDAL dataset's bands cannot be read as."""
    kinds = set(dataset.dtypes)
    if len(kinds) > 1 or not kinds <= set(TYPES):
        raise ImageError(f"its bands are of {', '.join(sorted(kinds))}; one type of {', '.join(TYPES)} is read")
    if dataset.count > MAX_BANDS:
        raise ImageError(f"it has {dataset.count} bands, and {MAX_BANDS} at most are read")
    if dataset.colorinterp[0].name == "palette":
        raise ImageError("it has a palette: expand it to colours (gdal_translate -expand rgb)")


def window_values(dataset: Any, **part: Any) -> Bands:
    """Return a part of a GDAL dataset as `rasterio` names it (`window`, `out_shape`), by default all of it.

    Without data is a pixel that is nodata, not finite, or masked by the file itself, in any band. Alpha does not count:
    GDAL calls the fourth band of 8 bits so, near infrared included.
    """
    values = dataset.read(**part)  # (B, h, w)
    masked = [
        index
        for index, flags in enumerate(dataset.mask_flag_enums, 1)
        if not {flag.name for flag in flags} & {"all_valid", "alpha"}
    ]
    gaps = np.zeros(values.shape[1:], bool)
    if masked:
        gaps |= (dataset.read_masks(masked, **part) == 0).any(axis=0)
    if values.dtype.kind == "f":
        gaps |= ~np.isfinite(values).all(axis=0)
    return Bands(values, gaps if gaps.any() else None)


@contextmanager
def opened(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Iterator[Any]:
    """Open a TIFF, or its bytes, by rasterio, and by nothing but GDAL's driver for TIFF. Raises ImageError."""
    import rasterio
    from rasterio.io import MemoryFile

    try:
        with quiet_decoders(), rasterio.Env(**GDAL):  # rasterio warns of files without a place on the earth
            if isinstance(source, bytes):
                with MemoryFile(source) as memory, memory.open(driver="GTiff") as dataset:
                    yield _checked(dataset, max_pixels)
            else:
                with rasterio.open(source, driver="GTiff") as dataset:
                    yield _checked(dataset, max_pixels)
    except rasterio.errors.RasterioError as error:
        raise ImageError(f"it is damaged, or no TIFF that GDAL reads: {error}") from error


def _checked(dataset: Any, max_pixels: int) -> Any:
    if dataset.width * dataset.height > max_pixels:
        raise ImageError(f"{dataset.width}x{dataset.height} is more than max_pixels ({max_pixels}) allows")
    check_dataset(dataset)
    return dataset


@contextmanager
def _opened_by_pillow(source: str | Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image of up to four bands of 8 bits. Raises ImageError for any other."""
    try:
        with quiet_decoders():
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError as error:
        if not _is_tiff(source):
            raise
        raise ImageError(f"it is a TIFF that only rasterio reads: {INSTALL_GEO}") from error
    with image:
        if isinstance(image, TiffImageFile) and not (is_read_right(image) and image.mode in EIGHT_BIT):
            raise ImageError(f"it is a TIFF that only rasterio reads: {INSTALL_GEO}")
        if image.mode not in EIGHT_BIT:
            raise ImageError(f"an image of mode {image.mode} has no bands of its own; save it as TIFF")
        if image.width * image.height > max_pixels:
            raise ImageError(f"{image.width}x{image.height} is more than max_pixels ({max_pixels}) allows")
        yield image


def has_rasterio() -> bool:
    """Return whether rasterio is installed."""
    return importlib.util.find_spec("rasterio") is not None


def _is_for_gdal(source: str | Path | bytes) -> bool:
    """Return whether rasterio reads it: a TIFF, where rasterio is installed. Raises ImageError, OSError."""
    if isinstance(source, bytes) and not source:
        raise ImageError(EMPTY)
    if not isinstance(source, bytes):
        check_regular(source)
    return has_rasterio() and _is_tiff(source)


def _is_tiff(source: str | Path | bytes) -> bool:
    with stream_of(source) as file:
        return file.read(4) in SIGNATURES
