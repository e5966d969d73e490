"""What every platform's programs share: their errors, atomic files, the metric file of a run, and messages."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.atomic_io import ResultsError, write_atomic, writing
from common.errors import ProgramError, UserError

ROOM_BYTES = 4096  # of an unfinished run's metric file
UNFINISHED = "not finished: it is still running, or it was killed"


class PlatformError(UserError):
    """A mistake of the user's; the message is one sentence for the user."""


class TrainingFailedError(ProgramError):
    """A training that ended without a result, for no mistake of the user's; `exit_code` is the training's own."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def metric_file(path: Path, failed: Callable[[str], Mapping[str, Any]]) -> Iterator[None]:
    """Write a metric file of an unfinished run before the block, and one with the reason where the block raises.

    `failed` returns the values of a failed run for a reason. The block itself writes those of a run that succeeds.
    The first one takes the room that the reason may need, in spaces: the disk may be full by then. Raises ResultsError
    where the first one cannot be written.
    """
    write_unfinished(path, failed(UNFINISHED))
    try:
        yield
    except BaseException as error:
        values = failed(_reason(error))
        try:
            write_json(path, values)
        except ResultsError as problem:
            warn(str(problem))
            _write_over(path, values)
        raise


def write_unfinished(path: Path, values: Mapping[str, Any]) -> None:
    """Write the metric file of a run that has no result yet, with room for one. Raises ResultsError."""
    write_text(path, json.dumps(values).ljust(ROOM_BYTES))


def _write_over(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file into the bytes of the present one, without any new room on the disk; warn where that fails."""
    try:
        with path.open("r+b") as file:
            room = len(file.read())
            text = json.dumps(values)
            if len(text) > room:
                text = json.dumps({**values, "error": values["error"][: ROOM_BYTES // 8]})
            file.seek(0)
            file.write(text.encode().ljust(room))
    except OSError as error:
        warn(f"{path}: cannot write it: {error.strerror}")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file in ASCII, complete or not at all. Raises ResultsError; an earlier file then stays."""
    write_text(path, json.dumps(values))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, complete or not at all. Raises ResultsError; an earlier file then stays."""
    with writing(path):
        write_atomic(path, text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file of bytes, complete or not at all. Raises ResultsError; an earlier file then stays."""
    with writing(path):
        write_atomic(path, content)


def log(text: str) -> None:
    """Write a line to stdout."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Write a warning to stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "stopped by SIGINT"
    if isinstance(error, (UserError, ProgramError, OSError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
