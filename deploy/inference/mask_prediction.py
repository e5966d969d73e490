"""The prediction of a net that gives masks: the class of each pixel, at the image's own size."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from artifacts.calibration import PIXEL_SCORE
from artifacts.metadata import ModelMetadata
from common.console import elide, text_columns
from common.placement import placement
from data_loader.mask_classes import VOID, Color, MaskClass, default_classes
from data_loader.preprocess import Preprocess
from deploy.inference.prediction import NOT_FINITE, Prediction
from visualization.html_page import data_uri
from visualization.masks import laid_over, with_colours

SHOWN = 3  # classes of a terminal line
MAX_CLASS_COLUMNS, SHARE_COLUMNS = 12, 4
BAND_ROWS = 256  # that are brought to an image's size at once: K float32 values a pixel


@dataclass(frozen=True)
class MaskPrediction(Prediction):
    """The class of each pixel of one image, or of a pair.

    It is made of the net's `logits` (K, h, w) when it is first asked for, by whoever needs it. `score` is the mean over
    the net's input of the largest softmax, at the fitted `temperature`. Of a calibrated net a pixel is accepted from a
    score of `accept` on.
    """

    is_slow = True

    classes: tuple[MaskClass, ...] = ()
    size: tuple[int, int] = (0, 0)  # width, height of the image
    score: float = 0.0
    preprocess: Preprocess | None = None
    logits: np.ndarray | None = field(default=None, compare=False, repr=False)
    gaps: np.ndarray | None = field(default=None, compare=False, repr=False)  # (H, W): pixels that hold no data
    temperature: float = 1.0
    accept: float | None = None

    @classmethod
    def decode(
        cls, outputs: np.ndarray, metadata: ModelMetadata, topk: int, sizes: Sequence[tuple[int, int]]
    ) -> Iterator[MaskPrediction]:
        """Yield the mask of each image of logits (N, K, h, w)."""
        for logits, size in zip(outputs, sizes, strict=True):
            if not np.isfinite(logits).all():
                yield cls("", error=NOT_FINITE)
                continue
            temperature = metadata.temperature or 1.0
            score = mean_score(logits / np.float32(temperature))
            accept = metadata.thresholds.get(PIXEL_SCORE)
            made = cls("", classes_of(metadata), size, score, metadata.preprocess, logits)
            yield replace(made, temperature=temperature, accept=accept)

    @classmethod
    def example(cls, class_names: Sequence[str]) -> MaskPrediction:
        """Return the mask of an image of one pixel."""
        logits = np.eye(len(class_names), 1, dtype=np.float32)[:, :, None]  # (K, 1, 1)
        return cls("", default_classes(class_names), (1, 1), 0.9, Preprocess(1, 1), logits)

    @cached_property
    def indices(self) -> np.ndarray:
        """The class indices (H, W) uint8 at the image's own size.

        VOID where it lies outside the net's input, and where it holds no data.
        """
        assert self.logits is not None and self.preprocess is not None
        indices = own_size(self.logits, self.preprocess, self.size)
        if self.gaps is not None:
            indices[self.gaps] = VOID
        return indices

    @cached_property
    def set_aside(self) -> np.ndarray:
        """The pixels (H, W) bool of a calibrated net whose class is too uncertain; those of no class are none."""
        assert self.logits is not None and self.preprocess is not None and self.accept is not None
        found = np.zeros((self.size[1], self.size[0]), bool)
        for rows, columns, band in own_size_bands(self.logits, self.preprocess, self.size):
            found[rows, columns] = largest_scores(band, self.temperature) < self.accept
        return found & (self.indices != VOID)

    @property
    def accepted(self) -> float:
        """The share of the pixels with a class that is accepted, of a calibrated net; 0 where there is none."""
        with_class = sum(self.pixels)
        return 1 - int(self.set_aside.sum()) / with_class if with_class else 0.0

    def without(self, gaps: np.ndarray) -> MaskPrediction:
        """Return the mask without a class where the image holds no data."""
        return replace(self, gaps=gaps)

    @cached_property
    def pixels(self) -> tuple[int, ...]:
        """The number of pixels of each class."""
        return tuple(map(int, np.bincount(self.indices.ravel(), minlength=VOID + 1)[: len(self.classes)]))

    def values(self) -> dict[str, Any]:
        """Return {"width", "height", "score", "shares": {class: share of the image's pixels}}.

        Of a calibrated net "accepted" follows the score.
        """
        shares = {found.name: share for found, share in zip(self.classes, self.shares, strict=True)}
        accepted = {} if self.accept is None else {"accepted": self.accepted}
        return {"width": self.size[0], "height": self.size[1], "score": self.score, **accepted, "shares": shares}

    def response(self) -> dict[str, Any]:
        """Return `values`, the classes of the mask's pixels, and the mask as a PNG in a data URL.

        Of a calibrated net what is set aside is another one, white on black.
        """
        classes = [
            {"name": found.name, "title": found.title, "value": value, "color": list(found.color)}
            for found, value in zip(self.classes, file_values(self.classes), strict=True)
        ]
        images = {"mask": self.image()}
        if self.accept is not None:
            images["set_aside"] = Image.fromarray(self.set_aside)
        return super().response() | {"classes": classes} | {name: _png_uri(image) for name, image in images.items()}

    @property
    def shares(self) -> tuple[float, ...]:
        """Each class's share of the image's pixels."""
        return tuple(count / (self.size[0] * self.size[1]) for count in self.pixels)

    @classmethod
    def csv_columns(cls, metadata: ModelMetadata, topk: int) -> tuple[str, ...]:
        """Return width, height, score, of a calibrated net accepted, then share_NAME of each class."""
        accepted = ("accepted",) if PIXEL_SCORE in metadata.thresholds else ()
        return ("width", "height", "score", *accepted, *(f"share_{name}" for name in metadata.class_names))

    def csv_row(self) -> list[str | int]:
        """Return what stands in `csv_columns`."""
        accepted = [] if self.accept is None else [f"{self.accepted:.6f}"]
        return [*self.size, f"{self.score:.6f}", *accepted, *(f"{share:.6f}" for share in self.shares)]

    @classmethod
    def text_widths(cls, metadata: ModelMetadata) -> tuple[int, ...]:
        """Return the columns of SHOWN classes with their shares."""
        longest = min(max(map(text_columns, metadata.class_names), default=0), MAX_CLASS_COLUMNS)
        return (min(SHOWN, metadata.num_classes) * (longest + SHARE_COLUMNS + 3) - 2,)

    def texts(self) -> tuple[str, ...]:
        """Return the largest classes with their shares: "water 62%  road 30%"."""
        longest = min(max((text_columns(found.name) for found in self.classes), default=0), MAX_CLASS_COLUMNS)
        return ("  ".join(f"{elide(name, longest)} {share:.0%}" for name, share in self._largest()),)

    def caption(self) -> list[str]:
        """Return the largest classes with their shares."""
        return [f"{name}  {share:.1%}" for name, share in self._largest()]

    def annotate(self, image: Image.Image) -> Image.Image:
        """Return the image, or a smaller copy of it, under its mask, the classes in it named below."""
        indices = self.indices if image.size == self.size else self.decimated(image.size)
        return with_colours(laid_over(image, indices, [found.color for found in self.classes]), self.legend())

    def decimated(self, size: tuple[int, int]) -> np.ndarray:
        """Return the class indices at a smaller (width, height), by nearest neighbour."""
        columns, places = (((np.arange(n) + 0.5) * own / n).astype(int) for n, own in zip(size, self.size, strict=True))
        return np.stack([self.rows(row, row + 1)[0, columns] for row in places.tolist()])

    def rows(self, first: int, end: int) -> np.ndarray:
        """Return rows first..end-1 of the class indices."""
        return self.indices[first:end]

    def legend(self) -> list[tuple[str, Color]]:
        """Return the classes in the mask with their shares and colours, the largest first."""
        shown = sorted(zip(self.classes, self.shares, strict=True), key=lambda pair: -pair[1])
        return [(f"{found.title or found.name} {share:.1%}", found.color) for found, share in shown if share]

    def image(self) -> Image.Image:
        """Return the mask as an image of mode "P": of each class its value in label files, and its colour.

        Where a value is no byte they are the classes' indices. A pixel of no class is black, of the largest free value.
        """
        image = Image.fromarray(file_lookup(self.classes)[self.indices])
        image.putpalette(palette(self.classes))
        return image

    def _largest(self) -> list[tuple[str, float]]:
        pairs = zip((found.name for found in self.classes), self.shares, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])[:SHOWN]


def classes_of(metadata: ModelMetadata) -> tuple[MaskClass, ...]:
    """Return the classes of a net that gives masks or boxes."""
    return metadata.mask_classes or default_classes(metadata.class_names)


def file_values(classes: Sequence[MaskClass]) -> tuple[int, ...]:
    """Return the pixel values of a mask's file: the classes' own, or their indices where one of them is no byte."""
    values = tuple(found.value for found in classes)
    return values if max(values) <= 255 else tuple(range(len(classes)))


def file_lookup(classes: Sequence[MaskClass]) -> np.ndarray:
    """Return the pixel value of a mask's file (256,) uint8 by class index; of VOID the largest that no class has."""
    values = file_values(classes)
    lookup = np.full(256, max(set(range(256)) - set(values)), np.uint8)
    lookup[: len(values)] = values
    return lookup


def palette(classes: Sequence[MaskClass]) -> list[int]:
    """Return 256 colours as 768 numbers, by the values of a mask's file; black where there is no class."""
    colors = [0] * 768
    for found, value in zip(classes, file_values(classes), strict=True):
        colors[3 * value : 3 * value + 3] = found.color
    return colors


def mean_score(logits: np.ndarray) -> float:
    """Return the mean over pixels of the largest softmax of finite logits (K, h, w)."""
    rows = (logits[:, row] for row in range(logits.shape[1]))  # one at a time: some images are long
    return float(np.mean([(1 / np.exp(row - row.max(axis=0)).sum(axis=0)).mean() for row in rows]))


def largest_scores(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the largest softmax, float64 (...), of finite logits (K, ...) over a temperature."""
    scaled = logits.astype(np.float64) / temperature
    return np.asarray(1 / np.exp(scaled - scaled.max(axis=0)).sum(axis=0))


def own_size(logits: np.ndarray, preprocess: Preprocess, size: tuple[int, int]) -> np.ndarray:
    """Return the class indices (H, W) uint8 of an image of (width, height) from logits (K, h, w) of the net's input.

    The largest logit is chosen at the image's size: borders of classes stay smooth.
    """
    indices = np.full((size[1], size[0]), VOID, np.uint8)
    for rows, columns, band in own_size_bands(logits, preprocess, size):
        indices[rows, columns] = band.argmax(axis=0)
    return indices


def own_size_bands(
    logits: np.ndarray, preprocess: Preprocess, size: tuple[int, int]
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield logits (K, rows, columns), bilinearly at an image's (width, height), of the part that the net has seen.

    Bands of rows bound the memory.
    """
    place = placement(preprocess.resize, size, (logits.shape[2], logits.shape[1]))
    if place.is_empty:
        return
    (left, top, right, bottom), (seen_left, seen_top, seen_right, seen_bottom) = place.inside, place.seen
    first_x, first_y = round(seen_left), round(seen_top)
    end_x, end_y = max(round(seen_right), first_x + 1), max(round(seen_bottom), first_y + 1)
    down = (bottom - top) / (end_y - first_y)
    planes = [Image.fromarray(plane[top:bottom, left:right].astype(np.float32)) for plane in logits]
    for row in range(first_y, end_y, BAND_ROWS):
        end = min(row + BAND_ROWS, end_y)
        box = (0, (row - first_y) * down, right - left, min((end - first_y) * down, bottom - top))
        shape = (end_x - first_x, end - row)
        band = np.stack([np.asarray(plane.resize(shape, Image.Resampling.BILINEAR, box)) for plane in planes])
        yield slice(row, end), slice(first_x, end_x), band


def _png_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return data_uri("image/png", file.getvalue())
