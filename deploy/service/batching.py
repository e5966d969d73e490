"""Micro-batching: images of many requests are decoded in threads and answered together by one net thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from deploy.inference.prediction import Prediction
from deploy.inference.predictor import Predictor, Prepared, prepare
from deploy.service.admission import Admission, Pace
from deploy.service.image_decoder import ImageDecoder

T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    """One request. Only the event loop changes it; the threads look whether anybody still waits."""

    answered: asyncio.Future[list[Prediction]]
    answers: list[Prediction]
    left: int


@dataclass(frozen=True)
class _Image:
    job: _Job
    index: int
    prepared: Prepared


_Result = tuple[_Job, int, Prediction | Exception | None]  # None: nobody waited for it


class MicroBatcher:
    """Answers for images of many requests: whatever is ready when the net is free makes the next batch.

    How many images are held (decoding, ready, or in the net) follows from `queue_size`: see Admission.
    With `batch_wait_ms` a batch that is not full waits so long for more. `on_batch` hears in the net's thread how many
    images a batch had, and its seconds.
    `submit` belongs to one event loop; the other methods may be called anywhere.
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
        on_batch: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self._predictor, self._decoder, self._on_batch = predictor, decoder, on_batch
        self._batch_size, self._workers, self._topk = batch_size, workers, topk
        self._batch_wait_s = batch_wait_ms / 1000
        self._has_fixed_sizes = predictor.backend.name == "openvino" and predictor.metadata.precision == "int8"
        self._decoding_pace, self._net_pace = Pace(workers), Pace(1)
        self._admission = Admission(queue_size, [self._decoding_pace, self._net_pace])
        self._ready: deque[_Image] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._is_closed = False
        self._changed = threading.Condition()  # guards the three above
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._pool_of_one = ThreadPoolExecutor(1, thread_name_prefix="decode_large")
        self._net = threading.Thread(target=self._run, name="net", daemon=True)
        self._net.start()

    def submit(self, images: Sequence[bytes]) -> asyncio.Future[list[Prediction]]:
        """Take the encoded images of a request; a bad one's answer has an error. `file` stays empty.

        What has not been done yet is left out once the future is done, cancelled say. It raises BackendError where the
        net fails. Raises QueueFullError.
        """
        self._admission.let_in(len(images))
        job = _Job(asyncio.get_running_loop().create_future(), [Prediction("")] * len(images), len(images))
        for index, data in enumerate(images):
            self._pool.submit(self._prepare, job, index, data)
        return job.answered

    def in_pool(self, function: Callable[..., T], *args: Any, is_large: bool = False) -> Future[T]:
        """Run a function in a decoding thread; in the one for large images, where it decodes such."""
        return (self._pool_of_one if is_large else self._pool).submit(function, *args)

    def in_net_thread(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Run a function between two batches: backends are not made for several threads."""
        done: Future[T] = Future()

        def call() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(function(*args))
            except Exception as error:  # whoever waits for it hears of it
                done.set_exception(error)

        with self._changed:
            self._calls.append(call)
            self._changed.notify()
        return done

    def warm_up(self) -> Prediction:
        """Answer for a grey image in the batch sizes to come: what they make a runtime compile, no request waits for.

        Raises BackendError.
        """
        return self.in_net_thread(self._warm_up).result()

    @property
    def held(self) -> int:
        """How many images are held."""
        return self._admission.held

    def check_room(self) -> None:
        """Tell, before a request's body is read, whether an image would be taken. Raises QueueFullError."""
        self._admission.check()

    def tick(self) -> None:
        """Hear that the event loop is at work; called each TICK_S."""
        self._admission.tick()

    def is_ready(self) -> bool:
        """Say whether an image would be taken, and answered."""
        return self._admission.has_room() and self._net.is_alive()

    def close(self) -> None:
        """Finish what has been taken, then end the threads."""
        self._pool.shutdown(wait=True)  # first: it hands large images on
        self._pool_of_one.shutdown(wait=True)
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._net.join()

    def _prepare(self, job: _Job, index: int, data: bytes, may_be_large: bool = False) -> None:
        outcome: Prediction | Exception | None = None
        if not job.answered.done():  # else nobody waits for it any more
            started = time.perf_counter()
            try:
                prepared = self._decoder.prepared(data, may_be_large=may_be_large)
            except Exception as error:  # a fault of ours: the request hears of it, and does not wait for ever
                outcome = error
            else:
                if not prepared.error:
                    seconds = time.perf_counter() - started
                    self._decoding_pace.note(1, seconds * self._workers if may_be_large else seconds)  # one at a time
                    self._put(_Image(job, index, prepared))
                    return
                if not may_be_large:  # it is large, or bad: a second look tells which, and holds no small one up
                    self._pool_of_one.submit(self._prepare, job, index, data, True)
                    return
                outcome = Prediction("", error=prepared.error)
        _deliver(self._take, [(job, index, outcome)])

    def _put(self, image: _Image) -> None:
        with self._changed:
            self._ready.append(image)
            self._changed.notify()

    def _run(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Answer for one batch, then make the calls that wait; False once all is done and closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._calls or self._is_closed)
            if self._batch_wait_s and self._ready:
                self._changed.wait_for(lambda: len(self._ready) >= self._batch_size, self._batch_wait_s)
            batch = [self._ready.popleft() for _ in range(self._next_size(len(self._ready)))]
            calls = [self._calls.popleft() for _ in range(len(self._calls))]
        if batch:
            self._answer(batch)
        for call in calls:
            call()
        return bool(batch or calls) or not self._is_closed

    def _next_size(self, count: int) -> int:
        """Say how many of the images that are ready go into the net.

        Programs for fixed batch sizes, powers of two, would fill up 5 to 8: 4 go, and the fifth with those that come.
        """
        size = min(count, self._batch_size)
        return 1 << (size.bit_length() - 1) if self._has_fixed_sizes and size else size

    def _answer(self, batch: Sequence[_Image]) -> None:
        wanted, results = [], list[_Result]()
        for image in batch:
            if image.job.answered.done():
                results.append((image.job, image.index, None))
            else:
                wanted.append(image)
        if wanted:
            results += self._answered(wanted)
        _deliver(self._take, results)

    def _answered(self, wanted: Sequence[_Image]) -> list[_Result]:
        started = time.perf_counter()
        outcomes: Sequence[Prediction | Exception]
        try:
            outcomes = self._predictor.answer_prepared([image.prepared for image in wanted], self._topk)
        except Exception as error:  # each request hears of it, and the thread lives on
            outcomes = [error] * len(wanted)
        seconds = time.perf_counter() - started
        self._net_pace.note(len(wanted), seconds)
        self._on_batch(len(wanted), seconds)
        return [(image.job, image.index, outcome) for image, outcome in zip(wanted, outcomes, strict=True)]

    def _take(self, results: Sequence[_Result]) -> None:
        """Note what became of images; this runs in the event loop."""
        without_work = sum(
            outcome is None or (isinstance(outcome, Prediction) and bool(outcome.error)) for *_, outcome in results
        )
        self._admission.let_out(len(results), without_work)
        for job, index, outcome in results:
            job.left -= 1
            if job.answered.done():
                continue
            if isinstance(outcome, Exception):
                job.answered.set_exception(outcome)
            elif outcome is not None:
                job.answers[index] = outcome
                if job.left == 0:
                    job.answered.set_result(job.answers)

    def _warm_up(self) -> Prediction:
        metadata = self._predictor.metadata
        size = (metadata.preprocess.width, metadata.preprocess.height)
        grey = Prepared(
            "", prepare(Image.new("RGB" if metadata.preprocess.channels == 3 else "L", size, "grey"), metadata)
        )
        sizes = [1 << power for power in range((self._batch_size - 1).bit_length())]
        answers = []
        for count in (*sizes, self._batch_size, self._batch_size):  # OpenVINO compiles what comes twice for itself
            answers = self._predictor.answer_prepared([grey] * count, self._topk)
        return answers[0]


def _deliver(take: Callable[[Sequence[_Result]], None], results: Sequence[_Result]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and nobody waits
        results[0][0].answered.get_loop().call_soon_threadsafe(take, results)
