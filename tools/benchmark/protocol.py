"""A side's end of the benchmark's protocol: it waits for a line "go", does a round, and writes a line of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

RATE = "rate"  # the figure that sides are compared by; higher is better
MINUTES = "minutes"  # a column: of a whole training
GO = "go"
Round = dict[str, float]  # RATE, and further columns


class Turns:
    """A process's rounds. Whatever it or its libraries print to stdout goes to stderr."""

    def __init__(self) -> None:
        self._output = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def ready(self, *packages: str) -> None:
        """Write the versions of the packages that are measured, which means that this side is ready."""
        from importlib.metadata import version

        self._write({package: version(package) for package in packages})

    def wait(self) -> bool:
        """Wait for the next round; return False after the last one."""
        return sys.stdin.readline().strip() == GO

    def report(self, figures: Round) -> None:
        """Write a round's figures."""
        self._write(figures)

    def play(self, play: Callable[[], Round], *packages: str) -> None:
        """Do rounds until the last one."""
        self.ready(*packages)
        while self.wait():
            self.report(play())

    def _write(self, values: object) -> None:
        self._output.write(f"{json.dumps(values)}\n")
        self._output.flush()
