"""How many pictures the service lets in: a burst may fill the queue, and what lasts is given less of it."""

from __future__ import annotations

import math

LASTING = 0.75  # of the queue is open always


class QueueFullError(Exception):
    """As many pictures are held as the queue allows now; none of this request has been taken."""


class Admission:
    """Counts the pictures that are held, `queue_size` of them at most.

    Requests that come all at once, where the machine has paused for a moment, say, should be answered, late as some
    are. But more than can be answered would keep the queue full, and make everybody wait for all of it. So once a
    queue's worth of pictures has been let into its last quarter, that quarter is closed until the queue has fallen to
    half: the idea of CoDel (RFC 8289), which tells a burst from a standing queue by how long it lasts, with pictures
    for a clock, so that it fits slow nets and fast ones. Not made for several threads.
    """

    def __init__(self, queue_size: int) -> None:
        self._queue_size = queue_size
        self._lasting = math.ceil(LASTING * queue_size)
        self._in_burst = 0  # let in beyond what is open always, since the queue was half empty
        self.held = 0  # pictures

    def has_room(self, pictures: int = 1) -> bool:
        """Say whether so many would be let in now."""
        most = self._queue_size if self._in_burst < self._queue_size else self._lasting
        return self.held + pictures <= most

    def let_in(self, pictures: int) -> None:
        """Hold so many more, all or none. Raises QueueFullError."""
        if not self.has_room(pictures):
            raise QueueFullError
        self.held += pictures
        self._in_burst += min(pictures, max(self.held - self._lasting, 0))

    def let_out(self, pictures: int) -> None:
        """Hold so many less."""
        self.held -= pictures
        if self.held <= self._queue_size / 2:
            self._in_burst = 0
