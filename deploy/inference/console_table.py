"""A prediction as a line of text, in columns that a terminal of 80 characters holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.console import elide, printable, text_columns
from deploy.inference.prediction import Prediction

MAX_FILE_COLUMNS, MIN_FILE_COLUMNS = 60, 16
GAP = "  "


@dataclass(frozen=True)
class LineLayout:
    """Widths of the columns: the file's, and those of `texts`; `elides` cuts the middle out of longer texts."""

    file_width: int
    widths: Sequence[int]
    elides: bool

    @classmethod
    def of(cls, widths: Sequence[int], columns: int | None) -> LineLayout:
        """Fit columns of `widths` and the file's to a terminal; without one (None) nothing is shortened."""
        if columns is None:
            return cls(40, widths, elides=False)
        left = columns - 1 - sum(widths) - len(widths) * len(GAP)  # some terminals wrap a full line
        return cls(min(MAX_FILE_COLUMNS, max(MIN_FILE_COLUMNS, left)), widths, elides=True)

    def line(self, prediction: Prediction) -> str:
        """Write a prediction, or its error, as one line."""
        name = self._column(prediction.file, self.file_width)
        if prediction.error:
            return f"{name}{GAP}error: {printable(prediction.error)}"
        texts = map(self._column, prediction.texts(), self.widths)
        return GAP.join([name, *texts]).rstrip()

    def _column(self, text: str, columns: int) -> str:
        text = elide(printable(text), columns) if self.elides else printable(text)
        return text + " " * (columns - text_columns(text))
