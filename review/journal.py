"""The journal of a review: a line of JSON for each press, on the disk before the press is acknowledged.

The first line says which annotations it belongs to. A line that a killed process has left half written is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.atomic_io import check_in_place, sync_folder
from common.checksums import file_sha256
from common.formatting import short_json
from review.errors import ReviewError

FORMAT = 1
FILE_KEYS = ("format", "source", "sha256")
Event = dict[str, Any]


class Journal:
    """An open journal; `events` are those that were in it, until `forget_events`.

    One process at a time may write it: the caller holds a lock. `task` is what else it belongs to. Raises ReviewError
    for the journal of other annotations or another task, or a damaged one, and OSError.
    """

    def __init__(self, path: Path, source: Path, task: Mapping[str, Any]) -> None:
        self.path = path
        head = {"format": FORMAT, "source": source.name, "sha256": file_sha256(source), **task}
        is_new = not path.exists()
        self._is_torn = False
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self.events = list(self._read(head, source))
            if not self._size:
                self.append(head)
            if is_new:
                sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, event: Event) -> None:
        """Write an event through to the disk; of one that cannot be written nothing is left. Raises OSError."""
        line = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        check_in_place(self.path, self._file, self._size)
        try:
            if self._is_torn:
                os.ftruncate(self._file, self._size)
            self._is_torn = True  # a torn line would swallow the next one
            _write(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            error.filename = str(self.path)
            with suppress(OSError):  # else before the next one
                os.ftruncate(self._file, self._size)
                self._is_torn = False
            raise
        self._is_torn = False
        self._size += len(line)

    def forget_events(self) -> None:
        """Free the events that have been replayed."""
        self.events = []

    def close(self) -> None:
        """Close the file; what is appended later raises OSError."""
        os.close(self._file)
        self._file = -1  # the number may be another file's next

    def _read(self, head: Event, source: Path) -> Iterator[Event]:
        content = self.path.read_bytes()
        self._size = content.rfind(b"\n") + 1
        if self._size < len(content):
            os.ftruncate(self._file, self._size)
        lines = content[: self._size].splitlines()
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                is_head = number > 1 or event.keys() >= head.keys()
            except (ValueError, RecursionError, AttributeError):
                is_head = False
            if not is_head or not isinstance(event, dict):
                raise ReviewError(f"{self.path}:{number}: not a line of a review's journal; move the file away")
            if number > 1:
                yield event
            elif event["format"] != FORMAT:
                raise ReviewError(f"{self.path}: format {event['format']}, expected {FORMAT}; use a newer version")
            elif len(lines) == 1 and event != head:  # nothing was pressed: it begins anew
                os.ftruncate(self._file, 0)
                self._size = 0
            elif event["sha256"] != head["sha256"]:
                raise ReviewError(
                    f"{source}: it has changed since the review that {self.path.name} holds; bring the file back, or "
                    "move the journal away to begin anew"
                )
            elif other := [key for key in head if key not in FILE_KEYS and event[key] != head[key]]:
                raise ReviewError(
                    f"{self.path}: it was begun with {other[0]} {short_json(event[other[0]])}, not "
                    f"{short_json(head[other[0]])}; start as then, or move the journal away to begin anew"
                )


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
