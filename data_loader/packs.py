"""Packs: shards of TFRecord files, mapped, any record read by its index, both its checksums verified.

An image in a pack has a name that stands for a path: `P-00000-of-00003-tfrecord#17 (pond/0007.jpg)`; another feature of
the record is `...-tfrecord#17:semantic_image (pond/0007.png)`.
"""

from __future__ import annotations

import functools
import glob
import importlib
import json
import mmap
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.paths import PACK_ENDING
from data_loader.errors import ImageError
from data_loader.examples import decode_example
from data_loader.samples import ListError

ENDING, INDEX_ENDING, META_ENDING = PACK_ENDING, "-index", "-meta.json"
HEADS_ENDING = "-heads"  # of a TFRecord file of a shard's records without the bytes of files
STREAM = "stream.json"  # in a folder of heads, whose shards come and go
IMAGE, MASK = "image", "semantic_image"  # features with the bytes of files
INSTALL = "pip install -r requirements-packs.txt"
ARRAY_TYPES = ("<f4", "<i4", "<i8", "i1", "u1")  # by a list's __key_type
MASK_DELTA = 0xA282EAD8  # of a masked checksum (TensorFlow, "TFRecord and tf.train.Example")
LENGTH, CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
FRAME_BYTES = LENGTH.size + 2 * CHECKSUM.size  # around a record's data
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})-tfrecord", re.DOTALL)
_RECORD = re.compile(rf"{ENDING}#(\d+)(?::(\w+))?(?: \((.*)\))?\Z", re.DOTALL)  # after the name of a shard


@dataclass(frozen=True)
class Pack:
    """The shards that a pattern finds, in order, and the class names of their meta.json, () where there is none.

    `heads` are the files that have the records' features: the shards, or of a streamed pack, what always lies there.
    """

    shards: tuple[str, ...] = field(repr=False)
    heads: tuple[str, ...] = field(repr=False)
    category: tuple[str, ...] = ()


class Shard:
    """One mapped file. `offsets` (N,) and `lengths` (N,) are those of the frames around the records.

    Raises ListError for an index that does not fit, or a file that ends within a record.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with Path(path).open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        self._view = memoryview(mapped)
        index = index_path(path)
        rows = read_index(index, path, self.size) if index.is_file() else self._scanned()
        self.offsets, self.lengths = rows[:, 0], rows[:, 1]

    def __len__(self) -> int:
        return len(self.offsets)

    def record(self, index: int) -> memoryview:
        """Return a record's data, as it lies in the mapped file. Raises ImageError where a checksum is wrong."""
        offset, length = int(self.offsets[index]), int(self.lengths[index])
        return data_of(self._view[offset : offset + length], f"record {index} at byte {offset} of {self.path}")

    def features(self, index: int, wanted: tuple[str, ...]) -> dict[str, Any]:
        """Return some features of a record, whose checksums are not verified. Raises ListError."""
        first = int(self.offsets[index]) + LENGTH.size + CHECKSUM.size
        last = int(self.offsets[index] + self.lengths[index]) - CHECKSUM.size
        try:
            return decode_example(self._view[first:last], wanted)
        except ValueError as error:
            raise ListError([f"{self.path}: record {index} at byte {first}: {error}"]) from error

    def _scanned(self) -> np.ndarray:
        """Return the index of a file that has none."""
        rows: list[tuple[int, int]] = []
        place = 0
        while place < self.size:
            head = self._view[place : place + LENGTH.size]
            length = LENGTH.unpack(head)[0] + FRAME_BYTES if len(head) == LENGTH.size else self.size + 1
            if place + length > self.size:
                raise ListError([f"{self.path}: it is cut off, or damaged, in record {len(rows)} at byte {place}"])
            rows.append((place, length))
            place += length
        return np.array(rows, np.int64).reshape(-1, 2)


def data_of(frame: memoryview, where: str) -> memoryview:
    """Return the data in the frame of a record. Raises ImageError where a checksum is wrong."""
    first, last = LENGTH.size + CHECKSUM.size, len(frame) - CHECKSUM.size
    head, data = frame[: LENGTH.size], frame[first:last]
    sums = frame[LENGTH.size : first], frame[last:]
    if LENGTH.pack(len(data)) != head or masked_checksum(head) != sums[0] or masked_checksum(data) != sums[1]:
        raise ImageError(f"{where} is damaged: its checksum is not that of its bytes; pack it again")
    return data


def frame_of(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return what a record's data is written as: its length with a checksum, itself, and its checksum."""
    head = LENGTH.pack(len(data))
    return head + masked_checksum(head), data, masked_checksum(data)


def index_path(shard: str) -> Path:
    """Return the path of a shard's index."""
    return Path(shard.removesuffix(ENDING) + INDEX_ENDING)


def heads_path(shard: str) -> Path:
    """Return the path of a shard's heads."""
    return Path(shard.removesuffix(ENDING) + HEADS_ENDING)


def read_index(path: Path, shard: str, size: int) -> np.ndarray:
    """Return the offset and length (N, 2) of each record of a shard of `size` bytes. Raises ListError."""
    try:
        rows = np.array(path.read_text(encoding="ascii").split(), np.int64).reshape(-1, 2)
    except ValueError as error:
        raise ListError([f"{path}: expected a line `offset length` for each record"]) from error
    ends = rows.sum(axis=1)
    is_right = len(rows) and rows[0, 0] == 0 and ends[-1] == size and (ends[:-1] == rows[1:, 0]).all()
    if not is_right or (rows[:, 1] < FRAME_BYTES).any():
        raise ListError([f"{path}: it does not fit {shard} of {size} bytes; pack them again"])
    return rows


def is_pack(text: str) -> bool:
    """Return whether a config's list is a pattern of shards, such as packs/P-*-tfrecord."""
    return text.endswith(ENDING)


def find_pack(pattern: str) -> Pack:
    """Return the shards of the one pack that a pattern finds; P-*-tfrecord is P, though P-val's shards fit it, too.

    Raises ListError for none, for those of several packs or of two packings, and for missing ones.
    """
    groups: dict[str, list[re.Match[str]]] = {}
    is_streamed = Path(pattern).with_name(STREAM).is_file()
    ending = HEADS_ENDING if is_streamed else ENDING
    for path in sorted(glob.glob(pattern.removesuffix(ENDING) + ending)):  # noqa: PTH207  (the folder may be one, too)
        found = SHARD.fullmatch(path.removesuffix(ending) + ENDING)
        if found is None:
            raise ListError([f"{path}: a shard must be called NAME-00000-of-00003{ENDING}"])
        groups.setdefault(found[1], []).append(found)
    if not groups:
        raise ListError([f"{pattern}: no file fits; shards are called NAME-00000-of-00003{ENDING}"])
    prefix = pattern.removesuffix(f"-*{ENDING}")
    if prefix not in groups:
        if len(groups) > 1:
            names = ", ".join(list(groups)[:5])
            raise ListError([f"{pattern}: shards of {len(groups)} packs fit, {names}; name one, or pack them together"])
        (prefix,) = groups
    counts = {int(shard[3]) for shard in groups[prefix]}
    if len(counts) > 1:
        sizes = " and ".join(str(count) for count in sorted(counts))
        raise ListError([f"{prefix}: shards of two packings, of {sizes} files; remove the older ones"])
    (count,) = counts
    if missing := sorted(set(range(count)) - {int(shard[2]) for shard in groups[prefix]}):
        shown = ", ".join(f"{number:05}" for number in missing[:5])
        raise ListError([f"{prefix}: {len(missing)} of {count} shards are missing: {shown}"])
    paths = tuple(shard.string for shard in groups[prefix])
    if is_streamed:
        return Pack(paths, tuple(str(heads_path(path)) for path in paths), _category(prefix, ()))
    return Pack(paths, paths, _category(prefix, paths))


def open_shard(path: str) -> Shard:
    """Return a shard, opened once in a process as long as the file stays the same. Raises ListError, OSError."""
    found = os.stat(path)  # noqa: PTH116  (for each image)
    return _opened(path, found.st_size, found.st_mtime_ns)


def packed_name(shard: str, index: int, file: str, feature: str = IMAGE) -> str:
    """Return the name of an image in a pack, which every function that reads an image takes for a path."""
    return f"{shard}#{index}{'' if feature == IMAGE else ':' + feature}{f' ({file})' if file else ''}"


def sibling_name(name: str, file: str, feature: str) -> str:
    """Return the name of another file in the same record as a named image."""
    found = _RECORD.search(name)
    assert found is not None
    return packed_name(_shard_of(found), int(found[1]), file, feature)


def list_keys(*keys: str) -> tuple[str, ...]:
    """Return the features that hold lists under these keys."""
    return tuple(name for key in keys for name in (key, f"__{key}_shape", f"__{key}_type"))


def array_of(features: Mapping[str, Any], key: str) -> np.ndarray:
    """Return a list of a record as the array that it is packed as; (0,) where there is none. Raises ValueError."""
    if not features.get(key):
        return np.zeros(0, np.float32)
    kind = ARRAY_TYPES[features[f"__{key}_type"][0]]
    return np.frombuffer(features[key][0], kind).reshape(features[f"__{key}_shape"])


def container_of(path: str) -> str:
    """Return the file that an image lies in: its shard, or itself."""
    found = _RECORD.search(path)
    return _shard_of(found) if found else path


def lasting_container_of(path: str) -> str:
    """Return the file that stays and stands for an image: its shard, the heads of a streamed one, or itself."""
    container = container_of(path)
    return (
        container if container == path or not _is_streamed(container.rpartition("/")[0]) else str(heads_path(container))
    )


def file_of(path: str) -> str:
    """Return the path that an image in a pack had, or a path itself."""
    found = _RECORD.search(path)
    return (found[3] or "") if found else path


def place_of(source: object) -> tuple[str, int, str] | None:
    """Return the shard, the record and the feature that the name of an image in a pack stands for; else None."""
    if not isinstance(source, str) or (found := _RECORD.search(source)) is None:
        return None
    return _shard_of(found), int(found[1]), found[2] or IMAGE


def masked_checksum(data: bytes | memoryview) -> bytes:
    """Return the masked CRC32C of a text, 4 bytes. Raises ListError where the package for it is not installed."""
    checksum = _crc32c()(data)
    return CHECKSUM.pack((((checksum >> 15) | (checksum << 17)) + MASK_DELTA) & 0xFFFFFFFF)


def _shard_of(found: re.Match[str]) -> str:
    return found.string[: found.start() + len(ENDING)]


@functools.cache
def _crc32c() -> Callable[[bytes | memoryview], int]:
    try:
        found: Callable[[bytes | memoryview], int] = importlib.import_module("crc32c").crc32c
    except ImportError as error:
        raise ListError([f"packs need the package crc32c: {INSTALL}"]) from error
    return found


@functools.lru_cache(maxsize=256)
def _is_streamed(folder: str) -> bool:
    return Path(folder, STREAM).is_file()


@functools.lru_cache(maxsize=256)
def _opened(path: str, size: int, time_ns: int) -> Shard:
    return Shard(path)


def _category(prefix: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Return the class names of a pack's meta.json, () where there is none; compare its shards with the files."""
    path = Path(prefix + META_ENDING)
    if not path.is_file():
        return ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sizes = {entry["file"]: entry["bytes"] for entry in content["shards"]}
        category = tuple(str(name) for name in content["category"])
    except (ValueError, KeyError, TypeError) as error:
        raise ListError([f"{path}: expected what package/tfrecord writes: {error!r}"]) from error
    for each in paths:
        size = Path(each).stat().st_size
        if sizes.get(Path(each).name) != size:
            said = sizes.get(Path(each).name)
            text = f"it has {size} bytes, but {said} in {path.name}" if said else f"{path.name} does not name it"
            raise ListError([f"{each}: {text}: it is of another packing, or cut off; pack them again"])
    return category
