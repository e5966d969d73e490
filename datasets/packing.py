"""Standard annotations -> packs: shards of TFRecord files with an index, or one LMDB a shard."""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_io import atomic_path, write_atomic
from common.checksums import file_sha256
from common.formatting import size_text
from data_loader.decoding import open_image
from data_loader.errors import ImageError
from data_loader.examples import Feature, encode_feature, join_features, without_features
from data_loader.packs import (
    ARRAY_TYPES,
    ENDING,
    FRAME_BYTES,
    HEADS_ENDING,
    IMAGE,
    INDEX_ENDING,
    INSTALL,
    MASK,
    META_ENDING,
    SHARD,
    frame_of,
)
from data_loader.samples import ListError
from datasets.cores import equal_parts, over_cores
from datasets.errors import DatasetError
from datasets.outcome import Outcome
from datasets.records import FLAGS, KEYS, PER_OBJECT, Record, value

KV_ENDING = "-kvrecord"
FORMAT = 1
FLOAT32, INT64, INT8, UINT8 = 0, 2, 3, 4  # __k_type
FLAG_OF = {"segments": FLAGS[0], "joints2d": FLAGS[1], "joints_vis": FLAGS[1]}
ROOM = 1.02  # of the sum of the images, for what stands around them
MAP_BYTES = 2**38  # of addresses for an LMDB, which keeps the number: that of the free disk would change its bytes

Row = tuple[Record, Path]  # a record, and the folder that its paths start from


@dataclass(frozen=True)
class Shards:
    """How records are divided: the sizes of the shards, and the names of files without their endings."""

    sizes: tuple[int, ...]
    prefix: str

    def name(self, number: int) -> str:
        """Return P-00000-of-00003."""
        return f"{self.prefix}-{number:05}-of-{len(self.sizes):05}"

    def ranges(self) -> list[range]:
        """Return the indices of each shard's records."""
        ends = [0, *itertools.accumulate(self.sizes)]
        return [range(first, last) for first, last in itertools.pairwise(ends)]


def divide(total: int, most: int, prefix: str) -> Shards:
    """Return shards of `most` records; a last one of 1 takes one from its neighbour."""
    sizes = [most] * (total // most) + ([total % most] if total % most else [])
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] - 1, 2]
    return Shards(tuple(sizes), prefix)


def readable_rows(rows: Sequence[Row], outcome: Outcome) -> list[Row]:
    """Return the rows whose images, and label images, can be opened.

    Raises ListError for images by address alone, and for keys that can be no feature.
    """
    problems = [
        f"record {index}: {problem}" for index, (record, _) in enumerate(rows) for problem in _find_problems(record)
    ]
    if problems:
        raise ListError(problems)
    kept = []
    for row, reason in zip(
        rows, itertools.chain.from_iterable(over_cores(_reasons, rows, equal_parts(len(rows)))), strict=True
    ):
        if reason:
            outcome.leave_out(value(row[0], "image_file") or "a record without image_file", reason)
        else:
            kept.append(row)
    return kept


def check_room(rows: Sequence[Row], target: Path) -> None:
    """Raise DatasetError where the disk has less room than the images take."""
    needed = ROOM * sum(
        os.stat(f"{folder}/{path}").st_size  # noqa: PTH116  (for each image)
        for record, folder in rows
        for path in _files(record).values()
    )
    free = shutil.disk_usage(next(each for each in (target, *target.absolute().parents) if each.exists())).free
    if needed > free:
        raise DatasetError(f"--tgt {target}: the packs take {size_text(needed)}, and {size_text(free)} are free")


def write_tfrecords(
    rows: Sequence[Row], target: Path, shards: Shards, *, with_heads: bool = False
) -> list[dict[str, Any]]:
    """Write shards and their indices, and their heads where they are wanted; return what meta.json says of each.

    Raises OSError, DatasetError.
    """
    return over_cores(functools.partial(_write_tfrecord, target, shards, with_heads), rows, shards.ranges())


def _write_tfrecord(target: Path, shards: Shards, with_heads: bool, rows: Sequence[Row], part: range) -> dict[str, Any]:
    name = shards.name(shards.ranges().index(part))
    checksum, offset, lines = hashlib.sha256(), 0, []
    heads: list[bytes] = []
    with atomic_path(target / (name + ENDING)) as temporary, temporary.open("wb") as file:
        for record, folder in rows[part.start : part.stop]:
            data = example_of(record, folder)
            for piece in frame_of(data):
                file.write(piece)
                checksum.update(piece)
            lines.append(f"{offset} {len(data) + FRAME_BYTES}\n")
            offset += len(data) + FRAME_BYTES
            if with_heads:
                heads += frame_of(without_features(memoryview(data), (IMAGE, MASK)))
    write_atomic(target / (name + INDEX_ENDING), "".join(lines))
    entry = {"file": name + ENDING, "records": len(part), "bytes": offset, "sha256": checksum.hexdigest()}
    if not with_heads:
        return entry
    content = b"".join(heads)
    write_atomic(target / (name + HEADS_ENDING), content)
    of_heads = {"file": name + HEADS_ENDING, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return entry | {"heads": of_heads}


def write_kvs(rows: Sequence[Row], target: Path, shards: Shards, category: Sequence[str]) -> list[dict[str, Any]]:
    """Write an LMDB of Examples for each shard: key `P-<record>`, and `__meta__`. Raises OSError, DatasetError."""
    try:
        lmdb = importlib.import_module("lmdb")
    except ImportError as error:
        raise DatasetError(f"package/kv needs the package lmdb: {INSTALL}") from error
    return over_cores(functools.partial(_write_kv, lmdb, target, shards, list(category)), rows, shards.ranges())


def _write_kv(
    lmdb: Any, target: Path, shards: Shards, category: list[str], rows: Sequence[Row], part: range
) -> dict[str, Any]:
    name = shards.name(shards.ranges().index(part)) + KV_ENDING
    content = {"format": FORMAT, "total": len(part), "category": category, "first": part.start}
    with atomic_path(target / name) as temporary:
        try:
            with (
                lmdb.open(str(temporary), subdir=False, lock=False, map_size=MAP_BYTES) as base,
                base.begin(write=True) as to,
            ):
                for record in part:
                    to.put(f"{shards.prefix}-{record:08}".encode(), example_of(*rows[record]))
                to.put(b"__meta__", json.dumps(content, ensure_ascii=False).encode())
        except lmdb.MemoryError as error:
            text = f"LMDB needs {size_text(MAP_BYTES)} of addresses; allow them (ulimit -v unlimited)"
            raise DatasetError(f"{target / name}: {text}, or use package/tfrecord") from error
        except lmdb.Error as error:
            raise DatasetError(f"{target / name}: LMDB cannot write it: {error}") from error
        size_bytes, checksum = temporary.stat().st_size, file_sha256(temporary)
    return {"file": name, "records": len(part), "bytes": size_bytes, "sha256": checksum}


def write_meta(
    target: Path, shards: Shards, entries: Sequence[dict[str, Any]], category: Sequence[str], outcome: Outcome
) -> Path:
    """Write P-meta.json, after which the shards of an earlier packing are removed; return its path. Raises OSError."""
    path = target / (shards.prefix + META_ENDING)
    content = {
        **{"format": FORMAT, "total": sum(shards.sizes), "category": list(category), "shards": list(entries)},
        "left_out": [{"record": name, "reason": reason} for name, reason in outcome.left_out],
    }
    write_atomic(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    is_kv = bool(entries) and entries[0]["file"].endswith(KV_ENDING)
    endings = (KV_ENDING,) if is_kv else (ENDING, INDEX_ENDING, HEADS_ENDING)
    for other in target.iterdir():
        ending = next((each for each in endings if other.name.endswith(each)), None)
        found = SHARD.fullmatch(other.name.removesuffix(ending) + ENDING) if ending else None
        if not found or found[1] != shards.prefix:
            continue
        if int(found[3]) != len(shards.sizes) or (ending == HEADS_ENDING and "heads" not in entries[0]):
            other.unlink(missing_ok=True)
    return path


def example_of(record: Record, folder: Path) -> bytes:
    """Return the Example of a record: every key, and the bytes of its files. Raises DatasetError, OSError."""
    made = dict(_defaults())  # a key's own features have the names of its default's, and sometimes one more
    for key, item in record.items():
        made |= _encoded(key, item, record.get(FLAG_OF.get(key, ""), []))
    for feature, path in _files(record).items():
        with open(f"{folder}/{path}", "rb", buffering=0) as file:  # noqa: PTH123  (for each image)
            made[feature] = encode_feature(feature, [file.read()])
    return join_features(made)


@functools.cache
def _defaults() -> dict[str, bytes]:
    """Return the encoded features of every key's default."""
    return {name: feature for key, default in KEYS.items() for name, feature in _encoded(key, default).items()}


def _encoded(key: str, item: Any, flags: Sequence[int] = ()) -> dict[str, bytes]:
    if isinstance(item, (str, bool, int)):
        return _encoded_scalar(key, item)
    return {name: encode_feature(name, values) for name, values in _features(key, item, flags).items()}


@functools.lru_cache(maxsize=4096)
def _encoded_scalar(key: str, item: str | bool | int) -> dict[str, bytes]:
    """Return a feature that many records share: a class, a size, a tag."""
    return {name: encode_feature(name, values) for name, values in _features(key, item).items()}


def _features(key: str, item: Any, flags: Sequence[int] = ()) -> dict[str, Feature]:
    if isinstance(item, str):
        return {key: [item.encode()]}
    if isinstance(item, dict):
        return {key: [json.dumps(item, ensure_ascii=False, sort_keys=True).encode()]}
    if isinstance(item, float):
        return {key: [item]}
    if isinstance(item, (bool, int)):
        if not -(2**63) <= item < 2**63:
            raise DatasetError(f"{key} can be no feature: {item} has more than 64 bits")
        return {key: [int(item)]}
    if isinstance(item, list):
        return list_features(key, item, flags)
    raise DatasetError(f"{key} can be no feature: {type(item).__name__}")


def list_features(key: str, items: list[Any], flags: Sequence[int] = ()) -> dict[str, Feature]:
    """Return the features of a list: an array where its rows are equal, else JSON. Raises DatasetError.

    Rows whose flag is 0 are filled with zeros, in the shape of the others.
    """
    kinds = {type(item) for item in _leaves(items)}
    if str in kinds and len(kinds) > 1:
        raise DatasetError(f"{key} mixes text and numbers, which cannot be one feature")
    filled = _filled(items, flags)
    array = None if str in kinds else _array(filled, kinds)
    if array is None:
        content = json.dumps(items, ensure_ascii=False).encode()
        return {key: [content], f"__{key}_shape": [len(content)], f"__{key}_type": [UINT8], f"__{key}_json": [1]}
    kind, values = array
    return {key: [values.tobytes()], f"__{key}_shape": list(values.shape), f"__{key}_type": [kind]}


def _array(items: list[Any], kinds: set[type]) -> tuple[int, np.ndarray] | None:
    """Return a list as an array with its type's number; None where its rows are unequal, or hold null or objects."""
    if kinds - {bool, int, float}:
        return None
    kind = INT8 if kinds == {bool} else INT64 if kinds <= {int, bool} and kinds else FLOAT32
    try:
        return kind, np.array(items, ARRAY_TYPES[kind])
    except (ValueError, OverflowError):  # unequal rows, or an int that has no 64 bits
        return None


def _filled(items: list[Any], flags: Sequence[int]) -> list[Any]:
    """Return the rows with zeros for those whose flag is 0, where the others are equal arrays."""
    if len(flags) != len(items) or all(flags) or not any(flags):
        return items
    try:
        shapes = {np.array(item, np.float64).shape for item, flag in zip(items, flags, strict=True) if flag}
    except ValueError:
        return items
    if len(shapes) != 1:
        return items
    empty = np.zeros(shapes.pop()).tolist()
    return [item if flag else empty for item, flag in zip(items, flags, strict=True)]


def _leaves(items: Any) -> Iterator[Any]:
    for item in items:
        if isinstance(item, list):
            yield from _leaves(item)
        else:
            yield item


def _find_problems(record: Record) -> Iterator[str]:
    """Yield why a record cannot be packed. Keys that are checked as it is read are features in any case."""
    if value(record, "image_url") and not value(record, "image_file"):
        yield f"it has image_url alone ({value(record, 'image_url')}): --fetch downloads it"
    for key in record.keys() - set(PER_OBJECT):
        try:
            _encoded(key, record[key])
        except DatasetError as error:
            yield str(error)


def _files(record: Record) -> dict[str, str]:
    """Return the paths of a record's files by the features that hold their bytes."""
    paths = {IMAGE: value(record, "image_file"), MASK: value(record, "semantic_file")}
    return {feature: path for feature, path in paths.items() if path}


def _reasons(rows: Sequence[Row], part: range) -> list[str]:
    return [_why_unreadable(*rows[index]) for index in part]


def _why_unreadable(record: Record, folder: Path) -> str:
    """Return why a record's files cannot be opened, "" where they can."""
    if not value(record, "image_file"):
        return "it names no image"
    for path in _files(record).values():
        try:
            with open_image(f"{folder}/{path}"):
                pass
        except (ImageError, OSError, ValueError, SyntaxError) as error:
            return f"{path}: {getattr(error, 'strerror', None) or error}"
    return ""
