"""The .csv, .json and .jsonl files that collect predictions as they come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from common.atomic_io import ResultsError, atomic_path, check_folder, writing
from deploy.inference.prediction import Prediction, csv_text

RESULT_SUFFIXES = (".csv", ".json", ".jsonl")
RESULTS_HELP = f"a file {', '.join(RESULT_SUFFIXES[:-1])} or {RESULT_SUFFIXES[-1]}"


class ResultsFile:
    """An open results file; `write` takes the predictions in turn. Made by `open_results`."""

    def __init__(self, file: TextIO, path: Path, columns: Sequence[str]) -> None:
        self._file = file
        self._path = path
        self._suffix = path.suffix.lower()
        self._columns = columns
        self._count = 0
        if self._suffix == ".csv":
            self._write("\ufeff" + _csv_line(["file", *columns, "error"]))
        elif self._suffix == ".json":
            self._write("[")

    def write(self, prediction: Prediction) -> None:
        """Add one prediction. Raises ResultsError."""
        if self._suffix == ".csv":
            self._write(_csv_line([prediction.file, *self._csv_values(prediction), prediction.error]))
        elif self._suffix == ".jsonl":
            self._write(json.dumps(prediction.to_dict(), ensure_ascii=False) + "\n")
        else:
            self._write((",\n" if self._count else "\n") + json.dumps(prediction.to_dict(), ensure_ascii=False))
        self._count += 1

    def finish(self) -> None:
        """Write what ends the file, and close it. Raises ResultsError."""
        if self._suffix == ".json":
            self._write("\n]\n")
        with writing(self._path):
            self._file.close()

    def _csv_values(self, prediction: Prediction) -> list[str | int]:
        if prediction.error:
            return [""] * len(self._columns)
        return [*prediction.csv_row(), *(csv_text(value) for _, value in prediction.measures)]

    def _write(self, text: str) -> None:
        with writing(self._path):
            self._file.write(text)


@contextmanager
def open_results(path: str | Path, columns: Sequence[str]) -> Iterator[ResultsFile]:
    """Collect predictions beside `path` and give them that name when all are there; a failure leaves the old file.

    .csv: UTF-8 with BOM, which Excel needs for Chinese; columns file, `columns` (`Predictor.csv_columns`), error.
    .json: an array. .jsonl: an object per line. Bytes in a file name that are not UTF-8 are written as escapes.
    Raises ResultsError.
    """
    path = Path(path)
    check_results_path(path)
    with ExitStack() as opened:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = opened.enter_context(atomic_path(path))
            file = temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        opened.callback(_close_quietly, file)
        results = ResultsFile(file, path, columns)
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


def _close_quietly(file: TextIO) -> None:
    """Close a file whose error, if it has one, has been raised before."""
    with suppress(OSError):
        file.close()


def _csv_line(row: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(row)
    return line.getvalue()
