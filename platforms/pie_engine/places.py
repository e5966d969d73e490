"""Where a request's data and start weights are: in folders of this machine, or in an S3-compatible store."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platforms.pie_engine.dataset import SPLITS, task_of_folder, task_of_names
from platforms.pie_engine.errors import RequestError
from platforms.pie_engine.nets import CHANGE
from platforms.pie_engine.prefetch import Found, fetch, list_data
from platforms.pie_engine.storage import (
    LOCAL,
    SCHEME,
    ObjectGoneError,
    StorageError,
    Store,
    as_prefix,
    open_store,
    split_url,
)
from platforms.pie_engine.traincfg import Values

DATASET_ROOT, DATASET_ID = "PIE_DATASET_ROOT", "AI_DATASET_ID"  # of the environment
WORK = Path(".pie_engine")  # what a training needs beside output/
COMPAT = Path(__file__).resolve().parent.parent / "compat"

Log = Callable[[str], None]


@dataclass(frozen=True)
class FolderSource:
    """A data set in a folder of this machine. `name` is what messages call a source."""

    path: Path
    is_local = True

    @property
    def name(self) -> str:
        """The folder."""
        return f"{self.path}/"

    def task(self) -> str:
        """Return the task that the data are for."""
        return task_of_folder(self.path)

    def folder(self, log: Log) -> Path:
        """Return the folder."""
        return self.path


@dataclass(frozen=True)
class StoreSource:
    """A data set in a store, listed."""

    store: Store
    found: Found
    is_local = False

    @property
    def name(self) -> str:
        """The URL."""
        return self.found.url

    def task(self) -> str:
        """Return the task that the data are for."""
        task = task_of_names(self.found.url, [*self.found.objects, *self.found.others])
        folders = {name.rpartition("/")[0] for name in self.found.objects}
        needed = ("A", "B", "labels") if task == CHANGE else ("images", "labels")
        empty = [f"{split}/{name}" for split in SPLITS for name in needed if f"{split}/{name}" not in folders]
        if empty:
            raise RequestError([f"{self.found.url}{name}/: there are no objects below this prefix" for name in empty])
        return task

    def folder(self, log: Log) -> Path:
        """Return a folder with links to all objects."""
        return fetch(self.store, self.found, WORK / "dataset", log)


Source = FolderSource | StoreSource


def find_source(values: Values) -> Source:
    """Return the data set that `dataset_path`, else `dataset_id` names. Raises RequestError."""
    access = None if _text(values, "dataset_path").strip() else _platforms_access(values)
    place, client = (str(access.path), access.s3) if access is not None else (data_place(values), None)
    if not place.startswith(SCHEME):
        return FolderSource(Path(place))
    try:
        bucket, key = split_url(place)
        if bucket == LOCAL and client is None:
            return FolderSource(Path("/", key))
        store = open_store(bucket, client)
        return StoreSource(store, list_data(store, as_prefix(key)))
    except StorageError as error:
        raise RequestError([str(error)]) from error


def find_resume(values: Values) -> str:
    """Return the file of weights that `resume_path` names, "" for none; one in a store is fetched.

    Raises RequestError where it is not there.
    """
    place, name = _text(values, "resume_path").strip(), _text(values, "model_name")
    if not place or is_remote(place):
        return _fetched_weights(place, name, _platforms_client(values)) if place else ""
    path = Path(place)
    file = path if path.is_file() else path / f"{name}.th"
    if not file.is_file():
        raise RequestError([f"resume_path: there is no file {file}; leave it empty to train from the beginning"])
    return str(file.absolute())


def is_remote(place: str) -> bool:
    """Return whether a place is in a store."""
    return place.startswith(SCHEME)


def data_place(values: Values) -> str:
    """Return the folder or URL of the data set. Raises RequestError where nothing names it."""
    if path := _text(values, "dataset_path").strip():
        return path
    return dataset_url(_text(values, "dataset_id").strip() or os.environ.get(DATASET_ID, "").strip())


def dataset_url(dataset_id: str) -> str:
    """Return the folder or URL of a data set by its id. Raises RequestError where nothing says where it is."""
    root = os.environ.get(DATASET_ROOT, "").strip()
    if dataset_id and root:
        if dataset_id in (".", "..") or "/" in dataset_id or "\\" in dataset_id:
            raise RequestError([f'dataset_id must be the name of a folder below {DATASET_ROOT}, got "{dataset_id}"'])
        return f"{root.rstrip('/')}/{dataset_id}"
    lacking = f"the environment's {DATASET_ROOT}" if dataset_id else f"dataset_id, and the environment's {DATASET_ID},"
    verb = "is not set" if dataset_id else "are empty"
    hint = f"set dataset_path to a folder or s3:// URL, or {DATASET_ROOT} to what holds <dataset_id>/"
    raise RequestError([f"no data set: {lacking} {verb}; {hint}"])


def _platforms_access(values: Values) -> Any:
    """Return the access to the data set by the aiUtils that the platform has built in, None where there is none."""
    spec = importlib.util.find_spec("aiUtils")
    if spec is None or (spec.origin and Path(spec.origin).resolve().parent == COMPAT):
        return None
    module = importlib.import_module("aiUtils")
    dataset_id = _text(values, "dataset_id").strip()
    try:
        return module.aiUtils.s3GetImg(*([dataset_id] if dataset_id else []))
    except Exception as error:
        raise RequestError([f'the platform\'s aiUtils cannot open the data set "{dataset_id}": {error}']) from error


def _platforms_client(values: Values) -> Any:
    """Return the client of the platform's aiUtils, None where there is none, or where it cannot open the data set."""
    try:
        access = _platforms_access(values)
    except RequestError:  # told where the data set is looked for
        return None
    return None if access is None else access.s3


def _fetched_weights(url: str, name: str, client: Any) -> str:
    try:
        bucket, key = split_url(url)
        store = open_store(bucket, client)
        keys = [key] if key.endswith(".th") else [f"{as_prefix(key)}{name}.th", *([key] if key[-1:] not in "/" else [])]
        target = WORK / "resume" / f"{name}.th"
        target.parent.mkdir(parents=True, exist_ok=True)
        for each in keys:
            try:
                store.download(each, target)
                return str(target.absolute())
            except ObjectGoneError:
                continue
        asked = " and ".join(f"{SCHEME}{bucket}/{each}" for each in keys)
        hint = "leave it empty to train from the beginning"
        raise RequestError([f"resume_path: there is no object {asked}; {hint}"])
    except StorageError as error:
        raise RequestError([f"resume_path: {error}"]) from error


def _text(values: Values, key: str) -> str:
    """Return a text, which may be a number in the file; "" for anything else, which `read_request` tells."""
    value = values.get(key)
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
