"""One decoder and one preprocessing, for training, validation, inference, export and HTTP alike."""

from __future__ import annotations

import errno
import importlib
import io
import math
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from data_loader.colour_profiles import to_srgb
from data_loader.decode_guard import guarded
from data_loader.errors import ImageError as ImageError
from data_loader.image_files import INSTALL_EXTRAS
from data_loader.tiff import is_read_right, read_tiff, without_false_alpha
from data_loader.tiff_layout import SIGNATURES
from data_loader.transparency import with_stored_alpha

if TYPE_CHECKING:
    import torch

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 64_000_000
MAX_SIDE_PX = 8192  # of a net's input
EXTRA_FORMATS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ICC_PROFILES = ("convert", "ignore")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)  # ImageNet's channels averaged
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
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
_quiet: list[None] = []  # one for each thread in `quiet_pillow`
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
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError(unreadable_reason(error, source, max_pixels)) from error


def open_image(source: bytes | str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image as Pillow does; a TIFF of a kind that Pillow does not decode right is decoded here, to 8 bits.

    Raises ImageError for what is no regular file, and for a format whose extra is not installed.
    """
    if not isinstance(source, bytes):
        _check_regular(source)
    try:
        with quiet_pillow():
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
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
def image_size(path: str, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Return an image's (width, height) as `decode` gives it and as it is stored, and its EXIF orientation.

    Raises ImageError.
    """
    try:
        with open_image(path, max_pixels) as image:
            orientation = _orientation(image) or 1
            size = image.size[::-1] if orientation in TURNED else image.size
            return size, image.size, orientation
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError(unreadable_reason(error, path, max_pixels)) from error


def stream_of(source: bytes | str | Path) -> BinaryIO:
    """Return a file, or its bytes, opened to be read."""
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _check_regular(path: str | Path) -> None:
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
    with quiet_pillow():
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=(kind,))


@dataclass(frozen=True)
class Preprocess:
    """From a decoded image to the net's input. The one place that knows resize, mean and std.

    `mean` and `std` are per channel, for values from 0 to 1. Of a pair of images the input is both, the channels of the
    first before those of the second: `images` is 2, and `channels`, `mean` and `std` are those of both together.
    """

    height: int
    width: int
    channels: int = 3
    resize: str = "squash"
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    max_pixels: int = MAX_PIXELS
    icc_profiles: str = "convert"
    images: int = 1

    def __post_init__(self) -> None:
        if self.images not in (1, 2):
            raise ValueError(f"images must be 1 or 2, got {self.images}")
        grey = self.channels == self.images
        object.__setattr__(self, "mean", tuple(self.mean) or (GREY_MEAN if grey else IMAGENET_MEAN) * self.images)
        object.__setattr__(self, "std", tuple(self.std) or (GREY_STD if grey else IMAGENET_STD) * self.images)
        if self.resize not in ("squash", "letterbox", "crop"):
            raise ValueError(f'resize must be squash, letterbox or crop, got "{self.resize}"')
        if self.interpolation not in RESAMPLING:
            raise ValueError(f'interpolation must be one of {", ".join(RESAMPLING)}, got "{self.interpolation}"')
        if self.icc_profiles not in ICC_PROFILES:
            raise ValueError(f'icc_profiles must be {" or ".join(ICC_PROFILES)}, got "{self.icc_profiles}"')
        allowed = (self.images, 3 * self.images)
        if self.channels not in allowed or len(self.mean) != self.channels or len(self.std) != self.channels:
            got = f"{self.channels} with {len(self.mean)} and {len(self.std)}"
            raise ValueError(f"channels must be {allowed[0]} or {allowed[1]}, with as many means and stds, got {got}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; as before there were the newer fields where they have their old meaning."""
        values = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        old = (("icc_profiles", "ignore"), ("images", 1))
        return {key: value for key, value in values.items() if (key, value) not in old}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Read what `to_dict` wrote; earlier files have no `icc_profiles` and did not use any.

        Raises ValueError for what it cannot have written.
        """
        sizes: list[Any] = [values.get("height"), values.get("width"), values.get("max_pixels")]
        numbers = [*values.get("mean", ()), *values.get("std", ())]
        if not all(isinstance(size, int) and size > 0 for size in sizes) or max(sizes[:2]) > MAX_SIDE_PX:
            raise ValueError(f"height, width and max_pixels cannot be {sizes}")
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            raise ValueError(f"mean and std cannot be {numbers}")
        return cls(**{"icc_profiles": "ignore", **values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    @property
    def image_channels(self) -> int:
        """Return the channels of one image: 1 or 3."""
        return self.channels // self.images

    def decode(self, source: str | Path | bytes, at_least: tuple[int, int] | None = None) -> Image.Image:
        """Decode an image with this net's settings, as `decode` does. Raises ImageError."""
        return decode(source, self.image_channels, self.max_pixels, at_least, self.icc_profiles)

    def load(self, path: str) -> np.ndarray:
        """Return an image at its own size, uint8 (H, W, C). Raises ImageError."""
        return as_array(self.decode(path))

    def fit(self, image: Image.Image) -> np.ndarray:
        """Resize a decoded image to (height, width, channels) uint8."""
        resample = RESAMPLING[self.interpolation]
        size = (self.width, self.height)
        if self.resize == "squash":
            image = image if image.size == size else image.resize(size, resample)
        elif self.resize == "letterbox":
            image = ImageOps.pad(image, size, resample)
        else:
            image = ImageOps.fit(image, size, resample)
        return as_array(image)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Turn uint8 (H, W, C) of any size into the net's input, float32 (C, height, width)."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channels or 0 in image.shape:
            expected = f"(H, W, {self.channels})"
            raise ValueError(f"expected uint8 {expected} with pixels, got {image.dtype} {image.shape}")
        parts = np.split(image, self.images, axis=2)
        fitted = [self.fit(Image.fromarray(part[:, :, 0] if part.shape[2] == 1 else part)) for part in parts]
        return self.net_input(joined(fitted))

    def net_input(self, fitted: np.ndarray) -> np.ndarray:
        """Turn fitted pixels, uint8 (height, width, C), into the net's input, float32 (C, height, width)."""
        pixels = fitted.transpose(2, 0, 1).astype(np.float32)
        scale, shift = self.scale_and_shift()
        return np.asarray(pixels * scale[:, None, None] + shift[:, None, None])

    def normalize(self, batch: torch.Tensor) -> torch.Tensor:
        """Turn a uint8 batch (N, C, H, W) into float32 on its own device; equal to `__call__` to the bit.

        Where the channels come last in memory, so do those of the result, and whole rows are scaled at once: a CPU
        takes 0.35 ms instead of 1.1 for 32 images of 128 px.
        """
        scale, shift = (batch.new_tensor(values, dtype=_float32()) for values in self.scale_and_shift())
        # Two steps, not a fused multiply-add, so that numpy's result is met to the bit.
        count, channels, height, width = batch.shape
        pixels = batch.permute(0, 2, 3, 1)
        if not pixels.is_contiguous():
            return batch.to(_float32()).mul_(scale[:, None, None]).add_(shift[:, None, None])
        rows = pixels.reshape(-1, width * channels).to(_float32())  # (N * H, W * C)
        rows.mul_(scale.repeat(width)).add_(shift.repeat(width))
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2)

    def denormalize(self, batch: torch.Tensor) -> torch.Tensor:
        """Turn the net's input (N, C, H, W) back into uint8 (N, H, W, C) on the CPU, to look at."""
        scale, shift = (batch.new_tensor(v, dtype=_float32()).view(1, -1, 1, 1) for v in self.scale_and_shift())
        pixels = (batch.to(_float32()) - shift) / scale
        return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu()  # (N, H, W, C)

    def scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (x / 255 - mean) / std as x * scale + shift."""
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def as_array(image: Image.Image) -> np.ndarray:
    """Return an "L" or "RGB" image as uint8 (H, W, C)."""
    pixels = np.array(image)  # a copy: torch wants memory it may write to
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def joined(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return the images (H, W, C) of one sample as one, their channels behind one another."""
    return images[0] if len(images) == 1 else np.concatenate(images, axis=2)


def bgr(pixels: np.ndarray, images: int) -> np.ndarray:
    """Return pixels (..., C) with the channels of each image in the other order, as a copy."""
    parts = np.split(pixels, images, axis=-1)
    return np.concatenate([part[..., ::-1] for part in parts], axis=-1)


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


def _float32() -> torch.dtype:
    import torch  # late: folders are listed and configs checked without torch

    return torch.float32


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
        with quiet_pillow():
            orientation: int | None = image.getexif().get(ExifTags.Base.Orientation)  # kept by the image
    except BROKEN_EXIF:
        return None
    return orientation


def _upright(image: Image.Image) -> Image.Image:
    try:
        with quiet_pillow():
            image.getexif()  # read here, kept by the image
        return ImageOps.exif_transpose(image)
    except BROKEN_EXIF:
        return image  # EXIF too broken to read: nothing is known of the orientation


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence what Pillow warns of odd metadata; the image itself is checked when it is decoded.

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
        return image.copy() if getattr(image, "fp", None) else image
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
