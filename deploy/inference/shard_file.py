"""The file of a shard: its predictions as they come, with checksums, so that a run that was killed goes on.

A line is the CRC-32 of a JSON text and that text. The first says what the shard is of (`head`), the second which images
it has, then each image has one in their order, and the last holds the sha256 of all before. A line that a killed
process has left half written, or the disk has damaged, is dropped with all behind it, and its images are predicted
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import ResultsError, check_in_place, write_atomic, writing
from common.errors import UserError
from common.file_lock import lock_file
from common.formatting import short_json
from deploy.inference.box_prediction import BoxPrediction
from deploy.inference.prediction import Prediction
from deploy.inference.result_writer import RowFormat
from deploy.inference.shards import Entry, Shard

FORMAT = 1
Record = dict[str, Any]
TITLES = {  # of the values of a head that all shards of a run share
    "program": "another version of the program",
    "weights_sha256": "other weights",
    "metadata": "other metadata of the net",
    "columns": "other columns",
    "images_sha256": "other images (names or sizes)",
}


class ShardError(UserError):
    """A shard's file that cannot be used; the message is one sentence for the user."""


@dataclass
class ShardContent:
    """What a shard's file holds: `done` rows, of which `failed` have an error, in its first `size` whole bytes."""

    path: Path
    head: Record
    images: list[Entry]
    done: int = 0
    failed: int = 0
    size: int = 0
    is_complete: bool = False
    digest: hashlib._Hash = field(default_factory=hashlib.sha256, repr=False)


def read_shard(path: Path, shard: Shard) -> ShardContent:
    """Read a shard's file through. Raises ShardError where it is none or another's, and OSError."""
    lines = _lines(path)
    head, images = next(lines, (b"", {})), next(lines, (b"", {}))
    if head[1].get("format") != FORMAT or not isinstance(images[1].get("images"), list):
        raise ShardError(f"{path}: not a shard that this program can go on with; move the file away")
    if head[1]["shard"] != str(shard):
        raise ShardError(f"{path}: it holds shard {head[1]['shard']}; give it back its name")
    content = ShardContent(path, head[1], images[1]["images"])
    _count(content, head[0] + images[0])
    for line, record in lines:
        if content.done == len(content.images):
            content.is_complete = record == {"sha256": content.digest.hexdigest()}
            content.size += len(line) if content.is_complete else 0
            break
        if record.get("index") != content.done:
            break
        content.done += 1
        content.failed += bool(record["failed"])
        _count(content, line)
    return content


def rows_of(content: ShardContent) -> Iterator[Record]:
    """Yield the rows of a shard that was read. Raises OSError."""
    for _, record in _lines(content.path):
        if "row" in record:
            yield record


def difference(head: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return in what another run's head differs, "" where both are of one run; the shards themselves may."""
    flags, others = head["flags"], other["flags"]
    for name in flags:
        if flags[name] != others.get(name):
            return f"--{name} {short_json(others.get(name))}, not {short_json(flags[name])}"
    if head["images"] != other["images"]:
        return f"{other['images']} images, not {head['images']}"
    return next((title for key, title in TITLES.items() if head[key] != other[key]), "")


class ShardFile:
    """An open shard: `write` takes the predictions of the images that have none yet, `waiting`, in turn.

    Made by `open_shard`.
    """

    def __init__(self, file: int, content: ShardContent, rows: RowFormat, *, with_objects: bool) -> None:
        self.content = content
        self._file, self._rows, self._with_objects = file, rows, with_objects

    @property
    def waiting(self) -> list[Entry]:
        """The images that have no prediction yet."""
        return self.content.images[self.content.done :]

    def write(self, prediction: Prediction) -> None:
        """Add the next image's prediction. Raises ResultsError; those before it then stay."""
        content, failed = self.content, bool(prediction.error)
        record = {"index": content.done, "row": self._rows.row(prediction), "failed": failed}
        if self._with_objects and not failed:
            assert isinstance(prediction, BoxPrediction)
            record |= {"size": prediction.size, "objects": prediction.objects}
        self._append(record)
        content.done += 1
        content.failed += failed

    def complete(self) -> None:
        """Add the last line, if every image has its prediction, and sync the file. Raises ResultsError."""
        if not self.waiting and not self.content.is_complete:
            self._append({"sha256": self.content.digest.hexdigest()})
            self.content.is_complete = True
        with writing(self.content.path):
            os.fsync(self._file)

    def _append(self, record: Record) -> None:
        """Write a whole line, or leave the file as it was. Raises ResultsError."""
        content, data = self.content, _line(record)
        try:
            with writing(content.path):
                check_in_place(content.path, self._file, content.size)
                _write(self._file, data)
        except ResultsError as error:
            with suppress(OSError):
                os.ftruncate(self._file, content.size)
            kept = f"the predictions of {content.done} of {len(content.images)} images are kept"
            raise ResultsError(f"{error}; {kept}, and the same command goes on") from error
        _count(content, data)


@contextmanager
def open_shard(
    path: Path, shard: Shard, head: Record, images: list[Entry], rows: RowFormat, *, with_objects: bool = False
) -> Iterator[ShardFile]:
    """Begin a shard's file, or go on with it; of found boxes `with_objects` keeps what label files need.

    One process at a time may do so. Raises ShardError where another does or it is another run's, and ResultsError.
    """
    with ExitStack() as held:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(lock_file(_lock_path(path)))
            except BlockingIOError as error:
                raise ShardError(f"{path}: another process is at this shard") from error
            if not path.exists():
                write_atomic(path, _line(head) + _line({"images": images}))
            content = read_shard(path, shard)
        if other := difference(content.head, head):
            raise ShardError(f"{path}: it was begun otherwise, and now there is {other}; {_hint(content)}")
        with writing(path):
            file = os.open(path, os.O_RDWR | os.O_APPEND)
            held.callback(os.close, file)
            os.ftruncate(file, content.size)
        opened = ShardFile(file, content, rows, with_objects=with_objects)
        yield opened
        opened.complete()


def is_in_use(path: Path) -> bool:
    """Return whether another process is at a shard, as one that outlived who started it."""
    try:
        with lock_file(_lock_path(path)):
            return False
    except BlockingIOError:
        return True
    except OSError:  # its folder is not there yet
        return False


def head_of(shard: Shard, **values: Any) -> Record:
    """Return the first line of a shard's file, as reading it gives it back."""
    found: Record = json.loads(json.dumps({"format": FORMAT, "shard": str(shard), **values}))
    return found


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _hint(content: ShardContent) -> str:
    return f"start as then, or move the file away, which has {content.done} of {len(content.images)} predictions"


def _lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    """Yield the lines of a file with what they hold, until one that is damaged or not whole. Raises OSError."""
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line[9:]) if line[:9] == _checksum(line[9:-1]) and line.endswith(b"\n") else None
            except ValueError:
                record = None
            if not isinstance(record, dict):
                return
            yield line, record


def _line(record: Record) -> bytes:
    data = json.dumps(record, separators=(",", ":")).encode()
    return _checksum(data) + data + b"\n"


def _checksum(data: bytes) -> bytes:
    return b"%08x " % zlib.crc32(data)


def _count(content: ShardContent, line: bytes) -> None:
    content.digest.update(line)
    content.size += len(line)


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
