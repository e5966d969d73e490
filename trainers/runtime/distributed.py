"""Several processes as one: their ranks, how they start and end, and sums over them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from common.errors import ProgramError, UserError
from common.formatting import first_line
from common.signals import STOPPING
from trainers.errors import PeerLostError

GRACE_S = 30.0  # how long the others may take to leave once one process has failed


class WorldError(UserError):
    """Variables of a training on several processes that contradict each other."""


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, `local_rank` of `local_size` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, which logs and saves for all."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agree_on_buffers(self, net: torch.nn.Module) -> None:
        """Copy rank 0's buffers (batch norm's statistics) to every process."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, values: list[Any]) -> list[Any]:
        """Return the lists of all processes, one after the other."""
        return values if self.size == 1 else gather_over_processes(values)

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over the processes of the group, in place; without a group it stays."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over the processes of the group; without a group the tensor itself."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    return sum_over_processes(values.clone()) / dist.get_world_size()


def gather_over_processes(values: list[Any]) -> list[Any]:
    """Return the lists of all processes of the group, one after the other; without a group the list itself."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    lists: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, values)
    return [value for part in lists for value in part]


@contextlib.contextmanager
def lost_peers_reported() -> Iterator[None]:
    """Turn what torch raises where another process has ended into a PeerLostError."""
    try:
        yield
    except ProgramError:  # has its message
        raise
    except RuntimeError as error:
        text = first_line(error)
        if isinstance(error, dist.DistError) or "by peer" in text or "Broken pipe" in text:
            raise PeerLostError("another process of this training has left") from error
        raise


def world_from_environment() -> World:
    """Read the variables that torchrun, and our own `launch`, set for a process. Raises WorldError."""
    env = os.environ
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return World()
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    texts = {name: env.get(name, default) for name, default in names.items()}
    if not all(text.isdecimal() for text in texts.values()) or int(texts["RANK"]) >= int(texts["WORLD_SIZE"]):
        given = ", ".join(f"{name}={text}" for name, text in texts.items())
        raise WorldError(f"the environment describes no process of a training: {given}; start it with torchrun")
    return World(*(int(text) for text in texts.values()))


@contextlib.contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Join the process group for as long as the context lasts: NCCL between GPUs, gloo between CPUs.

    Inside another such context the group that there is serves.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    yield
    dist.destroy_process_group()  # not after an error: work that others never join would block it


def launch(command: Sequence[str], num_processes: int) -> int:
    """Run `num_processes` copies of a Python command as ranks on this machine; return the first failure's exit code.

    SIGTERM, SIGUSR1 and Ctrl-C are passed on, and the ranks save and leave. When one fails, the others are ended too.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
    shared["LOCAL_WORLD_SIZE"] = str(num_processes)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC_")}
    processes = []
    for rank in range(num_processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        # A session of its own: Ctrl-C of the terminal reaches this process alone, which passes it on once.
        processes.append(
            subprocess.Popen([sys.executable, *command], env={**inherited, **shared, **ranks}, start_new_session=True)
        )

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    hangup = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
    before = {number: signal.signal(number, pass_on) for number in (*STOPPING, *hangup)}
    try:
        return _wait(processes)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    failed_at, code = 0.0, 0
    while any(process.poll() is None for process in processes):
        for process in processes:
            if process.poll() and not code:
                code, failed_at = int(process.poll() or 0), time.monotonic()
                if code < 0:
                    name = signal.Signals(-code).name
                    print(f"train.py: process {processes.index(process)} was ended by {name}", file=sys.stderr)
        if code and time.monotonic() - failed_at > GRACE_S:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in processes if process.returncode]
    code = code or (codes[0] if codes else 0)
    return code if code >= 0 else 128 - code  # as shells count a signal
