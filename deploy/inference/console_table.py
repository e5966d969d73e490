"""An answer as a line of text, in columns that a terminal of 80 characters holds."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.inference.result_writer import Answer

MAX_FILE_COLUMNS, MIN_FILE_COLUMNS, MAX_CLASS_COLUMNS = 60, 16, 28
SCORE_COLUMNS, GAP = 6, "  "
DOTS = "..."


@dataclass(frozen=True)
class LineLayout:
    """How wide the columns `file  class  score` are; `elides` shortens what is longer, in the middle."""

    file_columns: int
    class_columns: int
    elides: bool

    @classmethod
    def of(cls, class_names: Sequence[str], columns: int | None) -> LineLayout:
        """Fit the columns to a terminal; without one (None: a pipe or a file) nothing is shortened."""
        longest = max(map(text_columns, class_names), default=0)
        class_columns = min(longest, MAX_CLASS_COLUMNS)
        if columns is None:
            return cls(40, class_columns, elides=False)
        left = columns - 1 - class_columns - SCORE_COLUMNS - 2 * len(GAP)  # some terminals wrap a full line
        return cls(min(MAX_FILE_COLUMNS, max(MIN_FILE_COLUMNS, left)), class_columns, elides=True)

    def line(self, answer: Answer, file: str | None = None) -> str:
        """Write an answer, or its error, as one line; `file` stands for the answer's own path."""
        name = self._column(printable(answer.file if file is None else file), self.file_columns)
        if answer.error:
            return f"{name}{GAP}error: {printable(answer.error)}"
        return f"{name}{GAP}{self._column(printable(answer.class_name), self.class_columns)}{GAP}{answer.score:.4f}"

    def _column(self, text: str, columns: int) -> str:
        text = elide(text, columns) if self.elides else text
        return text + " " * (columns - text_columns(text))


def text_columns(text: str) -> int:
    """Count the terminal columns of a text: two for a wide (Chinese) character, none for a combining mark."""
    return sum(_columns(character) for character in text)


def elide(text: str, columns: int) -> str:
    """Cut the middle out of a text that is wider than `columns`; the end, where a file's name stands, keeps more."""
    if text_columns(text) <= columns:
        return text
    room = columns - len(DOTS)
    front = _fitting(text, room // 3)
    back = _fitting(text[::-1], room - text_columns(front))[::-1]
    return front + DOTS + back


def printable(text: str) -> str:
    """Escape what would break a line or move the cursor: control characters, and bytes that are not UTF-8."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _fitting(text: str, columns: int) -> str:
    """Give the longest beginning of a text that fits."""
    for length, character in enumerate(text):
        columns -= _columns(character)
        if columns < 0:
            return text[:length]
    return text


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
