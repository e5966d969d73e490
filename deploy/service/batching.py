"""Micro-batching: images of many requests are decoded in processes, and one net thread runs them in batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from data_loader.preprocess import joined
from deploy.inference.prediction import Prediction
from deploy.inference.predictor import Predictor, Prepared, net_input, stacked
from deploy.inference.tiles import TiledPredictor
from deploy.service.admission import Admission, Throughput
from deploy.service.image_decoder import ImageDecoder
from deploy.service.tiling import Tiler

T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    """One request. Only the event loop changes it; the threads check whether it still waits."""

    future: asyncio.Future[list[Any]]
    results: list[Prediction | np.ndarray]
    remaining: int
    wants_outputs: bool = False


@dataclass(frozen=True)
class _QueuedImage:
    job: _Job
    index: int
    prepared: Prepared


_Result = tuple[_Job, int, Prediction | np.ndarray | Exception | None]  # None: the request was done already


class MicroBatcher:
    """Predicts for images of many requests: all images that are ready when the net is free make the next batch.

    How many images are held (decoding, ready, or in the net) follows from `queue_size`: see Admission.
    A batch that is not full waits `batch_wait_ms` for more. `on_batch` is called in the net's thread with a batch's
    number of images and its seconds.
    For a TiledPredictor the batches are tiles, of one image at a time, whose threads share `tile_memory_mb`.
    `submit` belongs to one event loop; the other methods may be called from any thread.
    """

    def __init__(
        self,
        predictor: Predictor,
        decoder: ImageDecoder,
        *,
        batch_size: int,
        queue_size: int,
        workers: int,
        batch_wait_ms: float = 0.0,
        topk: int = 5,
        tile_memory_mb: int = 1024,
        on_batch: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self._predictor, self._decoder, self._on_batch = predictor, decoder, on_batch
        self._batch_size, self._workers, self._topk = batch_size, workers, topk
        self._batch_wait_s = batch_wait_ms / 1000
        self._has_fixed_sizes = predictor.backend.name == "openvino" and predictor.metadata.precision == "int8"
        self._decoding_throughput, self._net_throughput = Throughput(workers), Throughput(1)
        self._admission = Admission(queue_size, [self._decoding_throughput, self._net_throughput])
        self._ready: deque[_QueuedImage] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._is_closed = False
        self._changed = threading.Condition()  # guards the three above
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._pool_of_one = ThreadPoolExecutor(1, thread_name_prefix="decode_large")
        self._tiler: Tiler | None = None
        if isinstance(predictor, TiledPredictor):
            self._tiler = Tiler(predictor, decoder, tile_memory_mb * 10**6, workers)
        self._tile_pool = ThreadPoolExecutor(workers, thread_name_prefix="tiles")  # of small images
        self._net = threading.Thread(target=self._run, name="net", daemon=True)
        self._net.start()

    def submit(self, images: Sequence[bytes]) -> asyncio.Future[list[Prediction]]:
        """Queue a request's encoded images and return a future of their predictions, in order.

        For a net of pairs two images each have one prediction, the earlier first.

        A damaged image's prediction has an error; `file` stays empty. Work not yet begun is skipped once the future is
        done or cancelled. The future raises BackendError where the net fails. Raises QueueFullError.
        """
        groups = self._groups(images)
        job = self._admitted(len(groups))
        for index, group in enumerate(groups):
            if self._tiler is None:
                self._pool.submit(self._prepare, job, index, group)
            else:
                self._tile_pool.submit(self._predict_tiles, self._tiler, job, index, group)
        return job.future

    def submit_for_outputs(self, images: Sequence[bytes] | np.ndarray) -> asyncio.Future[list[Prediction | np.ndarray]]:
        """Queue as `submit` does, without tiles, and return a future of the net's outputs, float32 (...), for each.

        An array (N, ...) holds images as the net takes them. In place of a damaged image's outputs there is its
        prediction, which has an error. Raises QueueFullError.
        """
        if isinstance(images, np.ndarray):
            job = self._admitted(len(images), wants_outputs=True)
            self._put(_QueuedImage(job, index, Prepared("", pixels)) for index, pixels in enumerate(images))
        else:
            groups = self._groups(images)
            job = self._admitted(len(groups), wants_outputs=True)
            for index, group in enumerate(groups):
                self._pool.submit(self._prepare, job, index, group)
        return job.future

    def in_pool(self, function: Callable[..., T], *args: Any, is_large: bool = False) -> Future[T]:
        """Run a function in a decoding thread; `is_large`: in the thread for large images."""
        return (self._pool_of_one if is_large else self._pool).submit(function, *args)

    def in_net_thread(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Run a function between two batches: backends are not thread-safe."""
        done: Future[T] = Future()

        def call() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(function(*args))
            except Exception as error:  # the future raises it
                done.set_exception(error)

        with self._changed:
            self._calls.append(call)
            self._changed.notify()
        return done

    def warm_up(self) -> Prediction:
        """Predict for a grey image in all batch sizes to come, so that no request waits while a runtime compiles.

        Raises BackendError.
        """
        return self.in_net_thread(self._warm_up).result()

    @property
    def held(self) -> int:
        """The number of images decoding, waiting or in the net."""
        return self._admission.held

    def check_room(self) -> None:
        """Check, before a request's body is read, that an image would be admitted. Raises QueueFullError."""
        self._admission.check()

    def tick(self) -> None:
        """Record that the event loop runs; called each TICK_S."""
        self._admission.tick()

    def is_ready(self) -> bool:
        """Return whether an image would be admitted and decoded, and the net's thread runs."""
        return self._admission.has_room() and self._net.is_alive() and not self._decoder.is_stalled()

    def close(self) -> None:
        """Finish the queued images, then end the threads. After `ImageDecoder.close` no image is decoded any more."""
        self._pool.shutdown(wait=True)  # these first: they hand large images on
        self._tile_pool.shutdown(wait=True)
        self._pool_of_one.shutdown(wait=True)
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._net.join()

    def _groups(self, images: Sequence[bytes]) -> list[tuple[bytes, ...]]:
        """Return the images of each prediction."""
        size = self._predictor.metadata.preprocess.images
        return [tuple(images[first : first + size]) for first in range(0, len(images), size)]

    def _admitted(self, count: int, *, wants_outputs: bool = False) -> _Job:
        """Return a job of `count` predictions, or outputs. Raises QueueFullError."""
        self._admission.acquire(count)
        empty = self._predictor.failure(Prepared("", None), "")
        return _Job(asyncio.get_running_loop().create_future(), [empty] * count, count, wants_outputs)

    def _prepare(self, job: _Job, index: int, images: tuple[bytes, ...], may_be_large: bool = False) -> None:
        if job.future.done():  # the request does not wait any more
            return self._deliver([(job, index, None)])
        started = time.perf_counter()
        try:
            prepared = self._decoder.prepare(*images, may_be_large=may_be_large)
        except Exception as error:  # a bug: the request fails, and does not wait for ever
            return self._deliver([(job, index, error)])
        seconds = time.perf_counter() - started
        if prepared is None:  # large or damaged: a second try finds out, and delays no small one
            self._pool_of_one.submit(self._prepare, job, index, images, True)
        elif prepared.error:
            self._deliver([(job, index, self._predictor.failure(prepared, prepared.error))])
        else:
            # one large image is decoded at a time
            self._decoding_throughput.record(1, seconds * self._workers if may_be_large else seconds)
            self._put([_QueuedImage(job, index, prepared)])

    def _predict_tiles(
        self, tiler: Tiler, job: _Job, index: int, images: tuple[bytes, ...], may_be_large: bool = False
    ) -> None:
        """Predict for an image by tiles; its thread waits while the net's runs a batch of them."""
        started, in_net, waited = time.perf_counter(), 0.0, 0.0

        def run(tiles: np.ndarray) -> np.ndarray:
            nonlocal in_net, waited
            if job.future.done():
                raise CancelledError
            asked = time.perf_counter()
            outputs, seconds = self.in_net_thread(self._timed_outputs, tiles).result()
            in_net, waited = in_net + seconds, waited + time.perf_counter() - asked
            return outputs

        outcome: Prediction | Exception | None
        try:
            if job.future.done():
                raise CancelledError
            outcome = tiler.predict(images, self._batch_size, run, may_be_large=may_be_large)
            if outcome is None:
                self._pool_of_one.submit(self._predict_tiles, tiler, job, index, images, True)
                return
        except CancelledError:  # the request does not wait any more
            outcome = None
        except Exception as error:  # the request fails, and the thread lives on
            outcome = error
        if in_net:
            own = time.perf_counter() - started - waited
            self._decoding_throughput.record(1, own * self._workers if may_be_large else own)
            self._net_throughput.record(1, in_net)
        self._deliver([(job, index, outcome)])

    def _timed_outputs(self, tiles: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the net's outputs for a batch of tiles, and its seconds."""
        assert isinstance(self._predictor, TiledPredictor)
        started = time.perf_counter()
        outputs = self._predictor.outputs(tiles)
        seconds = time.perf_counter() - started
        self._on_batch(len(tiles), seconds)
        return outputs, seconds

    def _put(self, images: Iterable[_QueuedImage]) -> None:
        with self._changed:
            self._ready.extend(images)
            self._changed.notify()

    def _run(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Run one batch, then the calls that wait; return False once all is done and closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._calls or self._is_closed)
            if self._batch_wait_s and self._ready:
                self._changed.wait_for(lambda: len(self._ready) >= self._batch_size, self._batch_wait_s)
            batch = [self._ready.popleft() for _ in range(self._next_size(len(self._ready)))]
            calls = [self._calls.popleft() for _ in range(len(self._calls))]
        if batch:
            self._run_batch(batch)
        for call in calls:
            call()
        return bool(batch or calls) or not self._is_closed

    def _next_size(self, count: int) -> int:
        """Return how many of the images that are ready make the next batch.

        Programs for fixed batch sizes, powers of two, would pad 5 images to 8: 4 go, and the fifth with later ones.
        """
        size = min(count, self._batch_size)
        return 1 << (size.bit_length() - 1) if self._has_fixed_sizes and size else size

    def _run_batch(self, batch: Sequence[_QueuedImage]) -> None:
        wanted, results = [], list[_Result]()
        for image in batch:
            if image.job.future.done():
                results.append((image.job, image.index, None))
            else:
                wanted.append(image)
        if wanted:
            results += self._predict(wanted)
        self._deliver(results)

    def _predict(self, wanted: Sequence[_QueuedImage]) -> list[_Result]:
        started = time.perf_counter()
        outcomes: Sequence[Prediction | np.ndarray | Exception]
        try:
            outcomes = self._outcomes(wanted)
        except Exception as error:  # each request fails, and the thread lives on
            outcomes = [error] * len(wanted)
        seconds = time.perf_counter() - started
        self._net_throughput.record(len(wanted), seconds)
        self._on_batch(len(wanted), seconds)
        return [(image.job, image.index, outcome) for image, outcome in zip(wanted, outcomes, strict=True)]

    def _outcomes(self, wanted: Sequence[_QueuedImage]) -> list[Prediction | np.ndarray]:
        """Return each image's prediction, or its outputs where the request asked for them. Raises BackendError."""
        prepared = [image.prepared for image in wanted]
        images = stacked(prepared)
        outputs = self._predictor.outputs(images)
        chosen = [index for index, image in enumerate(wanted) if not image.job.wants_outputs]
        if len(chosen) == len(wanted):  # as a rule: nothing is copied
            return list(self._predictor.decoded(prepared, images, outputs, self._topk))
        found: list[Prediction | np.ndarray] = list(outputs)
        if chosen:
            batch = [prepared[index] for index in chosen]
            decoded = self._predictor.decoded(batch, images[chosen], outputs[chosen], self._topk)
            for index, prediction in zip(chosen, decoded, strict=True):
                found[index] = prediction
        return found

    def _deliver(self, results: Sequence[_Result]) -> None:
        with suppress(RuntimeError):  # the event loop has ended, and no request waits
            results[0][0].future.get_loop().call_soon_threadsafe(self._collect, results)

    def _collect(self, results: Sequence[_Result]) -> None:
        """Release images from the queue and complete their requests; runs in the event loop."""
        without_work = sum(
            outcome is None or (isinstance(outcome, Prediction) and bool(outcome.error)) for *_, outcome in results
        )
        self._admission.release(len(results), without_work)
        for job, index, outcome in results:
            job.remaining -= 1
            if job.future.done():
                continue
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            elif outcome is not None:
                job.results[index] = outcome
                if job.remaining == 0:
                    job.future.set_result(job.results)

    def _warm_up(self) -> Prediction:
        preprocess = self._predictor.metadata.preprocess
        height, width = preprocess.height, preprocess.width
        pixels = [np.full((height, width, preprocess.image_channels), 128, np.uint8)] * preprocess.images
        grey = Prepared("", net_input(joined(pixels), self._predictor.metadata), size=(width, height))
        sizes = [1 << power for power in range((self._batch_size - 1).bit_length())]
        predictions = list[Prediction]()
        for count in (*sizes, self._batch_size, self._batch_size):  # OpenVINO compiles what comes twice for itself
            predictions = self._predictor.predict_prepared([grey] * count, self._topk)
        return predictions[0]
