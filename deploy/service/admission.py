"""Admission control: how many images the service holds, few under overload and many while it is slow for a moment.

A bounded queue is 100 lines shorter, but above some 85 images/s no bound meets both targets of docs/reliability.md. At
150 images/s and 70 % load with four pauses of 1 s, bounds of 48 and 64 refused 148 to 394 of 2,200 requests; a bound of
128 refused none, but at twice the saturation had 1.6 times the p99 that is the target. This one: none, and 0.6 to 0.8
times (docs/decisions.md).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

OVERLOAD_SHARE = 0.5  # of the queue is open under overload
SLOW_FACTOR = 4  # times the queue is open while no more images arrive than usual
WINDOW_S = 60.0  # of a stage's work, over which its throughput is averaged
TICK_S = 0.1  # between two ticks of the event loop


class QueueFullError(Exception):
    """The queue is full; none of the request's images has been admitted."""


class Throughput:
    """Images a second of a stage of `threads` threads: an exponential average over its last minute of work."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._images, self._seconds = 0.0, 0.0
        self._lock = threading.Lock()

    def record(self, images: int, seconds: float) -> None:
        """Add the work of one thread. Any thread may call it."""
        kept = math.exp(-seconds / (self._threads * WINDOW_S))
        with self._lock:
            self._images = self._images * kept + images
            self._seconds = self._seconds * kept + seconds

    def images_per_second(self) -> float:
        """Return what all threads together process while they work; 0 before the first `record`."""
        with self._lock:
            return self._threads * self._images / self._seconds if self._seconds else 0.0


class VirtualQueue:
    """The queue that the offered load would make at the usual throughput (adaptive virtual queue).

    All images arrive here, admitted or not, and leave at the usual rate. So it is long under overload, and short while
    only the service is slow for a moment. Source: Kunniyur and Srikant, "Analysis and design of an adaptive
    virtual queue (AVQ) algorithm for active queue management", SIGCOMM 2001.

    What is sent while the process is paused arrives all at once afterwards. A pause, seen as a late `tick`, therefore
    gives a credit: so many images may arrive before the length counts from 0 again.
    """

    def __init__(self, max_length: float, max_credit: float, now: float) -> None:
        self._max_length, self._max_credit = max_length, max_credit
        self.length = 0.0  # images; below 0 while the credit of a pause lasts
        self._updated_at = now
        self._ticked_at = math.inf  # no tick yet

    def advance(self, now: float, rate: float) -> None:
        """Let images leave at `rate` (1/s) up to now, and old credit expire at the same rate."""
        left = rate * (now - self._updated_at)
        credit = self._pause_credit(now, rate)
        if self.length < 0:
            self.length = min(self.length + left, -credit)
        else:
            self.length = max(self.length - left, -credit)
        self._updated_at = now

    def add(self, images: int) -> None:
        """Let images arrive. The length is capped, so that it is soon short again after an overload."""
        self.length = min(self.length + images, self._max_length)

    def remove(self, images: int) -> None:
        """Take images back that caused no work; this gives no credit."""
        self.length = min(self.length, max(self.length - images, 0.0))

    def tick(self, now: float) -> None:
        """Record that the event loop runs, after `advance`."""
        self._ticked_at = now

    def _pause_credit(self, now: float, rate: float) -> float:
        """Return how many images may have been sent while no tick came."""
        paused_s = now - max(self._ticked_at + TICK_S, self._updated_at)
        return min(rate * max(paused_s, 0.0), self._max_credit)


class Admission:
    """Counts the images in the service, and admits a request or refuses it. Not thread-safe.

    The limit follows from the virtual queue:

    - longer than `queue_size` (overload): OVERLOAD_SHARE of `queue_size`. A longer queue would serve no more requests,
      only later. Into an empty service `queue_size` images are admitted all the same;
    - at most half of `queue_size` (usual load): SLOW_FACTOR times `queue_size`. If the real queue is long nevertheless,
      the machine is slow for a moment or was paused, and nothing is gained by refusing;
    - between them (a burst): `queue_size`.
    """

    def __init__(
        self, queue_size: int, stages: Sequence[Throughput], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue_size, self._stages, self._clock = queue_size, stages, clock
        self._overload_limit, self._slow_limit = math.ceil(OVERLOAD_SHARE * queue_size), SLOW_FACTOR * queue_size
        self._virtual = VirtualQueue(2.0 * queue_size, self._slow_limit, clock())
        self.held = 0  # images

    def has_room(self, images: int = 1) -> bool:
        """Return whether so many would be admitted now."""
        return self.held + images <= self._limit()

    def check(self) -> None:
        """Raise QueueFullError where not one image would be admitted; an admitted request calls `acquire` later."""
        self._advance()
        if not self.has_room():
            self._virtual.add(1)
            raise QueueFullError

    def acquire(self, images: int) -> None:
        """Admit so many images, all or none. Raises QueueFullError."""
        self._advance()
        self._virtual.add(images)
        if not self.has_room(images):
            raise QueueFullError
        self.held += images

    def release(self, images: int, without_work: int = 0) -> None:
        """Count images as done. `without_work` of them caused none: damaged ones, or the client had left."""
        self.held -= images
        self._virtual.remove(without_work)

    def tick(self) -> None:
        """Record that the event loop runs; called each TICK_S."""
        self._virtual.tick(self._advance())

    def _limit(self) -> int:
        if self._virtual.length > self._queue_size and self.held:
            return self._overload_limit
        if self._virtual.length <= self._queue_size / 2:
            return self._slow_limit
        return self._queue_size

    def _advance(self) -> float:
        """Bring the virtual queue up to date with the slowest stage's throughput, and return the time."""
        now = self._clock()
        self._virtual.advance(now, min(stage.images_per_second() for stage in self._stages))
        return now
