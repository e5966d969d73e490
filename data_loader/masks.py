"""Label images, read as class indices: by pixel value, by palette or by colour; VOID where a pixel is of no class."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from data_loader.decode_guard import guarded
from data_loader.decoding import FORMATS, MAX_PIXELS, UNREADABLE, opened, quiet_decoders, unreadable_reason
from data_loader.errors import ImageError
from data_loader.mask_classes import LARGEST_VALUE, VOID, MaskClass, OtherClass
from data_loader.preprocess import Preprocess
from data_loader.streamed_packs import StreamError

EXACT = ("PNG", "BMP", "DIB", "TIFF", "GIF", "PPM")  # formats that keep every value
ONE_CHANNEL = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
COLOURS = ("RGB", "RGBA", "RGBX", "RGBa")
NOT_EXACT_TIFF = ("jpeg", "tiff_jpeg", "webp")  # compressions
TRANSPOSED = {  # what EXIF's orientations ask for
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SHOWN = 5  # most frequent unknown values


@dataclass(frozen=True)
class Mask:
    """A label image's class indices (H, W) uint8, and its most frequent unknown values or colours by their pixels.

    `ignored` counts the pixels that are VOID because they are of a class that does not count, not for being unknown.
    """

    indices: np.ndarray
    unknown: tuple[tuple[str, int], ...] = ()
    ignored: int = 0


@guarded
def read_mask(
    path: str,
    classes: tuple[MaskClass, ...],
    max_pixels: int = MAX_PIXELS,
    others: tuple[OtherClass, ...] = (),
) -> Mask:
    """Return the class indices of a label image.

    A pixel of one channel is a class's `value`; a colour is a class's `color` exactly (alpha does not count). A palette
    counts as colours where two of them, or all, are classes' colours, else by its indices. A grey RGB image is read by
    values, and one channel by grey colours (0 and 255 for black and white), where that knows more of it. Any other
    pixel is VOID. `others` are read alike, as the classes that stand for them. Raises ImageError, also for a format
    that does not keep exact values (JPEG).
    """
    try:
        with quiet_decoders(), Image.open(opened(path), formats=FORMATS) as image:
            if image.format not in EXACT or image.info.get("compression") in NOT_EXACT_TIFF:
                kind = "JPEG" if image.format == "MPO" else image.format
                raise ImageError(f"a label image cannot be {kind}, which changes values and colours; save it as PNG")
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"{width}x{height} is more than max_pixels ({max_pixels}) allows")
            image.load()
            return _merged(_read(image, (*classes, *(other.found for other in others))), len(classes), others)
    except (ImageError, StreamError):
        raise
    except UNREADABLE as error:
        raise ImageError(unreadable_reason(error, path, max_pixels)) from error


def upright(indices: np.ndarray, orientation: int) -> Image.Image:
    """Return class indices (H, W) as an image of mode "L", turned as EXIF's orientation says."""
    image = Image.fromarray(indices)
    return image.transpose(TRANSPOSED[orientation]) if orientation in TRANSPOSED else image


def fit_mask(preprocess: Preprocess, mask: Image.Image) -> np.ndarray:
    """Return a mask as `Preprocess.fit` fits its image, by nearest neighbour, VOID beside it: uint8 (height, width)."""
    size, nearest = (preprocess.width, preprocess.height), Image.Resampling.NEAREST
    if preprocess.resize == "squash":
        mask = mask if mask.size == size else mask.resize(size, nearest)
    elif preprocess.resize == "letterbox":
        mask = ImageOps.pad(mask, size, nearest, VOID)
    else:
        mask = ImageOps.fit(mask, size, nearest)
    return np.array(mask)


def _merged(mask: Mask, num_classes: int, others: tuple[OtherClass, ...]) -> Mask:
    """Return a mask whose indices from `num_classes` on, which are of `others`, have become those of the classes."""
    if not others:
        return mask
    table = np.arange(VOID + 1, dtype=np.uint8)
    table[num_classes : num_classes + len(others)] = [other.index for other in others]
    indices = table[mask.indices]
    return Mask(indices, mask.unknown, int((indices == VOID).sum() - (mask.indices == VOID).sum()))


def _read(image: Image.Image, classes: tuple[MaskClass, ...]) -> Mask:
    if image.mode in COLOURS:
        return _by_colour(np.asarray(image.convert("RGB")), classes)
    if image.mode == "P":
        return _by_palette(image, classes)
    if image.mode not in ONE_CHANNEL:
        raise ImageError(f"a label image of mode {image.mode} has no class values; save it as grey, palette or RGB PNG")
    values = np.asarray(image.getchannel(0) if image.mode == "LA" else image)
    if image.mode == "1":
        values = values.astype(np.uint8)
    if image.mode == "F" and not np.array_equal(values, np.rint(values)):
        raise ImageError("its values are no whole numbers; save a class's value in every pixel")
    found = _by_value(values, classes)
    if not found.unknown:
        return found
    grey = np.where((values < 0) | (values > 255), 255, values).astype(np.uint8)  # (H, W)
    scale = 255 if image.mode == "1" else 1
    as_colour = _colour_lookup(classes)[_packed(np.repeat(grey[:, :, None] * scale, 3, axis=2))]
    is_whole = image.mode in ("1", "L", "LA") and not (as_colour == VOID).any()
    return Mask(as_colour) if is_whole else found


def _by_value(values: np.ndarray, classes: tuple[MaskClass, ...]) -> Mask:
    """Read pixels (H, W) of one channel as classes' values."""
    is_known = (values >= 0) & (values <= LARGEST_VALUE)
    places = np.where(is_known, values, 0).astype(np.int64)
    indices = np.where(is_known, _value_lookup(classes)[places], np.uint8(VOID))
    return Mask(indices, _most_frequent(values[indices == VOID], "value"))


def _by_palette(image: Image.Image, classes: tuple[MaskClass, ...]) -> Mask:
    places = np.asarray(image)
    used = np.flatnonzero(np.bincount(places.ravel(), minlength=256))
    palette = np.zeros((256, 3), np.uint8)
    given = np.frombuffer(bytes(image.getpalette("RGB") or []), np.uint8).reshape(-1, 3)
    palette[: len(given)] = given
    of_colour = _colour_lookup(classes)[_packed(palette)]  # (256,)
    of_value = _value_lookup(classes)[:256]
    known = int((of_colour[used] != VOID).sum())
    if known < min(2, len(used)) and (of_value[used] != VOID).any():
        return _by_value(places, classes)
    indices = of_colour[places]
    return Mask(indices, _most_frequent(_packed(palette)[places][indices == VOID], "colour"))


def _by_colour(colours: np.ndarray, classes: tuple[MaskClass, ...]) -> Mask:
    """Read colours (H, W, 3) as classes' colours, or grey ones as values where that knows more pixels."""
    packed = _packed(colours)
    indices = _colour_lookup(classes)[packed]
    unknown = indices == VOID
    if unknown.any() and (colours == colours[:, :, :1]).all():
        by_value = _by_value(colours[:, :, 0], classes)
        if (by_value.indices == VOID).sum() < unknown.sum():
            return by_value
    return Mask(indices, _most_frequent(packed[unknown], "colour"))


def _packed(colours: np.ndarray) -> np.ndarray:
    """Return colours (..., 3) uint8 as numbers R * 65536 + G * 256 + B."""
    red, green, blue = (colours[..., channel].astype(np.int64) for channel in range(3))
    return (red << 16) | (green << 8) | blue


@functools.lru_cache(maxsize=2)
def _value_lookup(classes: tuple[MaskClass, ...]) -> np.ndarray:
    """Return the class index of every value (65536,), VOID where there is none."""
    table = np.full(LARGEST_VALUE + 1, VOID, np.uint8)
    table[[found.value for found in classes]] = np.arange(len(classes))
    return table


@functools.lru_cache(maxsize=2)
def _colour_lookup(classes: tuple[MaskClass, ...]) -> np.ndarray:
    """Return the class index of every packed colour (2**24,): 16 MB a process, and one look-up a pixel."""
    table = np.full(2**24, VOID, np.uint8)
    table[_packed(np.array([found.color for found in classes], np.uint8))] = np.arange(len(classes))
    return table


def _most_frequent(unknown: np.ndarray, kind: str) -> tuple[tuple[str, int], ...]:
    """Return the most frequent of unknown values, or packed colours, (n,) and their pixels."""
    values, counts = np.unique(unknown, return_counts=True)
    order: Sequence[int] = np.argsort(-counts, kind="stable")[:SHOWN].tolist()
    return tuple((_text(values[place].item(), kind), int(counts[place])) for place in order)


def _text(value: float, kind: str) -> str:
    if kind == "value":
        return f"value {value:g}"
    packed = int(value)
    return f"colour {packed >> 16},{packed >> 8 & 255},{packed & 255}"
