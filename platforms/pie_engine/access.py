"""A data set as users' scripts reach it: the platform's `aiUtils.s3GetImg`, with its names."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UserError
from platforms.pie_engine.dataset import SPLITS, SUFFIXES
from platforms.pie_engine.places import data_place
from platforms.pie_engine.storage import (
    LOCAL,
    SCHEME,
    Listed,
    ObjectGoneError,
    Store,
    as_prefix,
    folder_url,
    new_client,
    open_store,
    split_url,
)

THREADS = 16
Result = TypeVar("Result")


class DatasetAccess:
    """The access to one data set: its address, its bucket, and what can be done with the objects in it.

    Every method takes a key or an s3:// URL, and raises RuntimeError, as the platform's do.
    """

    def __init__(self, datasetId: str | None = None) -> None:
        place = _raising(lambda: data_place({"dataset_id": datasetId or ""}))
        url = place if place.startswith(SCHEME) else folder_url(Path(place))
        self.bucketName, prefix = _raising(lambda: split_url(url))
        self.path = f"{SCHEME}{self.bucketName}/{as_prefix(prefix)}"  # with a slash: scripts write path + "train/"

    @cached_property
    def s3(self) -> Any:
        """The boto3 client."""
        return _raising(new_client)

    @cached_property
    def gdal(self) -> Any:
        """GDAL's Python bindings, set up for the store as the client is; None where they are not installed."""
        if importlib.util.find_spec("osgeo") is None:
            return None
        from osgeo import gdal

        gdal.UseExceptions()
        endpoint = "" if self.bucketName == LOCAL else str(self.s3.meta.endpoint_url)
        if endpoint and "amazonaws.com" not in endpoint:
            scheme, _, host = endpoint.partition("://")
            gdal.SetConfigOption("AWS_S3_ENDPOINT", host)
            gdal.SetConfigOption("AWS_HTTPS", "YES" if scheme == "https" else "NO")
            gdal.SetConfigOption("AWS_VIRTUAL_HOSTING", "FALSE")
        return gdal

    def getImages(self, datasetPath: str, is_xml: bool = False) -> list[str]:
        """Return the keys of the pictures below a prefix, sorted; with `is_xml` also of XML."""
        endings = (*SUFFIXES, ".xml") if is_xml else SUFFIXES
        names = ((key, key.rpartition("/")[2]) for key in self.getFileList(datasetPath))
        keys = [key for key, name in names if name.lower().endswith(endings) and not name.startswith(".")]
        if not keys:
            raise RuntimeError(f"{datasetPath}: there are no pictures below this prefix; endings: {' '.join(endings)}")
        return keys

    def getImgXmlArray(self, dataPath: str) -> bytes:
        """Return the bytes of one object."""
        store, key = self._place(dataPath)
        return _raising(lambda: store.read(key))

    def downS3Weight(self, file_name: str, upload_key: str) -> bool:
        """Write the object `upload_key` into the file `file_name`; return False where there is no such object."""
        store, key = self._place(upload_key)
        target = Path(file_name)

        def download() -> bool:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                store.download(key, target)
            except ObjectGoneError:
                return False
            return True

        return _raising(download)

    def getFileList(self, filepath: str) -> list[str]:
        """Return all keys below a prefix, sorted."""
        return [listed.key for listed in self._listed(filepath)]

    def getObjectSize(self, dataPath: str) -> int:
        """Return the bytes of an object."""
        store, key = self._place(dataPath)
        return _raising(lambda: store.size(key))

    def pullImage(self, filepath: str, upload_key: str | None = None) -> None:
        """Download the data set's train and valid into a folder, or one object."""
        folder = Path(filepath)
        if upload_key is not None:
            store, key = self._place(upload_key)
            _raising(lambda: folder.mkdir(parents=True, exist_ok=True))
            _raising(lambda: store.download(key, _below(folder, key.rpartition("/")[2])))
            return
        store, prefix = self._place(self.path)
        found = [listed for split in SPLITS for listed in self._listed(f"{self.path}{split}/")]
        targets = [_below(folder, listed.key.removeprefix(prefix)) for listed in found]
        for parent in {target.parent for target in targets}:
            _raising(functools.partial(parent.mkdir, parents=True, exist_ok=True))
        with ThreadPoolExecutor(THREADS) as pool:
            work = [pool.submit(store.download, one.key, place) for one, place in zip(found, targets, strict=True)]
            for future in work:
                _raising(future.result)

    def _listed(self, place: str) -> list[Listed]:
        store, key = self._place(place)
        prefix = as_prefix(key)
        return sorted(_raising(lambda: [*store.list(prefix)]), key=lambda listed: listed.key)

    def _place(self, place: str) -> tuple[Store, str]:
        """Return the store and the key of an s3:// URL, or of a key in the data set's own bucket."""
        bucket, key = _raising(lambda: split_url(place)) if place.startswith(SCHEME) else (self.bucketName, place)
        return _raising(lambda: open_store(bucket, None if bucket == LOCAL else self.s3)), key


def _below(folder: Path, name: str) -> Path:
    """Return a file below a folder. Raises RuntimeError for a name that leads out of it."""
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise RuntimeError(f'"{name}" is no name of a file below {folder}')
    return folder / name


def _raising(work: Callable[[], Result]) -> Result:
    """Return what `work` returns; a mistake or a fault of the store or disk is the platform's RuntimeError."""
    try:
        return work()
    except UserError as error:
        raise RuntimeError(str(error)) from None
    except OSError as error:
        raise RuntimeError(f"{error.filename}: {error.strerror}") from None
