"""A signal that asks to stop, as all processes of a training agree on it."""

from __future__ import annotations

import torch

from common.signals import StopRequest
from trainers.errors import StoppedBySignalError
from trainers.runtime.distributed import World


class SharedStopRequest(StopRequest):
    """A StopRequest that every process has as soon as one of them received a signal."""

    def __init__(self, world: World) -> None:
        super().__init__("stopping: saving first" if world.is_main else "")
        self.world = world

    def is_set(self) -> bool:
        """Return whether any process received a signal.

        All of several ask at the same place, over gloo, and no GPU waits for it.
        """
        if self.world.size == 1:
            return self.received is not None
        flag = torch.tensor(int(self.received or 0))
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        if flag.item():
            self.receive(int(flag.item()))
        return bool(flag.item())

    def check(self) -> None:
        """Raise StoppedBySignalError where any process received a signal, on all of them at the same call."""
        if self.is_set():
            raise StoppedBySignalError
