"""The problems of a list, of which the first are kept and all are counted: a list may have ten million."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from data_loader.samples import ListError

KEPT = 200  # more than a message shows

Problem = tuple[int, str]  # line number (0: the whole file), sentence


class Problems:
    """Problems by line; of each line in the order in which they were found."""

    def __init__(self) -> None:
        self.count = 0
        self._heap: list[tuple[int, int, str]] = []  # the last line first: -line, -number, sentence

    def add(self, line: int, text: str | Callable[[], str]) -> None:
        """Count a problem, and keep it if it is among the first; a function makes its sentence only then."""
        self.count += 1
        if len(self._heap) >= KEPT and line >= -self._heap[0][0]:
            return
        entry = (-line, -self.count, text if isinstance(text, str) else text())
        if len(self._heap) < KEPT:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def extend(self, problems: Iterable[Problem]) -> None:
        """Add problems one by one, without holding them all."""
        for line, text in problems:
            self.add(line, text)

    def raise_any(self, origin: str) -> None:
        """Raise ListError with the first problems of a file and the number of the others, if there are any."""
        if not self.count:
            return
        found = [(-line, text) for line, _, text in sorted(self._heap, reverse=True)]
        sentences = [f"{origin}:{line}: {text}" if line else f"{origin}: {text}" for line, text in found]
        raise ListError(sentences, more=self.count - len(sentences))
