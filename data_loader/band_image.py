"""A decoded image of any number of 8-bit bands, with as much of Pillow's interface as the preprocessing needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

GAPS = "gaps"  # the entry of an Image's `info` that holds what `BandImage.gaps` does


@dataclass(frozen=True)
class BandImage:
    """Bands of one size, each an image of mode "L"; Pillow itself has no more than four.

    `gaps` (H, W) says which pixels of the file hold no data; what is made of the image has none.
    """

    planes: tuple[Image.Image, ...]
    gaps: np.ndarray | None = field(default=None, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.planes[0].size

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.planes[0].width

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.planes[0].height

    @property
    def mode(self) -> str:
        """A name that is none of Pillow's: "6L" for six bands."""
        return f"{len(self.planes)}L"

    def getbands(self) -> tuple[str, ...]:
        """Return the bands' names: their numbers from 1."""
        return tuple(str(number) for number in range(1, len(self.planes) + 1))

    def getextrema(self) -> tuple[Any, ...]:
        """Return the least and the largest value of each band."""
        return tuple(plane.getextrema() for plane in self.planes)

    def tobytes(self) -> bytes:
        """Return the bands' values, one band after the other."""
        return b"".join(plane.tobytes() for plane in self.planes)

    def crop(self, box: tuple[int, int, int, int]) -> BandImage:
        """Return a part of the image."""
        return self.map(lambda plane: plane.crop(box))

    def resize(
        self,
        size: tuple[int, int],
        resample: int = Image.Resampling.BICUBIC,
        box: tuple[float, float, float, float] | None = None,
    ) -> BandImage:
        """Return the image, or a part of it, at another (width, height)."""
        return self.map(lambda plane: plane.resize(size, resample, box))

    def transpose(self, method: Image.Transpose) -> BandImage:
        """Return the image mirrored or turned."""
        return self.map(lambda plane: plane.transpose(method))

    def map(self, change: Callable[[Image.Image], Image.Image]) -> BandImage:
        """Return the image with every band changed alike."""
        return BandImage(tuple(map(change, self.planes)))

    def convert(self, mode: str) -> Image.Image:
        """Return the image as people look at it: its first three bands as red, green and blue, or its first as grey."""
        shown = self.planes[:3] if len(self.planes) > 2 else self.planes[:1] * 3
        return Image.merge("RGB", shown).convert(mode)

    def plain(self) -> Decoded:
        """Return one or three bands as an image of Pillow's, mode "L" or "RGB"; any other number as it is."""
        if len(self.planes) not in (1, 3):
            return self
        image = self.planes[0].copy() if len(self.planes) == 1 else Image.merge("RGB", self.planes)
        if self.gaps is not None:
            image.info[GAPS] = self.gaps
        return image


Decoded = Image.Image | BandImage
Kind = TypeVar("Kind", bound=Image.Image | BandImage)


def as_array(image: Decoded) -> np.ndarray:
    """Return an image as uint8 (H, W, C)."""
    if isinstance(image, BandImage):
        return np.stack([np.asarray(plane) for plane in image.planes], axis=2)
    pixels = np.array(image)  # a copy: torch wants memory it may write to
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def image_of(pixels: np.ndarray) -> Decoded:
    """Return uint8 (H, W, C) as an image: "L", "RGB", or one of bands."""
    if pixels.shape[2] == 3:
        return Image.fromarray(pixels)
    planes = tuple(Image.fromarray(np.ascontiguousarray(pixels[:, :, band])) for band in range(pixels.shape[2]))
    return planes[0] if len(planes) == 1 else BandImage(planes)


def gaps_of(images: Sequence[Decoded]) -> np.ndarray | None:
    """Return which pixels (H, W) hold no data in any of a sample's images, just decoded; None where all do."""
    found = [image.gaps if isinstance(image, BandImage) else image.info.get(GAPS) for image in images]
    present = [gaps for gaps in found if gaps is not None]
    return np.logical_or.reduce(present) if present else None


def padded(image: Kind, size: tuple[int, int], resample: int, color: int | None = None) -> Kind:
    """Return an image shrunk or grown into (width, height), `color` or black beside it, as `ImageOps.pad` does."""
    made: Any
    if isinstance(image, BandImage):
        made = image.map(lambda plane: ImageOps.pad(plane, size, resample, color))
    else:
        made = ImageOps.pad(image, size, resample, color)
    return made
