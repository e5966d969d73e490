"""The Predictor: from a file to a prediction, through the one decoder and the net's own preprocessing."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from artifacts.metadata import ModelMetadata
from artifacts.outputs import output_shape
from data_loader.band_image import Decoded, gaps_of
from data_loader.decoder_process import DecoderPool, Fitted
from data_loader.preprocess import ImageError, bgr, joined
from deploy.backends.base import CHANGED, Backend, BackendError
from deploy.backends.declared_sizes import shapes_agree
from deploy.inference.prediction import NOT_FINITE, Prediction
from deploy.inference.prediction_types import prediction_type


class Measure(Protocol):
    """Further numbers of images: prepared images (N, ...) -> an array (N,) for each of `names`."""

    names: tuple[str, ...]

    def __call__(self, images: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the numbers of a batch. Raises BackendError."""


IMAGES = {1: "one image", 2: "a pair of images"}

Source = str | tuple[str, str]  # an image's file, or of a net of pairs both, the earlier first


@dataclass(frozen=True)
class Prepared:
    """One image, or pair, ready for the net, as `prepare` returns it, or the reason why it is not.

    `size` is the image's own (width, height).
    """

    file: str
    pixels: np.ndarray | None
    error: str = ""
    size: tuple[int, int] = (0, 0)
    second_file: str = ""
    gaps: np.ndarray | None = None  # (H, W): where its pixels hold no data


class Predictor:
    """Predicts for files and images. A bad one gets a prediction with an error and takes no other with it.

    The type of the predictions follows from the metadata's output; of a calibrated net they hold the decision.
    `measure` adds numbers to each. Raises BackendError for an output without a prediction type.
    """

    def __init__(self, backend: Backend, metadata: ModelMetadata, measure: Measure | None = None) -> None:
        self.backend = backend
        self.metadata = metadata
        self.prediction_type = prediction_type(metadata.output)
        self._measure = measure

    def csv_columns(self, topk: int = 5) -> tuple[str, ...]:
        """Return the columns that `open_results` writes between file and error."""
        measures = self._measure.names if self._measure else ()
        note = ("note",) if self.metadata.is_changed else ()
        return (*self.prediction_type.csv_columns(self.metadata, topk), *measures, *note)

    def predict_files(
        self, paths: Iterable[Source], batch_size: int = 32, topk: int = 5, workers: int = 4
    ) -> Generator[Prediction, None, None]:
        """Stream the predictions in the order of the paths, decoding in `workers` processes ahead of the net.

        At most two batches of images and one per worker are held, however many paths there are. Raises BackendError.
        """
        if batch_size < 1 or topk < 1 or workers < 1:
            raise ValueError(f"batch_size, topk and workers must be at least 1, got {batch_size}, {topk}, {workers}")
        prepared = prepare_ahead(paths, self.metadata, batch_size + workers, workers)
        while batch := list(itertools.islice(prepared, batch_size)):
            yield from self.predict_prepared(batch, topk)

    def predict_images(self, images: Sequence[Decoded], topk: int = 5) -> list[Prediction]:
        """Predict in one batch for decoded images, as `metadata.preprocess.decode` returns them; `file` stays empty.

        Raises BackendError.
        """
        fitted = [Fitted(image, image.size, gaps_of([image])) for image in images]
        prepared = [prepared_from([image], ("",), self.metadata) for image in fitted]
        return self.predict_prepared(prepared, topk)

    def predict_prepared(self, batch: Sequence[Prepared], topk: int = 5) -> list[Prediction]:
        """Predict for a batch of what `prepare_ahead` yields, in its order. Raises BackendError."""
        good = [prepared for prepared in batch if prepared.pixels is not None]
        predictions = iter(self._predictions(good, topk) if good else ())
        return [
            self.failure(prepared, prepared.error) if prepared.pixels is None else next(predictions)
            for prepared in batch
        ]

    def failure(self, prepared: Prepared, error: str) -> Prediction:
        """Return the prediction for an image that has none."""
        return self.prediction_type(prepared.file, second_file=prepared.second_file, error=error)

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """Return what the net gives, float32 (N, ...), for what `prepare` returned of N images. Raises BackendError."""
        outputs = self.backend(images)
        self._check_shape(outputs, len(images))
        return outputs

    def decoded(
        self, batch: Sequence[Prepared], images: np.ndarray, outputs: np.ndarray, topk: int
    ) -> Iterator[Prediction]:
        """Yield the predictions for a batch without errors from its pixels (N, ...) and the net's outputs (N, ...).

        Raises BackendError.
        """
        measured = self._measure(images) if self._measure else {}
        decoded = self.prediction_type.decode(outputs, self.metadata, topk, [prepared.size for prepared in batch])
        for number, (prepared, prediction) in enumerate(zip(batch, decoded, strict=True)):
            measures = tuple((name, float(values[number])) for name, values in measured.items())
            if any(math.isnan(value) for _, value in measures):
                yield self.failure(prepared, NOT_FINITE)
            else:
                note = CHANGED if self.metadata.is_changed else ""
                files = {"file": prepared.file, "second_file": prepared.second_file}
                made = replace(prediction, **files, measures=measures, note=note)
                yield made if prepared.gaps is None else made.without(prepared.gaps)

    def _predictions(self, batch: Sequence[Prepared], topk: int) -> Iterator[Prediction]:
        images = stacked(batch)
        return self.decoded(batch, images, self.outputs(images), topk)

    def _check_shape(self, outputs: np.ndarray, count: int) -> None:
        """Raise BackendError for outputs that contradict the metadata."""
        declared = output_shape(self.metadata) or (None,) * outputs.ndim
        expected = (count, *declared[1:])
        if not shapes_agree(outputs.shape, expected):
            raise BackendError(
                f"the {self.backend.name} net gives {outputs.shape} instead of {expected}: not its metadata"
            )


def stacked(batch: Sequence[Prepared]) -> np.ndarray:
    """Return the pixels of a batch as the net takes them, (N, ...)."""
    return np.stack([prepared.pixels for prepared in batch if prepared.pixels is not None])


def prepare_ahead(paths: Iterable[Source], metadata: ModelMetadata, ahead: int, workers: int) -> Iterator[Prepared]:
    """Stream images ready for the net, in order, decoded in other processes at most `ahead` of the consumer.

    An image whose decoder does not end in time has an error, and the others go on.
    """
    decoders = DecoderPool(metadata.preprocess, workers)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Prepared]] = deque()
    try:
        for path in paths:
            files = (path,) if isinstance(path, str) else path
            waiting.append(pool.submit(_prepared_files, files, metadata, decoders))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the consumer stops early
        decoders.close()
        pool.shutdown(wait=True, cancel_futures=True)


def check_sizes(sizes: Sequence[tuple[int, int]], second_file: str) -> None:
    """Raise ImageError where the images of a pair differ in (width, height)."""
    (width, height), (other_width, other_height) = sizes[0], sizes[-1]
    if sizes[0] != sizes[-1]:
        name = f" {second_file}" if second_file else ""
        raise ImageError(f"it is {width}x{height}, but the second image{name} is {other_width}x{other_height}")


def prepare(image: Decoded, metadata: ModelMetadata, *others: Decoded) -> np.ndarray:
    """Turn a decoded image into the net's input: float32 (C, H, W), or uint8 (H, W, C) where it normalizes itself.

    Of a pair `others` is the later image. Raises ValueError for an image of other channels, or without pixels.
    """
    preprocess, images = metadata.preprocess, (image, *others)
    if len(images) != preprocess.images:
        raise ValueError(f"this net needs {IMAGES[preprocess.images]} for a prediction, got {IMAGES[len(images)]}")
    for found in images:
        if len(found.getbands()) != preprocess.image_channels or 0 in found.size:
            got = (found.height, found.width, len(found.getbands()))
            raise ValueError(f"expected uint8 (H, W, {preprocess.image_channels}) with pixels, got uint8 {got}")
    return net_input(joined([preprocess.fit(found) for found in images]), metadata)


def net_input(fitted: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    """Turn pixels of the input's size, uint8 (H, W, C), into what `prepare` returns."""
    if metadata.input == "float32 NCHW":
        return metadata.preprocess.net_input(fitted)
    return bgr(fitted, metadata.preprocess.images) if metadata.input == "uint8 NHWC BGR" else fitted


def _prepared_files(files: Sequence[str], metadata: ModelMetadata, decoders: DecoderPool) -> Prepared:
    decoded = []
    for file in files:
        try:
            decoded.append(decoders.fit(file, metadata.preprocess.max_pixels))
        except ImageError as error:
            text = str(error) if file == files[0] else f"{file}: {error}"
            return Prepared(files[0], None, text, second_file="".join(files[1:]))
    return prepared_from(decoded, files, metadata)


def prepared_from(decoded: Sequence[Fitted], files: Sequence[str], metadata: ModelMetadata) -> Prepared:
    """Return a fitted image, or both of a pair, ready for the net, or why it is not."""
    first, second = files[0], "".join(files[1:])
    size, *others = [found.size for found in decoded]
    try:
        check_sizes([size, *others], second)
        pixels = prepare(decoded[0].image, metadata, *(other.image for other in decoded[1:]))
        present = [found.gaps for found in decoded if found.gaps is not None]
        gaps = np.logical_or.reduce(present) if present else None
        return Prepared(first, pixels, size=size, second_file=second, gaps=gaps)
    except (ValueError, MemoryError) as error:
        return Prepared(first, None, str(error) or "it is too large for the memory", second_file=second)
