"""A side's end of the benchmark's protocol: it waits for a line "go", does a round, and answers with a line of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

RATE = "rate"  # the figure that sides are compared by: the higher, the better
GO = "go"
Round = dict[str, float]  # RATE, and what else is worth a column


class Turns:
    """A process's rounds. What it, or its libraries, print to stdout meanwhile goes to stderr."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def ready(self, *packages: str) -> None:
        """Say that it is ready, and the versions of what it measures."""
        from importlib.metadata import version

        self._tell({package: version(package) for package in packages})

    def wait(self) -> bool:
        """Wait for the next round; False: there is none."""
        return sys.stdin.readline().strip() == GO

    def tell(self, figures: Round) -> None:
        """Answer with a round's figures."""
        self._tell(figures)

    def play(self, play: Callable[[], Round], *packages: str) -> None:
        """Be ready, and do rounds until there is none."""
        self.ready(*packages)
        while self.wait():
            self.tell(play())

    def _tell(self, values: object) -> None:
        self._answers.write(f"{json.dumps(values)}\n")
        self._answers.flush()
