"""Packs at addresses (s3://, https://, ...): fetched whole into a folder, and read there as local ones.

NAME-meta.json lists the shards with their sha256, so nothing else has to be listed, which HTTP cannot. Each packing has
a folder of its own, by the bytes of its meta.json: what is there is never replaced under a training that reads it.
"""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import json
import re
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.atomic_io import move_into_place, write_atomic
from common.checksums import file_sha256
from common.file_lock import lock_file
from common.formatting import first_line, size_text
from configs.schema import Config
from data_loader.packs import ENDING, INDEX_ENDING, META_ENDING, Shard
from data_loader.remote_files import RemoteError, RemoteFolder, open_folder, without_password
from data_loader.samples import CLASS_NAMES_FILE, ListError

FOLDER = "packs"  # in data_cache_dir
PATTERN = re.compile(rf"(.+)/([^/*?\[\]#]+)-\*{ENDING}", re.DOTALL)
BESIDE = (CLASS_NAMES_FILE, "classes.json")  # files that give a pack's labels other names, or its masks other values
LOCK, PART = ".lock", ".part"
THREADS = 8  # shards fetched at once
FULL = (errno.ENOSPC, errno.EDQUOT)
DAMAGED = "it is damaged, or being packed anew; start again when the pack is whole"
OTHER_DISK = "data_cache_dir names a folder on another disk"
_ONE = threading.Lock()  # a lock file excludes other processes alone


@dataclass(frozen=True)
class RemoteShard:
    """What a meta.json says of a shard."""

    file: str
    bytes: int
    sha256: str


def is_address(text: str) -> bool:
    """Return whether a config's list is an address, such as s3://bucket/packs/P-*-tfrecord."""
    return "://" in text and text.endswith(ENDING)


def local_packs(config: Config) -> Config:
    """Return a config whose packs are local ones: those at addresses are fetched. Raises ListError."""
    keys = [
        key for key in ("train_data_file", "val_data_file", "unlabelled_data_file") if is_address(getattr(config, key))
    ]
    found = {key: local_pattern(getattr(config, key), config.data_cache_dir) for key in keys}
    return config.model_copy(update=found) if found else config


def local_pattern(pattern: str, cache_dir: str) -> str:
    """Return the pattern of a pack's shards on this disk, fetched where it is an address. Raises ListError.

    The address is asked once in a process. Where it does not answer, what was fetched of it last is used.
    """
    if not is_address(pattern):
        return pattern
    with _ONE:
        return _fetched(pattern, str(Path(cache_dir, FOLDER).absolute()))


@functools.cache
def _fetched(pattern: str, cache_dir: str) -> str:
    found = PATTERN.fullmatch(pattern)
    try:
        if found is None:
            raise RemoteError(
                f"an address names one pack, such as s3://bucket/packs/P-*{ENDING}, whose P{META_ENDING} is there"
            )
        remote, name = open_folder(found[1]), found[2]
    except RemoteError as error:
        raise ListError([f"{without_password(pattern)}: {error}"]) from error
    place = Path(cache_dir, f"{name}-{hashlib.sha256(pattern.encode()).hexdigest()[:8]}")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            while True:  # another training may fetch the same
                try:
                    stack.enter_context(lock_file(place / LOCK))
                    break
                except BlockingIOError:
                    time.sleep(0.2)
            return str(_newest(remote, name, place) / f"{name}-*{ENDING}")
    except OSError as error:
        hint = f"; {OTHER_DISK}" if error.errno in FULL else ""
        raise ListError([f"{place}: cannot write {remote.shown} there: {error.strerror or error}{hint}"]) from error


def _newest(remote: RemoteFolder, name: str, place: Path) -> Path:
    """Return the folder with all of a pack's files; what is missing there is fetched. Raises ListError, OSError."""
    meta_file = name + META_ENDING
    earlier = sorted(place.glob(f"*/{glob.escape(meta_file)}"), key=lambda path: path.stat().st_mtime_ns)
    try:
        meta = remote.content(meta_file)
    except RemoteError as error:
        if error.is_missing or not earlier:
            raise ListError([f"{remote.address(meta_file)}: {error}"]) from error
        _note(f"{remote.address(meta_file)}: {error}; what was fetched earlier is used: {earlier[-1].parent}")
        return earlier[-1].parent
    folder = place / hashlib.sha256(meta).hexdigest()[:16]
    if earlier and not (folder / meta_file).exists():
        _note(f"{remote.address(meta_file)}: it has been packed anew since it was fetched into {earlier[-1].parent}")
    shards = _shards(remote, name, meta)
    folder.mkdir(exist_ok=True)
    missing = [shard for shard in shards if not _is_whole(folder, shard)]
    if missing:
        _fetch_shards(remote, missing, folder)
    for beside in BESIDE:
        _fetch_beside(remote, beside, folder / beside)
    write_atomic(folder / meta_file, meta)  # anew each time: the newest is the one that was used last
    return folder


def _shards(remote: RemoteFolder, name: str, meta: bytes) -> list[RemoteShard]:
    """Return the shards that a meta.json lists. Raises ListError."""
    try:
        shards = [
            RemoteShard(**{key: row[key] for key in ("file", "bytes", "sha256")}) for row in json.loads(meta)["shards"]
        ]
        names = [f"{name}-{number:05}-of-{len(shards):05}{ENDING}" for number in range(len(shards))]
        are_right = names and names == [shard.file for shard in shards]
        if not are_right or not all(type(shard.bytes) is int and len(shard.sha256) == 64 for shard in shards):
            raise ValueError("its shards are not all there")
    except (ValueError, KeyError, TypeError) as error:
        where = remote.address(name + META_ENDING)
        raise ListError([f"{where}: expected what package/tfrecord writes: {first_line(error)}"]) from error
    return shards


def _is_whole(folder: Path, shard: RemoteShard) -> bool:
    path = folder / shard.file
    return _index_of(path).exists() and path.exists() and path.stat().st_size == shard.bytes


def _index_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(ENDING) + INDEX_ENDING)


def _fetch_shards(remote: RemoteFolder, shards: list[RemoteShard], folder: Path) -> None:
    """Fetch shards, several at once; what came of one is kept for the next start. Raises ListError, OSError."""
    needed = sum(shard.bytes - _size(folder / (shard.file + PART)) for shard in shards)
    if needed > (free := shutil.disk_usage(folder).free):
        sizes = f"{size_text(needed)} are to be fetched into {folder}, and {size_text(free)} are free"
        raise ListError([f"{remote.shown}: {sizes}; {OTHER_DISK}"])
    _note(f"{remote.shown}: fetching {size_text(needed)} into {folder}")
    stop = threading.Event()
    with (
        tqdm(total=needed, unit="B", unit_scale=True, desc="fetching", leave=False, disable=None) as bar,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        works = [pool.submit(_fetch_shard, remote, shard, folder, bar, stop) for shard in shards]
        try:
            for work in as_completed(works):
                work.result()
        finally:  # after a mistake, or Ctrl-C, the others end with the block that they read
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _fetch_shard(remote: RemoteFolder, shard: RemoteShard, folder: Path, bar: tqdm[Any], stop: threading.Event) -> None:
    where, target, part = remote.address(shard.file), folder / shard.file, folder / (shard.file + PART)
    try:
        remote.patiently(lambda: _append(remote, shard, part, bar, stop))
    except RemoteError as error:
        kept = (
            "" if error.is_missing else f"; {_size(part)} of {shard.bytes} bytes came, and are kept for the next start"
        )
        raise ListError([f"{where}: {error}{kept}"]) from error
    if stop.is_set():
        return
    size, checksum = _size(part), file_sha256(part)
    if (size, checksum) != (shard.bytes, shard.sha256):
        part.unlink()
        raise ListError([f"{where}: {size} bytes came, whose sha256 is not that of the pack's meta.json: {DAMAGED}"])
    index = Shard(str(part))
    lines = "".join(f"{offset} {length}\n" for offset, length in zip(index.offsets, index.lengths, strict=True))
    write_atomic(_index_of(target), lines)
    move_into_place(part, target)


def _append(remote: RemoteFolder, shard: RemoteShard, part: Path, bar: tqdm[Any], stop: threading.Event) -> None:
    """Add to a file what it lacks of a shard. Raises ListError where this disk has no room, and any driver's errors."""
    has_ranges = remote.gives_ranges(shard.file, shard.bytes)
    if _size(part) > shard.bytes or not has_ranges:
        part.unlink(missing_ok=True)
    for block in remote.blocks(shard.file, shard.bytes, _size(part) if has_ranges else None):
        try:
            with part.open("ab") as file:
                file.write(block)
        except OSError as error:
            hint = f"; {OTHER_DISK}" if error.errno in FULL else ""
            raise ListError([f"{part.parent}: cannot write {remote.shown} there: {error.strerror}{hint}"]) from error
        bar.update(len(block))
        if stop.is_set() or _size(part) > shard.bytes:
            return


def _fetch_beside(remote: RemoteFolder, name: str, target: Path) -> None:
    """Fetch a small file that may be beside the shards; where it is not, it is not in the folder either."""
    try:
        content = remote.content(name)
    except RemoteError as error:
        if not error.is_missing:
            raise ListError([f"{remote.address(name)}: {error}"]) from error
        target.unlink(missing_ok=True)
        return
    write_atomic(target, content)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr, flush=True)
