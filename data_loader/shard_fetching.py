"""One shard of a pack at an address: fetched, gone on with where it broke off, verified, and named when it is whole."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.atomic_io import write_atomic
from common.checksums import file_sha256
from common.formatting import first_line
from data_loader.packs import ENDING, HEADS_ENDING, META_ENDING, Shard, index_path
from data_loader.remote_files import RemoteError, RemoteFolder
from data_loader.samples import ListError

PART = ".part"
FULL = (errno.ENOSPC, errno.EDQUOT)
DAMAGED = "it is damaged, or being packed anew; start again when the pack is whole"
OTHER_DISK = "data_cache_dir names a folder on another disk"


@dataclass(frozen=True)
class RemoteShard:
    """What a meta.json says of a shard, or of its heads."""

    file: str
    bytes: int
    sha256: str


def shards_of(remote: RemoteFolder, name: str, meta: bytes, ending: str = ENDING) -> list[RemoteShard]:
    """Return the shards that a meta.json lists; for HEADS_ENDING their heads, none where they were not packed.

    Raises ListError.
    """
    try:
        rows = json.loads(meta)["shards"]
        if ending == HEADS_ENDING:
            rows = [row["heads"] for row in rows] if rows and "heads" in rows[0] else []
        shards = [RemoteShard(**{key: row[key] for key in ("file", "bytes", "sha256")}) for row in rows]
        names = [f"{name}-{number:05}-of-{len(shards):05}{ending}" for number in range(len(shards))]
        are_right = (names or ending == HEADS_ENDING) and names == [shard.file for shard in shards]
        if not are_right or not all(type(shard.bytes) is int and len(shard.sha256) == 64 for shard in shards):
            raise ValueError("its shards are not all there")
    except (ValueError, KeyError, TypeError) as error:
        where = remote.address(name + META_ENDING)
        raise ListError([f"{where}: expected what package/tfrecord writes: {first_line(error)}"]) from error
    return shards


def fetch_part(
    remote: RemoteFolder,
    shard: RemoteShard,
    folder: Path,
    stop: threading.Event,
    count: Callable[[int], object] = lambda size: None,
) -> bool:
    """Fetch a shard's part into a folder, and write its index; return whether it is whole and right.

    `count` gets the bytes as they come. What came of a shard that breaks off is kept; once `stop` is set, it ends with
    the block that it reads. Raises ListError.
    """
    where, part = remote.address(shard.file), part_of(folder, shard.file)
    try:
        remote.patiently(lambda: _append(remote, shard, part, stop, count))
    except RemoteError as error:
        came = f"; {size_of(part)} of {shard.bytes} bytes came, and are kept for the next start"
        raise ListError([f"{where}: {error}{'' if error.is_missing else came}"]) from error
    if stop.is_set():
        return False
    size, checksum = size_of(part), file_sha256(part)
    if (size, checksum) != (shard.bytes, shard.sha256):
        part.unlink()
        raise ListError([f"{where}: {size} bytes came, whose sha256 is not that of the pack's meta.json: {DAMAGED}"])
    index = Shard(str(part))
    lines = "".join(f"{offset} {length}\n" for offset, length in zip(index.offsets, index.lengths, strict=True))
    write_atomic(index_path(str(folder / shard.file)), lines)
    return True


def write_problem(folder: Path, remote: RemoteFolder, error: OSError) -> str:
    """Return what is said where a folder cannot take what is fetched."""
    hint = f"; {OTHER_DISK}" if error.errno in FULL else ""
    return f"{folder}: cannot write {remote.shown} there: {error.strerror or error}{hint}"


def part_of(folder: Path, file: str) -> Path:
    """Return the path of what has come of a file."""
    return folder / (file + PART)


def size_of(path: Path) -> int:
    """Return the size of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _append(
    remote: RemoteFolder, shard: RemoteShard, part: Path, stop: threading.Event, count: Callable[[int], object]
) -> None:
    """Add to a file what it lacks of a shard. Raises ListError where this disk has no room, and any driver's errors."""
    has_ranges = remote.gives_ranges(shard.file, shard.bytes)
    if size_of(part) > shard.bytes or not has_ranges:
        part.write_bytes(b"")
    for block in remote.blocks(shard.file, shard.bytes, size_of(part) if has_ranges else None):
        try:
            with part.open("ab") as file:
                file.write(block)
        except OSError as error:
            raise ListError([write_problem(part.parent, remote, error)]) from error
        count(len(block))
        if stop.is_set() or size_of(part) > shard.bytes:
            return
