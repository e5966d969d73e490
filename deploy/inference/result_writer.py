"""Answers: what is said of one image, and the .csv, .json and .jsonl files that collect them as they come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from common.atomic_io import ResultsError, check_folder, move_into_place, temporary_path, writing
from deploy.inference.prediction import Prediction

RESULT_SUFFIXES = (".csv", ".json", ".jsonl")


class ResultsFile:
    """An open results file; `write` takes the answers in turn. Made by `open_results`."""

    def __init__(self, file: TextIO, path: Path, topk: int, details: Sequence[str] = ()) -> None:
        self._file = file
        self._path = path
        self._suffix = path.suffix.lower()
        self._topk = topk
        self._details = details
        self._count = 0
        if self._suffix == ".csv":
            ranks = [f"{column}_{rank}" for rank in range(2, topk + 1) for column in ("class", "score")]
            self._write("\ufeff" + _csv_line(["file", "label", "class", "score", *ranks, *details, "error"]))
        elif self._suffix == ".json":
            self._write("[")

    def write(self, prediction: Prediction) -> None:
        """Add one answer. Raises ResultsError."""
        if self._suffix == ".csv":
            self._write(_csv_line(_csv_row(prediction, self._topk, self._details)))
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

    def _write(self, text: str) -> None:
        with writing(self._path):
            self._file.write(text)


@contextmanager
def open_results(path: str | Path, topk: int, details: Sequence[str] = ()) -> Iterator[ResultsFile]:
    """Collect answers beside `path` and give them that name when all are there; a failure leaves the old file.

    .csv: UTF-8 with BOM, which Excel needs for Chinese; columns file, label, class, score, then class_2, score_2 and so
    on to `topk`, then the `details`, which are keys of `to_dict`, then error. .json: an array. .jsonl: an object a
    line. Bytes in a file name that are not UTF-8 are written as escapes. Raises ResultsError.
    """
    path = Path(path)
    check_results_path(path)
    temporary = temporary_path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="")
    try:
        results = ResultsFile(file, path, topk, details)
        yield results
        results.finish()
        with writing(path):
            move_into_place(temporary, path)
    finally:
        with suppress(OSError):
            file.close()
        temporary.unlink(missing_ok=True)


def check_results_path(path: Path) -> None:
    """Raise ResultsError unless a results file may be written there, as far as can be told before."""
    if path.suffix.lower() not in RESULT_SUFFIXES:
        raise ResultsError(f'{path}: results are written as {", ".join(RESULT_SUFFIXES)}, got "{path.suffix}"')
    if path.is_dir():
        raise ResultsError(f"{path}: it is a folder; name a file for the results")
    check_folder(path.parent)


def _csv_row(prediction: Prediction, topk: int, details: Sequence[str]) -> list[str | int]:
    if prediction.error:
        return [prediction.file, *[""] * (3 + 2 * (topk - 1) + len(details)), prediction.error]
    ranks = [text for name, score in prediction.top_k[1:] for text in (name, f"{score:.6f}")]
    values = prediction.to_dict()
    found = [_csv_text(values[name]) for name in details]
    return [prediction.file, prediction.label, prediction.class_name, f"{prediction.score:.6f}", *ranks, *found, ""]


def _csv_text(value: Any) -> str:
    """Write a number to six digits, and a list, whose items may hold any character, as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _csv_line(row: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(row)
    return line.getvalue()
