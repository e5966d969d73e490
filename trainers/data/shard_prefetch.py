"""The shards of a streamed pack, fetched before a training needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress

from common.paths import ROOT
from data_loader.decoder_process import FEW_THREADS
from data_loader.shard_order import ShardOrder
from data_loader.streamed_packs import stream_in

FEEDER = "data_loader.shard_feeder"


class ShardPrefetch:
    """Has the shards of the window that is being read, and of the next one, fetched by a process beside the training.

    Of packs on the disk there is nothing to fetch.
    """

    def __init__(self, order: ShardOrder) -> None:
        self.order = order
        self._folder = order.shards[0].rpartition("/")[0]
        self._is_streamed = stream_in(self._folder) is not None
        self._needed: tuple[str, ...] = ()
        self._feeder: subprocess.Popen[str] | None = None

    def reached(self, epoch: int, place: int) -> None:
        """Have what is needed from a place of an epoch's order on fetched."""
        if not self._is_streamed or (needed := self.order.needed(epoch, place)) == self._needed:
            return
        self._needed = needed
        self._feeder = self._feeder or self._start()
        assert self._feeder.stdin is not None
        with suppress(BrokenPipeError):  # without it shards are fetched as they are read
            self._feeder.stdin.write(json.dumps([path.rpartition("/")[2] for path in needed]) + "\n")
            self._feeder.stdin.flush()

    def close(self) -> None:
        """End the process."""
        if self._feeder is not None:
            self._feeder.communicate()

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-m", FEEDER, self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **FEW_THREADS, "PYTHONPATH": path},
            text=True,
        )
