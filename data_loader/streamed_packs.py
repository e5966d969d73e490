"""A pack at an address whose shards are fetched when one of their images is read, and of which few lie on the disk.

The folder of such a pack always has the heads of every shard (its records without the images) and `stream.json`: the
address, the shards, and how many of them may lie there. Every process and thread that reads may fetch; the locks
of the system see to it that a shard is fetched once, and that there are never more. Where one more is needed, the one
that was read longest ago goes.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.atomic_io import atomic_path, move_into_place, sync_file, write_atomic
from common.errors import UserError
from common.file_lock import exclusive, locked_if_free
from data_loader.decode_guard import GUARD
from data_loader.errors import ImageError
from data_loader.examples import without_features
from data_loader.packs import (
    ENDING,
    IMAGE,
    MASK,
    STREAM,
    data_of,
    frame_of,
    heads_path,
    index_path,
    read_index,
)
from data_loader.remote_files import open_folder
from data_loader.samples import ListError
from data_loader.shard_fetching import PART, RemoteShard, fetch_part, part_of, size_of, write_problem

FULL_PAUSE_S = 0.05


class StreamError(UserError):
    """A shard that cannot be fetched, which is no damage to the images in it; the message is one sentence."""

    one_process = True  # of several, only the one that reads it knows of it


class Stream:
    """The shards of a pack in a folder. Made by `stream_in`, once in a process."""

    def __init__(self, folder: Path) -> None:
        content = json.loads((folder / STREAM).read_text(encoding="utf-8"))
        self.folder, self.most = folder, int(content["most"])
        self._remote = open_folder(content["address"])
        self._shards = {row["file"]: RemoteShard(**row) for row in content["shards"]}
        self._indices: dict[str, np.ndarray] = {}
        self._failed: dict[str, str] = {}  # a process that could not fetch a shard ends soon, and does not ask again

    def record(self, file: str, index: int) -> memoryview:
        """Return a record's data. Raises ImageError where it is damaged, StreamError where it cannot be fetched."""
        with self._opened(file) as shard:
            os.utime(shard.fileno())  # which of them is read
            rows = self._index(file)
            if index >= len(rows):
                raise ImageError(f"{self.folder / file} has {len(rows)} records, and no {index}")
            offset, length = map(int, rows[index])
            frame = os.pread(shard.fileno(), length, offset)
        return data_of(memoryview(frame), f"record {index} at byte {offset} of {self.folder / file}")

    def fetch_ahead(self, file: str, stop: threading.Event | None = None) -> None:
        """Fetch a shard that will be read, unless it is there, until `stop` is set. Raises ListError, OSError."""
        with suppress(FileNotFoundError), self._fetched(file, stop or threading.Event()):
            pass

    def touch(self, files: Sequence[str]) -> None:
        """Count shards as read now, where they are there: others go first."""
        for file in files:
            with suppress(FileNotFoundError):
                os.utime(self.folder / file)

    def trim(self) -> None:
        """Remove what lies here beyond `most`, of an earlier training that allowed more."""
        with exclusive(self.folder):
            self._make_room(self.most)

    def write_heads(self, file: str, stop: threading.Event) -> None:
        """Write what always lies here of a shard, which is fetched for it. Raises ListError, StreamError, OSError."""
        self.fetch_ahead(file, stop)
        if stop.is_set():
            return
        with atomic_path(heads_path(str(self.folder / file))) as temporary, temporary.open("wb") as heads:
            for index in range(len(self._index(file))):
                try:
                    head = without_features(self.record(file, index), (IMAGE, MASK))
                except StreamError:
                    raise
                except ValueError as error:
                    raise ListError([f"{self._remote.address(file)}: record {index}: {error}"]) from error
                heads.writelines(frame_of(head))

    def _opened(self, file: str) -> BinaryIO:
        with suppress(FileNotFoundError):
            return (self.folder / file).open("rb", buffering=0)
        if file in self._failed:
            raise StreamError(self._failed[file])
        try:
            with GUARD.paused():
                return self._fetched(file, threading.Event())
        except (ListError, OSError) as error:
            said = write_problem(self.folder, self._remote, error) if isinstance(error, OSError) else str(error)
            self._failed[file] = said
            raise StreamError(said) from error

    def _fetched(self, file: str, stop: threading.Event) -> BinaryIO:
        """Return a shard, fetched unless it is there. Raises ListError, FileNotFoundError where `stop` is set."""
        path, part = self.folder / file, part_of(self.folder, file)
        with exclusive(self._lock_of(file)):
            with suppress(FileNotFoundError):
                return path.open("rb", buffering=0)
            self._take_place(part)
            if not fetch_part(self._remote, self._shards[file], self.folder, stop):
                raise FileNotFoundError(file)
            sync_file(part)
            with exclusive(self.folder):  # or it could be counted twice, or not at all, or go before it is opened
                move_into_place(part, path, durable=False)
                return path.open("rb", buffering=0)

    def _take_place(self, part: Path) -> None:
        """Begin a shard's part once fewer than `most` others lie here: of those that nobody fetches, the oldest go."""
        while True:
            with exclusive(self.folder):
                if self._make_room(self.most - 1, part):
                    part.touch()
                    return
            time.sleep(FULL_PAUSE_S)  # all of them are being fetched

    def _make_room(self, most: int, besides: Path | None = None) -> bool:
        """Remove shards and parts until at most so many lie here besides one; return whether that is so."""
        paths = [path for path in self.folder.iterdir() if path.name.endswith((ENDING, ENDING + PART))]
        others = sorted(set(paths) - {besides}, key=_time_of)
        surplus = len(others) - most
        for other in others:
            if surplus > 0 and self._removed(other):
                surplus -= 1
        return surplus <= 0

    def _removed(self, path: Path) -> bool:
        """Remove a shard, or what a process that has died left of one; return whether that is done."""
        if path.name.endswith(PART):
            with locked_if_free(self._lock_of(path.name.removesuffix(PART))) as is_left:
                if is_left:
                    path.unlink(missing_ok=True)
                return is_left
        path.unlink()
        return True

    def _lock_of(self, file: str) -> Path:
        lock = self.folder / f"{file}.lock"
        lock.touch()
        return lock

    def _index(self, file: str) -> np.ndarray:
        if file not in self._indices:
            path = str(self.folder / file)
            self._indices[file] = read_index(index_path(path), path, self._shards[file].bytes)
        return self._indices[file]


def stream_in(folder: str) -> Stream | None:
    """Return the streamed pack in a folder, None where there is none. Raises OSError, UserError."""
    return _stream_in(folder, os.getpid())  # drivers do not outlive a fork


def begin_stream(folder: Path, address: str, shards: Sequence[RemoteShard], most: int) -> Stream:
    """Return the pack of a folder, which is streamed from an address from now on. Raises OSError, UserError."""
    content = {"address": address, "most": most, "shards": [asdict(shard) for shard in shards]}
    write_atomic(folder / STREAM, json.dumps(content))
    for shard in shards:
        if size_of(folder / shard.file) != shard.bytes:
            (folder / shard.file).unlink(missing_ok=True)
    _stream_in.cache_clear()
    stream = Stream(folder)
    stream.trim()
    return stream


def _time_of(path: Path) -> int:
    """Return when a shard was read last, or a part written; 0 where a part that was not right has just gone."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


@functools.lru_cache(maxsize=16)
def _stream_in(folder: str, process: int) -> Stream | None:
    path = Path(folder)
    return Stream(path) if (path / STREAM).is_file() else None
