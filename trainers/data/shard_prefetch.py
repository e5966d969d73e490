"""The shards of a streamed pack, fetched before a training needs them."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from data_loader.shard_order import ShardOrder
from data_loader.streamed_packs import stream_in

THREADS = 8  # shards fetched at once


class ShardPrefetch:
    """Fetches the shards of the window that is being read, and of the next one; of packs on the disk there is nothing
    to fetch.

    What cannot be fetched is not reported: it is tried again when an image of it is read, which is then in vain, too.
    """

    def __init__(self, order: ShardOrder) -> None:
        self.order = order
        self.stream = stream_in(order.shards[0].rpartition("/")[0])
        self._needed: tuple[str, ...] = ()
        self._works: list[Future[None]] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS)  # without a thread until there is work

    def reached(self, epoch: int, place: int) -> None:
        """Fetch what is needed from a place of an epoch's order on."""
        if self.stream is None or (needed := self.order.needed(epoch, place)) == self._needed:
            return
        self._needed = needed
        for work in self._works:
            work.cancel()
        files = [path.rpartition("/")[2] for path in needed]
        self.stream.touch(files)
        self._works = [self._pool.submit(self.stream.fetch_ahead, file, self._stop) for file in files]

    def close(self) -> None:
        """End the threads, with the blocks that they read."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
