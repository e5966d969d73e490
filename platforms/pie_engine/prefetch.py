"""A data set of an S3-compatible store as a folder: its objects in a cache by key, size and ETag, and links to them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.atomic_io import ResultsError
from platforms.pie_engine.dataset import SPLITS
from platforms.pie_engine.direct import Wanted, fetch_many, site_of
from platforms.pie_engine.storage import SCHEME, Listed, ObjectGoneError, S3Store, Store

CACHE_DIR = "PIE_CACHE_DIR"  # of the environment
DEFAULT_CACHE = "cache"
FOLDERS = ("images", "labels", "A", "B")
THREADS = 32
SHOWN_OBJECTS = 1000  # of a data set without one that counts
MANY = 2000  # objects that are worth processes of their own


@dataclass(frozen=True)
class Found:
    """The objects of a data set by their names below it, "train/images/1.jpg"; `others` are names of no use to it."""

    url: str
    objects: dict[str, Listed]
    others: tuple[str, ...] = ()


def list_data(store: Store, prefix: str) -> Found:
    """Return a data set's objects but hidden ones; of each other folder a name is in `others`. Raises StorageError."""
    objects: dict[str, Listed] = {}
    others: dict[str, str] = {}  # one name of each folder

    def note(name: str) -> None:
        folder, _, last = name.rpartition("/")
        if last and not last.startswith("."):
            others.setdefault(folder, name)

    with ThreadPoolExecutor(len(SPLITS)) as pool:
        for found in pool.map(lambda split: [*store.list(f"{prefix}{split}/")], SPLITS):
            for listed in found:
                name = listed.key.removeprefix(prefix)
                _, _, rest = name.partition("/")
                folder, _, last = rest.partition("/")
                if folder in FOLDERS and last and "/" not in last and not last.startswith("."):
                    objects[name] = listed
                else:
                    note(name)
    if not objects:  # in other folders perhaps
        for listed in itertools.islice(store.list(prefix), SHOWN_OBJECTS):
            note(listed.key.removeprefix(prefix))
    return Found(f"{SCHEME}{store.bucket}/{prefix}", objects, tuple(others.values()))


def fetch(store: Store, found: Found, folder: Path, log: Callable[[str], None]) -> Path:
    """Make a folder with all objects of a data set, and return it. Raises StorageError, ResultsError.

    An object that has vanished or changed since it was listed is an empty file: a bad sample, which the training
    counts as one.
    """
    cache = cache_folder()
    places = [(listed, cache_path(cache.absolute(), store.bucket, listed)) for listed in found.objects.values()]
    try:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in {folder / Path(name).parent for name in found.objects}:
            parent.mkdir(parents=True, exist_ok=True)
        missing = [place for place in places if not is_whole(*place)]
        gone = _download(store, missing, cache)
        for key in sorted(gone)[:20]:
            log(f"warning: {SCHEME}{store.bucket}/{key} has vanished or changed since it was listed")
        for name, (listed, path) in zip(found.objects, places, strict=True):
            if listed.key in gone:
                (folder / name).touch()
            else:
                (folder / name).symlink_to(path)
    except OSError as error:
        raise ResultsError(f"{error.filename or cache}: cannot write it: {error.strerror}") from error
    log(f"{found.url}: {len(found.objects)} objects, {len(missing)} of them fetched, the others in {cache}")
    return folder


def cache_folder() -> Path:
    """Return the folder of the cache."""
    return Path(os.environ.get(CACHE_DIR, "").strip() or DEFAULT_CACHE)


def cache_path(cache: Path, bucket: str, listed: Listed) -> Path:
    """Return where an object is kept: a name that no key can lead out of the cache with."""
    digest = hashlib.sha256(json.dumps([bucket, listed.key, listed.size, listed.etag]).encode()).hexdigest()
    return cache / "objects" / digest[:2] / digest


def is_whole(listed: Listed, path: Path) -> bool:
    """Return whether a file holds all of an object."""
    try:
        return path.stat().st_size == listed.size
    except OSError:
        return False


def _download(store: Store, wanted: Sequence[Wanted], cache: Path) -> set[str]:
    """Fetch objects into the cache; return the keys of those that are gone."""
    for number in range(256):
        (cache / "objects" / f"{number:02x}").mkdir(parents=True, exist_ok=True)
    with tqdm(desc="fetching", total=len(wanted), leave=False, disable=None, file=sys.stderr) as bar:
        site = site_of(store.client, store.bucket) if isinstance(store, S3Store) and store.is_own else None
        if site and len(wanted) >= MANY:
            for count in fetch_many(site, wanted):
                bar.update(count)
            wanted = [place for place in wanted if not is_whole(*place)]
            bar.update(bar.total - len(wanted) - bar.n)
        return _download_patiently(store, wanted, bar)


def _download_patiently(store: Store, wanted: Sequence[Wanted], bar: tqdm[Any]) -> set[str]:
    gone: set[str] = set()
    pool = ThreadPoolExecutor(THREADS)
    try:
        waiting: dict[Future[None], str] = {
            pool.submit(store.download, listed.key, path, listed): listed.key for listed, path in wanted
        }
        for future in as_completed(waiting):
            bar.update()
            with contextlib.suppress(ObjectGoneError):
                future.result()
                continue
            gone.add(waiting[future])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # a signal, or the first error, ends the others
    return gone
