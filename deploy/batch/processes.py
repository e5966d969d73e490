"""All shards of a folder by child processes, which are started again when something has killed them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common.errors import UserError
from common.paths import ROOT
from deploy.inference.shard_file import is_in_use
from deploy.inference.shards import Shard

PROGRAM = ROOT / "inference.py"
MOST_DEATHS = 3  # of a shard's process in turn, none of which has predicted anything
POLL_S, GRACE_S = 0.1, 30.0
SIGNALLED = 128  # the exit code of a program that ended itself on a signal is more


class BatchError(UserError):
    """A job that cannot go on; the message is one sentence for the user."""


@dataclass
class Child:
    """A process at a shard, what it prints, and how large the shard's file was as it began."""

    process: subprocess.Popen[bytes]
    shard: Shard
    printed: IO[bytes]
    size_before: int


def run_processes(
    flags: Sequence[str], output: Path, shards: Sequence[Shard], at_once: int, log: Callable[[str], None]
) -> None:
    """Run inference.py with these flags for each shard, `at_once` at a time, until all are done.

    A process that a signal ended goes on with its shard in another one. Raises BatchError where one ends with a
    mistake, or dies again and again without a new prediction; the others are stopped, and keep what they have.
    """
    waiting, deaths = deque(shards), dict.fromkeys(shards, 0)
    running: list[Child] = []
    with ExitStack() as stopping:
        stopping.callback(_stop, running)
        while waiting or running:
            if len(running) < at_once and (free := _first_free(waiting, output)):
                waiting.remove(free)
                running.append(_start(flags, output, free))
            time.sleep(POLL_S)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                said = _printed(child)
                for line in said:
                    log(f"shard {child.shard}: {line}")
                if _is_done(child):
                    continue
                has_grown = _size(output, child.shard) > child.size_before
                deaths[child.shard] = 1 if has_grown else deaths[child.shard] + 1
                if deaths[child.shard] == MOST_DEATHS:
                    raise BatchError(f"shard {child.shard}: {died(MOST_DEATHS, said[-1] if said else '')}")
                log(f"shard {child.shard}: its process was ended ({child.process.returncode}); another goes on")
                waiting.append(child.shard)


def _first_free(waiting: Iterable[Shard], output: Path) -> Shard | None:
    """Return a shard at which no process is; one that an earlier job has left may still be at another."""
    return next((shard for shard in waiting if not is_in_use(shard.path(output))), None)


def _start(flags: Sequence[str], output: Path, shard: Shard) -> Child:
    printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_printed` or `_stop`
    command = [sys.executable, str(PROGRAM), *flags, "--output", str(output), "--quiet", "--shard", str(shard)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT)
    return Child(process, shard, printed, _size(output, shard))


def died(count: int, said: str) -> str:
    """Return why a shard is given up; `said` is the last line of the last one that died."""
    return f"{count} in turn died before a prediction; the last one said: {said or 'nothing'}"


def _printed(child: Child) -> list[str]:
    """Return the lines that an ended process has printed."""
    with child.printed as printed:
        printed.seek(0)
        return printed.read().decode("utf-8", "replace").splitlines()


def _is_done(child: Child) -> bool:
    """Return whether an ended process's shard is done. Raises BatchError for a mistake."""
    code = child.process.returncode
    if 1 < code <= SIGNALLED:
        raise BatchError(f"shard {child.shard} ended with exit code {code}; what is predicted is kept")
    return code in (0, 1)


def _size(output: Path, shard: Shard) -> int:
    path = shard.path(output)
    return path.stat().st_size if path.exists() else 0


def _stop(running: Sequence[Child]) -> None:
    """End the processes that still run; each finishes the image that it has begun."""
    for child in running:
        child.process.terminate()
    for child in running:
        with child.printed:
            try:
                child.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
