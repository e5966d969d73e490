"""An answer as a line of text, in columns that a terminal of 80 characters holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.console import elide, printable, text_columns
from deploy.inference.prediction import Prediction

MAX_FILE_COLUMNS, MIN_FILE_COLUMNS, MAX_CLASS_COLUMNS = 60, 16, 28
SCORE_COLUMNS, GAP = 6, "  "


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

    def line(self, prediction: Prediction, file: str | None = None) -> str:
        """Write an answer, or its error, as one line; `file` stands for the answer's own path."""
        name = self._column(printable(prediction.file if file is None else file), self.file_columns)
        if prediction.error:
            return f"{name}{GAP}error: {printable(prediction.error)}"
        class_name = self._column(printable(prediction.class_name), self.class_columns)
        return f"{name}{GAP}{class_name}{GAP}{prediction.score:.4f}"

    def _column(self, text: str, columns: int) -> str:
        text = elide(text, columns) if self.elides else text
        return text + " " * (columns - text_columns(text))
