"""The .csv, .json and .jsonl files that collect predictions as they come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from common.atomic_io import ResultsError, atomic_path, check_folder, writing
from common.formatting import csv_cell
from deploy.inference.prediction import Prediction, csv_text

RESULT_SUFFIXES = (".csv", ".json", ".jsonl")
RAW_CSV_HELP = "leave texts that a spreadsheet would compute (= + - @ first) as they are, without an apostrophe"
RESULTS_HELP = f"a file {', '.join(RESULT_SUFFIXES[:-1])} or {RESULT_SUFFIXES[-1]}"


class RowFormat:
    """How a results file is built up: `head`, the rows, each with what stands before it, then `tail`."""

    def __init__(self, suffix: str, columns: Sequence[str], *, escape_formulas: bool = True) -> None:
        self._suffix = suffix.lower()
        self._columns = columns
        self._escape_formulas = escape_formulas
        self.head = "[" if self._suffix == ".json" else ""
        self.tail = "\n]\n" if self._suffix == ".json" else ""
        if self._suffix == ".csv":
            self.head = "\ufeff" + self._csv_line(["file", *columns, "error"])

    def row(self, prediction: Prediction) -> str:
        """Return the row of a prediction."""
        if self._suffix == ".csv":
            return self._csv_line([prediction.file, *self._csv_values(prediction), prediction.error])
        text = json.dumps(prediction.to_dict(), ensure_ascii=False)
        return text if self._suffix == ".json" else text + "\n"

    def before(self, count: int) -> str:
        """Return what stands before a row that follows `count` others."""
        return "" if self._suffix != ".json" else ",\n" if count else "\n"

    def _csv_values(self, prediction: Prediction) -> list[str | int]:
        if prediction.error:
            return [""] * len(self._columns)
        note = [prediction.note] if prediction.note else []
        return [*prediction.csv_row(), *(csv_text(value) for _, value in prediction.measures), *note]

    def _csv_line(self, row: list[Any]) -> str:
        line = io.StringIO()
        csv.writer(line).writerow([csv_cell(cell) for cell in row] if self._escape_formulas else row)
        return line.getvalue()


class ResultsFile:
    """An open results file; `write` takes the predictions in turn. Made by `open_results`.

    The file is unbuffered, and complete after each row: a full disk takes none of those before.
    """

    def __init__(self, file: BinaryIO, path: Path, rows: RowFormat) -> None:
        self._file = file
        self._path = path
        self._rows = rows
        self._tail = rows.tail.encode()  # what ends the file, after the last row
        self._end = 0  # bytes until there
        self._count = -1  # the next to be written is the head
        self._write(rows.head)

    def write(self, prediction: Prediction) -> None:
        """Add one prediction. Raises ResultsError; the whole rows before it then stay."""
        self.write_row(self._rows.row(prediction))

    def write_row(self, row: str) -> None:
        """Add a row that `RowFormat.row` made. Raises ResultsError as `write` does."""
        try:
            self._write(self._rows.before(self._count) + row)
        except ResultsError as error:
            rows = f"the {self._count} rows before it are kept" if self._count else "no row is written"
            raise ResultsError(f"{error}; {rows}") from error

    def finish(self) -> None:
        """Close the file, which is complete after each row. Raises ResultsError."""
        with writing(self._path):
            self._file.close()

    def _write(self, text: str) -> None:
        """Write a whole row with what ends the file, or leave the file as it was. Raises ResultsError."""
        row = text.encode("utf-8", "backslashreplace")
        with writing(self._path):
            try:
                self._put(row + self._tail)
            except OSError:
                with suppress(OSError):
                    self._file.truncate(self._end + len(self._tail))  # where the tail was, so that it fits again
                    self._put(self._tail)
                raise
        self._end += len(row)
        self._count += 1

    def _put(self, data: bytes) -> None:
        self._file.seek(self._end)
        while data:
            data = data[self._file.write(data) :]


@contextmanager
def open_results(path: str | Path, columns: Sequence[str], *, escape_formulas: bool = True) -> Iterator[ResultsFile]:
    """Collect predictions beside `path` and give them that name when all are there; a failure leaves the old file.

    .csv: UTF-8 with BOM, which Excel needs for Chinese; columns file, `columns` (`Predictor.csv_columns`), error; with
    `escape_formulas` no cell is one that a spreadsheet computes.
    .json: an array. .jsonl: an object per line. Bytes in a file name that are not UTF-8 are written as escapes.
    Raises ResultsError.
    """
    path = Path(path)
    check_results_path(path)
    with ExitStack() as opened:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = opened.enter_context(atomic_path(path))
            file = temporary.open("w+b", buffering=0)
        opened.callback(_close_quietly, file)
        results = ResultsFile(file, path, RowFormat(path.suffix, columns, escape_formulas=escape_formulas))
        yield results
        results.finish()
        with writing(path):
            opened.close()  # gives the file its name


def check_results_path(path: Path) -> None:
    """Raise ResultsError unless a results file may be written there, as far as can be known before."""
    if path.suffix.lower() not in RESULT_SUFFIXES:
        raise ResultsError(f'{path}: results are written as {", ".join(RESULT_SUFFIXES)}, got "{path.suffix}"')
    if path.is_dir():
        raise ResultsError(f"{path}: it is a folder; name a file for the results")
    check_folder(path.parent)


def _close_quietly(file: BinaryIO) -> None:
    """Close a file whose error, if it has one, has been raised before."""
    with suppress(OSError):
        file.close()
