"""Masks and objects of large images: the net sees them at their own scale in overlapping tiles, which are joined."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import BinaryIO, Protocol

import numpy as np

from artifacts.calibration import PIXEL_SCORE
from artifacts.detections import nms_iou_of
from artifacts.metadata import ModelMetadata
from artifacts.tiles import blended_logits, padded, starts
from data_loader.band_image import gaps_of
from data_loader.mask_classes import VOID
from data_loader.preprocess import ImageError, as_array, joined
from deploy.backends.base import CHANGED, Backend, BackendError
from deploy.inference.box_prediction import BoxPrediction
from deploy.inference.geo_images import GeoImage, opened_by_gdal
from deploy.inference.mask_prediction import MaskPrediction, classes_of, mean_score
from deploy.inference.prediction import NOT_FINITE, Prediction
from deploy.inference.predictor import Predictor, Source, check_sizes, net_input
from deploy.inference.tiled_boxes import Candidates, TiledBoxes, candidates_of, joined_objects

Run = Callable[[np.ndarray], np.ndarray]  # tiles (N, ...) -> what the net gives for each


class ImageRows(Protocol):
    """An image that is read a few rows at a time."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""

    def rows(self, first: int, end: int) -> np.ndarray:
        """Return rows first..end-1, uint8 (rows, W, C). Raises ImageError."""

    def valid(self, first: int, end: int) -> np.ndarray | None:
        """Return which of these pixels (rows, W) hold data; None where all do."""


@dataclass(frozen=True)
class DecodedImage:
    """An image in memory, uint8 (H, W, C), and which of its pixels (H, W) hold no data; None where all do."""

    pixels: np.ndarray
    gaps: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def rows(self, first: int, end: int) -> np.ndarray:
        """Return some of its rows."""
        return self.pixels[first:end]

    def valid(self, first: int, end: int) -> np.ndarray | None:
        """Return which of some rows' pixels hold data; None where all of the image do."""
        return None if self.gaps is None else ~self.gaps[first:end]


class StoredRows:
    """Class indices (H, W) uint8 in a file without a name, written and read by rows; it goes with the object."""

    def __init__(self, width: int) -> None:
        self.width, self.file = width, tempfile.TemporaryFile()  # noqa: SIM115  (closed by the next line)
        weakref.finalize(self, self.file.close)

    def append(self, rows: np.ndarray) -> None:
        """Add rows (n, W) uint8. Raises OSError."""
        self.file.write(rows.tobytes())

    def read(self, first: int, end: int) -> np.ndarray:
        """Return rows first..end-1."""
        file: BinaryIO = self.file
        file.seek(first * self.width)
        return np.frombuffer(file.read((end - first) * self.width), np.uint8).reshape(end - first, self.width)


@dataclass(frozen=True)
class TiledPrediction(MaskPrediction):
    """A mask that was made of tiles. `geo` is the file that it lies over, where that is georeferenced."""

    stored: StoredRows | None = None
    counts: tuple[int, ...] = ()
    geo: GeoImage | None = None

    @cached_property
    def indices(self) -> np.ndarray:
        """The class indices (H, W) uint8."""
        return self.rows(0, self.size[1])

    @cached_property
    def pixels(self) -> tuple[int, ...]:
        """The number of pixels of each class."""
        return self.counts

    def rows(self, first: int, end: int) -> np.ndarray:
        """Return rows first..end-1 of the class indices."""
        assert self.stored is not None
        return self.stored.read(first, end)


class TiledPredictor(Predictor):
    """Predicts masks or boxes by tiles of the net's input size, without resizing; of one image after the other.

    The memory does not grow with an image's height, and of a TIFF that GDAL reads by windows (requirements-geo.txt)
    neither with its pixels. Raises BackendError for a net that gives neither.
    """

    def __init__(self, backend: Backend, metadata: ModelMetadata, overlap: float) -> None:
        super().__init__(backend, metadata)
        if metadata.output not in ("mask_logits", "boxes"):
            raise BackendError("--tiles is for nets that give masks or boxes, and this one gives neither")
        self.overlap = overlap
        thresholds = {name: value for name, value in metadata.thresholds.items() if name != PIXEL_SCORE}
        self.metadata = replace(metadata, thresholds=thresholds)  # what is set aside is of images that were resized

    def predict_files(
        self, paths: Iterable[Source], batch_size: int = 32, topk: int = 5, workers: int = 4
    ) -> Generator[Prediction, None, None]:
        """Stream the predictions in the order of the paths; `batch_size` counts tiles. Raises BackendError.

        The file that a prediction lies over is open until the next one is asked for.
        """
        for path in paths:
            files = (path,) if isinstance(path, str) else path
            with ExitStack() as opened:
                prediction = self._predict(files, batch_size, opened)
                yield replace(prediction, file=files[0], second_file="".join(files[1:]))

    def _predict(self, files: Sequence[str], batch_size: int, opened: ExitStack) -> Prediction:
        current = files[0]
        try:
            images: list[ImageRows] = []
            for current in files:
                images.append(self._open(current, opened))
            current = files[0]
            return self.predict_rows(images, batch_size, second_file=files[-1])
        except (ImageError, MemoryError) as error:
            text = str(error) or "it is too large for the memory"
            return self.prediction_type("", error=text if current == files[0] else f"{current}: {text}")

    def predict_rows(
        self,
        images: Sequence[ImageRows],
        batch_size: int,
        run: Run | None = None,
        second_file: str = "",
    ) -> Prediction:
        """Return the prediction, without its file, of one image or a pair; `second_file` names the later one.

        `run` gives the net's outputs for at most `batch_size` tiles, by default those of `outputs`. Raises ImageError,
        BackendError.
        """
        check_sizes([image.size for image in images], second_file)
        work = self._objects if self.metadata.output == "boxes" else self._mask
        return work(images, batch_size, run or self.outputs)

    def metadata_for(self, size: tuple[int, int]) -> ModelMetadata:
        """Return the metadata, whose preprocessing has the size of a tile, for an image of (width, height)."""
        return self.metadata

    def _open(self, path: str, opened: ExitStack) -> ImageRows:
        preprocess = self.metadata.preprocess
        if (geo := opened_by_gdal(path, preprocess)) is not None:
            opened.callback(geo.close)
            geo.check_bands()
            return geo
        image = preprocess.decode(path)
        return DecodedImage(as_array(image), gaps_of([image]))

    def _objects(self, images: Sequence[ImageRows], batch_size: int, run: Run) -> Prediction:
        metadata, image, (width, height) = self.metadata, images[0], images[0].size
        tile_w, tile_h = metadata.preprocess.width, metadata.preprocess.height
        lefts = starts(width, tile_w, self.overlap)
        found: list[Candidates] = []
        for top in starts(height, tile_h, self.overlap):
            band = padded(image.rows(top, min(top + tile_h, height)), tile_w, tile_h)
            for first in range(0, len(lefts), batch_size):
                part = lefts[first : first + batch_size]
                tiles = np.stack([net_input(band[:, left : left + tile_w], metadata) for left in part])
                outputs = run(tiles)
                if not np.isfinite(outputs).all():
                    return BoxPrediction("", error=NOT_FINITE)
                found += candidates_of(outputs, [(left, top) for left in part], metadata, image.size)
        objects = joined_objects(found, nms_iou_of(metadata))
        note = CHANGED if metadata.is_changed else ""
        geo = image if isinstance(image, GeoImage) else None
        return TiledBoxes("", note=note, classes=classes_of(metadata), size=image.size, objects=objects, geo=geo)

    def _mask(self, images: Sequence[ImageRows], batch_size: int, run: Run) -> Prediction:
        classes, size = classes_of(self.metadata), images[0].size
        counts, scores = np.zeros(VOID + 1, np.int64), 0.0
        stored, row = StoredRows(size[0]), 0
        for band in tiled_logits(run, images, self.metadata_for(size), self.overlap, batch_size):
            if not np.isfinite(band).all():
                return MaskPrediction("", error=NOT_FINITE)
            indices = band.argmax(axis=0).astype(np.uint8)  # (rows, W)
            end = row + len(indices)
            for image in images:
                if (valid := image.valid(row, end)) is not None:
                    indices[~valid] = VOID
            scores += mean_score(band) * len(indices)
            counts += np.bincount(indices.ravel(), minlength=VOID + 1)
            stored.append(indices)
            row = end
        return TiledPrediction(
            "",
            note=CHANGED if self.metadata.is_changed else "",
            classes=classes,
            size=size,
            score=scores / size[1],
            stored=stored,
            counts=tuple(map(int, counts[: len(classes)])),
            geo=images[0] if isinstance(images[0], GeoImage) else None,
        )


def tiled_logits(
    net: Run,
    images: Sequence[ImageRows],
    metadata: ModelMetadata,
    overlap: float,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Yield logits (K, rows, W) from the top of an image, or a pair, to its bottom, as `blended_logits` does."""
    tile = metadata.preprocess.width, metadata.preprocess.height
    return blended_logits(
        lambda tiles: net(np.stack([net_input(pixels, metadata) for pixels in tiles])),
        lambda first, end: joined([image.rows(first, end) for image in images]),
        images[0].size,
        tile,
        overlap,
        batch_size,
    )


def joining_bytes(size: tuple[int, int], metadata: ModelMetadata) -> int:
    """Return what the tiles of a decoded image of (width, height) take at most, with the image and its mask.

    Of a row of tiles: the pixels twice, and of masks the logits three times (sums, means, what the next row needs) and
    the indices of the largest.
    """
    preprocess = metadata.preprocess
    across, down = max(size[0], preprocess.width), max(size[1], preprocess.height)
    logits = 12 * metadata.num_classes + 9 if metadata.output == "mask_logits" else 0
    return across * (preprocess.height * (2 * preprocess.channels + logits) + down * (preprocess.channels + 1))
