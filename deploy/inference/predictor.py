"""The Predictor: from a file to an answer, through the one decoder and the net's own preprocessing."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import ImageError, as_array
from deploy.backends.base import Backend, BackendError
from deploy.inference.decision import Decision, decide
from deploy.inference.prediction import DECISION_COLUMNS, Prediction
from deploy.inference.uncertainty_scores import softmax as softmax  # where it has always been found


class Measure(Protocol):
    """More numbers of images: prepared images (N, ...) -> an array (N,) for each of `names`."""

    names: tuple[str, ...]

    def __call__(self, images: np.ndarray) -> Mapping[str, np.ndarray]:
        """Give the numbers of a batch. Raises BackendError."""


@dataclass(frozen=True)
class Prepared:
    """One image ready for the net, as `prepare` gives it, or the reason why it is not."""

    file: str
    pixels: np.ndarray | None
    error: str = ""


class Predictor:
    """Answers for files and images. A bad one gets an answer with an error and takes no other with it.

    Where the metadata is calibrated each answer is decided on. `measure` gives more numbers of each image.
    Raises BackendError for a net that gives features instead of logits.
    """

    def __init__(self, backend: Backend, metadata: ModelMetadata, measure: Measure | None = None) -> None:
        if metadata.output != "logits":
            raise BackendError(
                f"this net gives {metadata.output}, not classes: python -m tools.embed writes them, and a "
                "SimSiam_probe trained from it classifies"
            )
        self.backend = backend
        self.metadata = metadata
        self._measure = measure

    @property
    def details(self) -> tuple[str, ...]:
        """The keys that its answers have beside those of any net: for `open_results`."""
        measures = self._measure.names if self._measure else ()
        return (*(DECISION_COLUMNS if self.metadata.calibration else ()), *measures)

    def predict_files(
        self, paths: Iterable[str], batch_size: int = 32, topk: int = 5, workers: int = 4
    ) -> Generator[Prediction, None, None]:
        """Stream the answers in the order of the paths, decoding in `workers` threads ahead of the net.

        At most two batches of images and one a worker are held, however many paths there are. Raises BackendError.
        """
        if batch_size < 1 or topk < 1 or workers < 1:
            raise ValueError(f"batch_size, topk and workers must be at least 1, got {batch_size}, {topk}, {workers}")
        prepared = prepare_ahead(paths, self.metadata, batch_size + workers, workers)
        while batch := list(itertools.islice(prepared, batch_size)):
            yield from self.answer_prepared(batch, topk)

    def predict_images(self, images: Sequence[Image.Image], topk: int = 5) -> list[Prediction]:
        """Answer for decoded images in one batch; they are what `metadata.preprocess.decode` gives. `file` stays empty.

        Raises BackendError.
        """
        return self.answer_prepared([_prepared(image, "", self.metadata) for image in images], topk)

    def answer_prepared(self, batch: Sequence[Prepared], topk: int) -> list[Prediction]:
        """Answer for a batch of what `prepare_ahead` gives, in its order. Raises BackendError."""
        pixels = [prepared.pixels for prepared in batch if prepared.pixels is not None]
        good = iter(self._predictions(np.stack(pixels), topk) if pixels else ())
        return [
            Prediction(prepared.file, error=prepared.error)
            if prepared.pixels is None
            else replace(next(good), file=prepared.file)
            for prepared in batch
        ]

    def _predictions(self, images: np.ndarray, topk: int) -> Iterator[Prediction]:
        """Answer for prepared images (N, ...), without their files; an error where the logits are not finite."""
        logits = self.backend(images)
        expected = (len(images), self.metadata.num_classes)
        if logits.shape != expected:
            raise BackendError(
                f"the {self.backend.name} net gives {logits.shape} instead of {expected}: not its metadata"
            )
        measured = self._measure(images) if self._measure else {}
        rows = zip(softmax(logits, self.metadata.temperature or 1.0), decide(logits, self.metadata), strict=True)
        for number, (scores, decision) in enumerate(rows):
            measures = tuple((name, float(values[number])) for name, values in measured.items())
            if np.isnan(scores).any() or any(math.isnan(value) for _, value in measures):
                yield Prediction("", error="the net's output is not finite (NaN or infinite logits)")
            else:
                yield replace(self._best(scores, decision, topk), measures=measures)

    def _best(self, scores: np.ndarray, decision: Decision | None, topk: int) -> Prediction:
        names = self.metadata.class_names
        order = np.argsort(-scores, kind="stable")[:topk]  # of equal scores the lower label comes first
        top_k = tuple((names[label], float(scores[label])) for label in order)
        prediction = Prediction("", int(order[0]), *top_k[0], top_k)
        if decision is None:
            return prediction
        members = tuple(names[label] for label in decision.conformal_set)
        return replace(prediction, uncertainty=decision.uncertainty, decision=decision.decision, conformal_set=members)


def prepare_ahead(paths: Iterable[str], metadata: ModelMetadata, ahead: int, workers: int) -> Iterator[Prepared]:
    """Stream images ready for the net, in order, decoded in threads at most `ahead` of whoever asks."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Prepared]] = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(_prepared_file, path, metadata))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where whoever asks stops asking
        pool.shutdown(wait=True, cancel_futures=True)


def prepare(image: Image.Image, metadata: ModelMetadata) -> np.ndarray:
    """Turn a decoded image into the net's input: float32 (C, H, W), or uint8 (H, W, C) where it normalizes itself.

    Raises ValueError for an image of other channels, or without pixels.
    """
    preprocess = metadata.preprocess
    if metadata.input == "float32 NCHW":
        return preprocess(as_array(image))
    if len(image.getbands()) != preprocess.channels or 0 in image.size:
        got = (image.height, image.width, len(image.getbands()))
        raise ValueError(f"expected uint8 (H, W, {preprocess.channels}) with pixels, got uint8 {got}")
    pixels = preprocess.fit(image)
    return pixels[:, :, ::-1] if metadata.input == "uint8 NHWC BGR" else pixels


def _prepared_file(path: str, metadata: ModelMetadata) -> Prepared:
    try:
        image = metadata.preprocess.decode(path)
    except ImageError as error:
        return Prepared(path, None, str(error))
    return _prepared(image, path, metadata)


def _prepared(image: Image.Image, file: str, metadata: ModelMetadata) -> Prepared:
    try:
        return Prepared(file, prepare(image, metadata))
    except (ValueError, MemoryError) as error:
        return Prepared(file, None, str(error) or "it is too large for the memory")
