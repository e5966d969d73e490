"""Packs at addresses (s3://, https://, ...): fetched whole into a folder, or streamed, and read there as local ones.

NAME-meta.json lists the shards with their sha256, so nothing else has to be listed, which HTTP cannot. Each packing has
a folder of its own, by the bytes of its meta.json: what is there is never replaced under a training that reads it.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from common.atomic_io import move_into_place, write_atomic
from common.file_lock import lock_file
from common.formatting import size_text
from configs.schema import Config
from data_loader.packs import ENDING, HEADS_ENDING, META_ENDING, heads_path, index_path
from data_loader.remote_files import RemoteError, RemoteFolder, open_folder, without_password
from data_loader.samples import CLASS_NAMES_FILE, ListError
from data_loader.shard_fetching import OTHER_DISK, RemoteShard, fetch_part, part_of, shards_of, size_of, write_problem
from data_loader.streamed_packs import begin_stream

FOLDER = "packs"  # in data_cache_dir
PATTERN = re.compile(rf"(.+)/([^/*?\[\]#]+)-\*{ENDING}", re.DOTALL)
BESIDE = (CLASS_NAMES_FILE, "classes.json")  # files that give a pack's labels other names, or its masks other values
LOCK = ".lock"
THREADS = 8  # shards fetched at once
_ONE = threading.Lock()  # a lock file excludes other processes alone


def is_address(text: str) -> bool:
    """Return whether a config's list is an address, such as s3://bucket/packs/P-*-tfrecord."""
    return "://" in text and text.endswith(ENDING)


def local_packs(config: Config) -> Config:
    """Return a config whose packs are local ones: those at addresses are fetched, or streamed. Raises ListError."""
    keys = [
        key for key in ("train_data_file", "val_data_file", "unlabelled_data_file") if is_address(getattr(config, key))
    ]
    found = {key: local_list(getattr(config, key), config) for key in keys}
    return config.model_copy(update=found) if found else config


def local_list(file: str, config: Config) -> str:
    """Return one of a config's lists; of a pack at an address, `local_pattern` of it. Raises ListError."""
    most = config.streamed_shards if file == config.train_data_file else 0
    return local_pattern(file, config.data_cache_dir, most)


def local_pattern(pattern: str, cache_dir: str, most: int = 0) -> str:
    """Return the pattern of a pack's shards on this disk, fetched where it is an address. Raises ListError.

    With `most` they are streamed: so many lie there at once. The address is asked once in a process. Where it does not
    answer, what was fetched of it last is used.
    """
    if not is_address(pattern):
        return pattern
    with _ONE:
        return _fetched(pattern, str(Path(cache_dir, FOLDER).absolute()), most)


def count_records(pattern: str) -> int:
    """Return how many records the pack at an address has, by its meta.json. Raises ListError."""
    remote, name = _named(pattern)
    where = remote.address(name + META_ENDING)
    try:
        meta = remote.content(name + META_ENDING)
    except RemoteError as error:
        raise ListError([f"{where}: {error}"]) from error
    shards_of(remote, name, meta)
    total = json.loads(meta).get("total")
    if type(total) is not int:
        raise ListError([f"{where}: expected what package/tfrecord writes: it has no total"])
    return total


def _named(pattern: str) -> tuple[RemoteFolder, str]:
    """Return the folder that an address names, and the name of the pack in it. Raises ListError."""
    found = PATTERN.fullmatch(pattern)
    try:
        if found is None:
            raise RemoteError(
                f"an address names one pack, such as s3://bucket/packs/P-*{ENDING}, whose P{META_ENDING} is there"
            )
        return open_folder(found[1]), found[2]
    except RemoteError as error:
        raise ListError([f"{without_password(pattern)}: {error}"]) from error


@functools.cache
def _fetched(pattern: str, cache_dir: str, most: int) -> str:
    remote, name = _named(pattern)
    kind = "-streamed" if most else ""
    place = Path(cache_dir, f"{name}-{hashlib.sha256(pattern.encode()).hexdigest()[:8]}{kind}")
    try:
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            while True:  # another training may fetch the same
                try:
                    stack.enter_context(lock_file(place / LOCK))
                    break
                except BlockingIOError:
                    time.sleep(0.2)
            return str(_newest(remote, name, place, most) / f"{name}-*{ENDING}")
    except OSError as error:
        raise ListError([write_problem(place, remote, error)]) from error


def _newest(remote: RemoteFolder, name: str, place: Path, most: int) -> Path:
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
    shards = shards_of(remote, name, meta)
    folder.mkdir(exist_ok=True)
    if most:
        _begin_stream(remote, shards, shards_of(remote, name, meta, HEADS_ENDING), folder, most)
    else:
        _fetch_missing(remote, shards, folder)
    for beside in BESIDE:
        _fetch_beside(remote, beside, folder / beside)
    write_atomic(folder / meta_file, meta)  # anew each time: the newest is the one that was used last
    return folder


def _fetch_missing(remote: RemoteFolder, shards: Sequence[RemoteShard], folder: Path) -> None:
    """Fetch the shards that a folder lacks; what came of one is kept for the next start. Raises ListError, OSError."""
    missing = [shard for shard in shards if not _is_whole(folder, shard)]
    if not missing:
        return
    needed = sum(shard.bytes - size_of(part_of(folder, shard.file)) for shard in missing)
    _check_room(remote, folder, needed)
    _note(f"{remote.shown}: fetching {size_text(needed)} into {folder}")
    with tqdm(total=needed, unit="B", unit_scale=True, desc="fetching", leave=False, disable=None) as bar:

        def fetch(shard: RemoteShard, stop: threading.Event) -> None:
            if fetch_part(remote, shard, folder, stop, bar.update):
                move_into_place(part_of(folder, shard.file), folder / shard.file)

        _each(fetch, missing, THREADS)


def _begin_stream(
    remote: RemoteFolder, shards: Sequence[RemoteShard], heads: Sequence[RemoteShard], folder: Path, most: int
) -> None:
    """Begin to stream a pack: fetch the heads, or make them of the shards, all of which come once for it.

    Raises ListError, StreamError, OSError.
    """
    stream = begin_stream(folder, remote.url, shards, most)
    there = sum(size_of(path) for path in folder.glob(f"*{ENDING}*"))
    _check_room(remote, folder, min(most, len(shards)) * max(shard.bytes for shard in shards) - there)
    if heads:
        _fetch_missing(remote, heads, folder)
        return
    missing = [shard for shard in shards if not heads_path(str(folder / shard.file)).exists()]
    if not missing:
        return
    needed = sum(shard.bytes for shard in missing)
    _note(f"{remote.shown}: reading the labels of {size_text(needed)}, of which {most} shards lie in {folder} at once")
    with tqdm(total=needed, unit="B", unit_scale=True, desc="reading labels", leave=False, disable=None) as bar:

        def make(shard: RemoteShard, stop: threading.Event) -> None:
            stream.write_heads(shard.file, stop)
            bar.update(shard.bytes)

        _each(make, missing, min(THREADS, most))


def _each(work: Callable[[RemoteShard, threading.Event], None], shards: Sequence[RemoteShard], threads: int) -> None:
    """Do some work for each shard, several at once."""
    stop = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        works = [pool.submit(work, shard, stop) for shard in shards]
        try:
            for each in as_completed(works):
                each.result()
        finally:  # after a mistake, or Ctrl-C, the others end with the block that they read
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _check_room(remote: RemoteFolder, folder: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        sizes = f"{size_text(needed)} are to be fetched into {folder}, and {size_text(free)} are free"
        raise ListError([f"{remote.shown}: {sizes}; {OTHER_DISK}"])


def _is_whole(folder: Path, shard: RemoteShard) -> bool:
    path = folder / shard.file
    return index_path(str(path)).exists() and path.exists() and path.stat().st_size == shard.bytes


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


def _note(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr, flush=True)
