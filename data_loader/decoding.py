"""The one decoder: a file or its bytes -> an 8-bit image, for training, validation, inference, export and HTTP."""

from __future__ import annotations

import errno
import importlib
import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from data_loader.colour_profiles import to_srgb
from data_loader.decode_guard import guarded
from data_loader.errors import ImageError
from data_loader.image_files import INSTALL_EXTRAS
from data_loader.packed_images import content_of
from data_loader.streamed_packs import StreamError
from data_loader.tiff import is_read_right, read_tiff, without_false_alpha
from data_loader.tiff_layout import SIGNATURES
from data_loader.transparency import with_stored_alpha

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 64_000_000
EXTRA_FORMATS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

ORIENTATIONS, TURNED = range(2, 9), (5, 6, 7, 8)  # of EXIF: all that change an image, those that swap width and height
BROKEN_EXIF = (OSError, ValueError, SyntaxError, KeyError, TypeError, IndexError, ArithmeticError, struct.error)

# What Pillow's plugins raise on damaged files.
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, OverflowError, TypeError, IndexError, RuntimeError)

EMPTY = "it is empty (0 bytes)"
TOO_MANY_PIXELS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
UNREADABLE = (*DAMAGED, *TOO_MANY_PIXELS, MemoryError)
REASONS: dict[type[Exception], str] = {
    FileNotFoundError: "no such file",
    IsADirectoryError: "it is a folder",
    PermissionError: "no permission to read it",
    MemoryError: "it is too large for the memory",
}

_warnings_lock = threading.Lock()
_quiet: list[None] = []  # one for each thread in `quiet_decoders`
_restore: list[warnings.catch_warnings[None]] = []  # what the last of them restores


@guarded
def decode(
    source: str | Path | bytes,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    at_least: tuple[int, int] | None = None,
    icc_profiles: str = "convert",
) -> Image.Image:
    """Decode a file or its bytes into an 8-bit image, mode "RGB" (channels 3) or "L" (channels 1).

    Settled here, once: EXIF orientation is applied; of an animation the first frame counts; transparency is laid on
    white; values of other than 8 bits are scaled (Pillow's plain conversion clips them; TIFFs by `data_loader.tiff`);
    CMYK, palette, YCbCr, Lab and 1-bit images are converted; with `icc_profiles` "convert" colours become sRGB, with
    "ignore" a profile is not used. The pixel cap is checked on the header, before any pixel is decoded.
    With `at_least` (width, height) a JPEG that has twice as many pixels or more in both directions is decoded at a
    half, a quarter or an eighth of its size, whichever still has so many.
    Raises ImageError with the reason.
    """
    try:
        if isinstance(source, bytes) and not source:
            raise ImageError(EMPTY)
        with open_image(source, max_pixels) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"{width}x{height} is more than max_pixels ({max_pixels}) allows")
            if at_least is not None and isinstance(image, JpegImageFile):
                return _to_8bit(_upright(_reduced(image, at_least)), channels, icc_profiles)
            loaded = with_stored_alpha(image, lambda: stream_of(source))
            loaded.load()
            upright = _upright(loaded)
            if isinstance(image, TiffImageFile):
                upright = without_false_alpha(upright, image.tag_v2)
            return _to_8bit(upright, channels, icc_profiles)
    except (ImageError, StreamError):
        raise
    except UNREADABLE as error:
        raise ImageError(unreadable_reason(error, source, max_pixels)) from error


def open_image(source: bytes | str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image as Pillow does; a TIFF of a kind that Pillow does not decode right is decoded here, to 8 bits.

    Raises ImageError for what is no regular file, and for a format whose extra is not installed.
    """
    source = content_of(source)
    if not isinstance(source, bytes):
        check_regular(source)
    try:
        with quiet_decoders():
            image = Image.open(opened(source), formats=FORMATS)
        if not isinstance(image, TiffImageFile) or is_read_right(image):
            return image
        image.close()
    except UnidentifiedImageError:
        with stream_of(source) as file:
            head = file.read(12)
        if kind := extra_format(head):
            return _open_extra(source, kind)
        if head[:4] not in SIGNATURES:
            raise
    with stream_of(source) as file:
        return read_tiff(file, max_pixels)


@guarded
def image_size(path: str | bytes, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Return an image's (width, height) as `decode` gives it and as it is stored, and its EXIF orientation.

    Raises ImageError.
    """
    try:
        with open_image(path, max_pixels) as image:
            orientation = _orientation(image) or 1
            size = image.size[::-1] if orientation in TURNED else image.size
            return size, image.size, orientation
    except (ImageError, StreamError):
        raise
    except UNREADABLE as error:
        raise ImageError(unreadable_reason(error, path, max_pixels)) from error


def opened(source: bytes | str | Path) -> str | Path | BinaryIO:
    """Return what Pillow opens: a path as it is, and bytes, also those of an image in a pack, as a file."""
    content = content_of(source)
    return io.BytesIO(content) if isinstance(content, bytes) else content


def stream_of(source: bytes | str | Path) -> BinaryIO:
    """Return a file, or its bytes, opened to be read."""
    source = content_of(source)
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def check_regular(path: str | Path) -> None:
    """Raise ImageError for a pipe, socket or device, which may never end; IsADirectoryError for a folder."""
    mode = os.stat(path).st_mode  # noqa: PTH116  (a Path for each image takes longer)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise ImageError("it is no regular file, but a pipe, socket or device")


def _open_extra(source: bytes | str | Path, kind: str) -> Image.Image:
    """Open an image of a format that an optional package reads. Raises ImageError where it is not installed."""
    package = EXTRA_FORMATS[kind]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ImageError(f"it is a {kind} image, which needs {package}: {INSTALL_EXTRAS}") from error
    if kind == "HEIF":
        module.register_heif_opener()  # pillow_jxl registers itself
    with quiet_decoders():
        return Image.open(opened(source), formats=(kind,))


def unreadable_reason(error: Exception, source: str | Path | bytes, max_pixels: int) -> str:
    """Return why an image cannot be read; an OSError with a number is the system's, and no damage to the file."""
    if isinstance(error, UnidentifiedImageError):
        if not isinstance(source, bytes) and Path(source).is_file() and Path(source).stat().st_size == 0:
            return EMPTY
        return f"it is not an image of a known format ({', '.join(FORMATS)})"
    if isinstance(error, TOO_MANY_PIXELS):
        return f"it has more pixels than max_pixels ({max_pixels}) allows"
    for kind, reason in REASONS.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, OSError) and error.errno:
        return "no such file" if error.errno == errno.ELOOP else f"it cannot be read: {error.strerror}"
    return f"it is damaged: {str(error) or type(error).__name__}"


def extra_format(head: bytes) -> str:
    """Return the format of a file by its first 12 bytes, where an optional package reads it; else ""."""
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return "HEIF"
    return "JXL" if head[:2] == b"\xff\x0a" or head == b"\0\0\0\x0cJXL \r\n\x87\n" else ""


def _reduced(image: JpegImageFile, at_least: tuple[int, int]) -> Image.Image:
    """Decode a JPEG at a reduced size, which leaves out the high frequencies of each block of 8x8 pixels.

    Pillow rounds the size up; to the nearest, the image is stretched by half a pixel at the most.
    """
    width, height = at_least
    if _orientation(image) in TURNED:
        width, height = height, width
    drafted = image.draft(None, (width, height))
    image.load()
    if drafted is None:
        return image
    _, (_, _, exact_width, exact_height) = drafted
    size = round(exact_width), round(exact_height)
    return image if size == image.size else image.crop((0, 0, *size))


def _orientation(image: Image.Image) -> int | None:
    try:
        with quiet_decoders():
            orientation: int | None = image.getexif().get(ExifTags.Base.Orientation)  # kept by the image
    except BROKEN_EXIF:
        return None
    return orientation


def _upright(image: Image.Image) -> Image.Image:
    """Return an image as its EXIF orientation wants it: itself where that is as it is stored, or not known."""
    if _orientation(image) not in ORIENTATIONS:
        return image  # Pillow would copy it
    try:
        return ImageOps.exif_transpose(image)
    except BROKEN_EXIF:
        return image


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silence what Pillow and rasterio warn of odd metadata; the image itself is checked when it is decoded.

    The filters belong to the whole process: the first thread in here changes them, and the last one restores them. The
    lock is not held in between, where a damaged image may keep its decoder for long.
    """
    with _warnings_lock:
        if not _quiet:
            changed = warnings.catch_warnings()
            changed.__enter__()
            warnings.simplefilter("ignore")
            _restore.append(changed)
        _quiet.append(None)
    try:
        yield
    finally:
        with _warnings_lock:
            _quiet.pop()
            if not _quiet:
                _restore.pop().__exit__(None, None, None)


def _to_8bit(image: Image.Image, channels: int, icc_profiles: str) -> Image.Image:
    target = "L" if channels == 1 else "RGB"
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if image.mode.startswith("I") or image.mode == "F":
        image = _scaled(image)
    elif image.mode == "LAB":
        image = _from_lab(image)
    if icc_profiles == "convert" and "icc_profile" in image.info:
        image = to_srgb(_as_channels(image, has_alpha))
    if has_alpha:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode == "P":
        image = image.convert("RGB")
    if image.mode == target:
        # A JPEG that is loaded needs its file no more. The copy cost 0.4 GB of 0.8 for one of 10,000 x 10,000.
        return image.copy() if getattr(image, "fp", None) and not isinstance(image, JpegImageFile) else image
    return image.convert(target)


def _as_channels(image: Image.Image, has_alpha: bool) -> Image.Image:
    """Return an image with a profile in a mode that the profile may apply to: not premultiplied, no palette."""
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") and "transparency" not in image.info:
        return image
    if image.mode in ("1", "La") or (image.mode == "L" and has_alpha):
        return image.convert("LA" if has_alpha else "L")
    return image.convert("RGBA" if has_alpha else "RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Bring 16-bit integers, or floats (0..1, or 0..255 where any is above 1), to 8 bits."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
        scaled = values * 255 if values.max(initial=0) <= 1 else values
    else:
        scaled = values * (255 / 65535)
    result = Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
    result.info = dict(image.info)
    return result


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only an in-place conversion gives None
    return converted
