"""How many images the service lets in: few while more come than it can answer, many while it is slow for a moment."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

SHORT = 0.5  # of the queue is open while more comes than can be answered
LONG = 4  # times the queue, while less comes than usually is
MEMORY_S = 60.0  # of a stage's work
TICK_S = 0.1  # between two signs of life


class QueueFullError(Exception):
    """As many images are held as may be now; none of this request has been taken."""


class Pace:
    """How fast a stage of `threads` threads usually is: over its last minute of work, the older the less it counts."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._images, self._seconds = 0.0, 0.0
        self._lock = threading.Lock()

    def note(self, images: int, seconds: float) -> None:
        """Add what one thread has done. Any thread may call it."""
        kept = math.exp(-seconds / (self._threads * MEMORY_S))
        with self._lock:
            self._images = self._images * kept + images
            self._seconds = self._seconds * kept + seconds

    def images_per_second(self) -> float:
        """Give what all threads together do while they are at work; 0 where nothing is known yet."""
        with self._lock:
            return self._threads * self._images / self._seconds if self._seconds else 0.0


class Admission:
    """Counts the images that are held, and lets in or refuses.

    A full queue makes everybody wait for all of it. Where more comes than can be answered, it would stay full, and a
    short one answers as many: SHORT of `queue_size`. Where the machine is slow for a moment, no more comes than is
    answered otherwise, and all of it should be, late as it may be: LONG times `queue_size`. Which of both it is, a
    queue tells that is only reckoned: what is asked for, refused or not, comes in, and leaves at the slowest stage's
    usual pace (an adaptive virtual queue: Kunniyur & Srikant 2001): too much where it passes `queue_size`, no more than
    usual below half of that, and between them what may be a burst, which `queue_size` is for. Whoever finds nobody may
    bring so many. What comes at once after a pause of the process itself, which `tick` tells, has come in the pause.

    Not made for several threads.
    """

    def __init__(self, queue_size: int, stages: Sequence[Pace], clock: Callable[[], float] = time.monotonic) -> None:
        self._queue_size, self._stages, self._clock = queue_size, stages, clock
        self._short, self._long = math.ceil(SHORT * queue_size), LONG * queue_size
        self._reckoned, self._reckoned_at = 0.0, clock()  # below 0: so many may still come of a pause
        self._ticked_at = math.inf  # never
        self.held = 0  # images

    def has_room(self, images: int = 1) -> bool:
        """Say whether so many would be let in now."""
        most = self._queue_size
        if self._reckoned > self._queue_size and self.held:
            most = self._short
        elif self._reckoned <= self._queue_size / 2:
            most = self._long
        return self.held + images <= most

    def check(self) -> None:
        """Raise QueueFullError where not one image would be let in; of a request that is, `let_in` hears later."""
        self._reckon(0)
        if not self.has_room():
            self._reckon(1)
            raise QueueFullError

    def let_in(self, images: int) -> None:
        """Hold so many more, all or none. Raises QueueFullError."""
        self._reckon(images)
        if not self.has_room(images):
            raise QueueFullError
        self.held += images

    def let_out(self, images: int, without_work: int = 0) -> None:
        """Hold so many less, of which some were no images or wanted by nobody: they are not reckoned."""
        self.held -= images
        self._reckoned = min(self._reckoned, max(self._reckoned - without_work, 0.0))

    def tick(self) -> None:
        """Give a sign of life, each TICK_S: where it is late, the process was not at work."""
        self._reckon(0)
        self._ticked_at = self._reckoned_at

    def _reckon(self, images: int) -> None:
        now = self._clock()
        usual = min(stage.images_per_second() for stage in self._stages)
        done = usual * (now - self._reckoned_at)
        paused_s = max(now - max(self._ticked_at + TICK_S, self._reckoned_at), 0.0)
        missed = -min(usual * paused_s, self._long)  # so many may have come in a pause, and no more are held
        left = min(self._reckoned + done, missed) if self._reckoned < 0 else max(self._reckoned - done, missed)
        self._reckoned = min(left + images, 2.0 * self._queue_size)  # no more: it should soon be over
        self._reckoned_at = now
