"""The sides of a measurement: each does a round on request, in this process or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from common.errors import BenchmarkError
from common.paths import ROOT
from tools.benchmark.protocol import GO, Round

PATIENCE_S = 30.0  # for a side to end after the last round


class Side(Protocol):
    """One of the compared programs; `versions` are those of its packages."""

    name: str
    versions: dict[str, str]

    def play(self) -> Round:
        """Do one round and return its figures. Raises BenchmarkError."""

    def close(self) -> None:
        """End it."""


class CallSide:
    """A side in this process."""

    def __init__(self, name: str, play: Callable[[], Round]) -> None:
        self.name, self._play = name, play
        self.versions: dict[str, str] = {}

    def play(self) -> Round:
        """Do one round."""
        return self._play()

    def close(self) -> None:
        """Do nothing: the garbage collector frees it."""


class ProcessSide:
    """A side in a process of its own, which stays warm between its rounds and is idle in those of others.

    It runs `python -m module arguments` in the project's folder. Raises BenchmarkError.
    """

    def __init__(self, name: str, module: str, arguments: Sequence[object], python: str = sys.executable) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed by `close`)
        self._process = subprocess.Popen(
            [python, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
        )
        try:
            self.versions: dict[str, str] = json.loads(self._line())
        except BaseException:
            self.close()
            raise

    def play(self) -> Round:
        """Let the process do one round and return its figures."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{GO}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        figures: Round = json.loads(self._line())
        return figures

    def close(self) -> None:
        """End the process after its last round, and wait for it."""
        if not self._log.closed:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._log.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return line

    def _ended(self) -> BenchmarkError:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return BenchmarkError(f"{self.name}: it ended early: {lines[-1] if lines else 'without a message'}")


@contextmanager
def started(starters: Sequence[Callable[[], Side]]) -> Iterator[list[Side]]:
    """Start sides one after the other, yield them, and end them. Raises BenchmarkError."""
    with ExitStack() as stack:
        sides = []
        for start in starters:
            side = start()
            stack.callback(side.close)
            sides.append(side)
        yield sides
