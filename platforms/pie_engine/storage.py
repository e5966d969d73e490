"""Objects in an S3-compatible store, or in a folder that stands for one: listed, read and downloaded, patiently."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from common.atomic_io import atomic_path, writing
from platforms.base import PlatformError

SCHEME = "s3://"
LOCAL = "local"  # the bucket that a folder's keys are in
INSTALL = "reading from S3 needs boto3, which is not installed: pip install -r requirements-pie.txt"
PAUSES_S = (2.0, 4.0, 8.0, 16.0)  # between five tries
CHUNK_BYTES = 1 << 20
PASSING_CODES = {
    *("SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "InternalError"),
    *("ServiceUnavailable", "OperationAborted", "BandwidthLimitExceeded"),
}
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
Result = TypeVar("Result")


class StorageError(PlatformError):
    """A store that does not answer, or refuses; the message names bucket and key, and no credentials."""


class ObjectGoneError(StorageError):
    """An object that is not there, or is no longer what was listed."""


@dataclass(frozen=True)
class Listed:
    """An object as its listing has it."""

    key: str
    size: int
    etag: str


class Store(Protocol):
    """The objects of one bucket."""

    bucket: str

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield the objects below a prefix, without those that stand for folders. Raises StorageError."""

    def read(self, key: str) -> bytes:
        """Return an object's bytes. Raises StorageError."""

    def size(self, key: str) -> int:
        """Return the bytes of an object. Raises StorageError."""

    def download(self, key: str, target: Path, listed: Listed | None = None) -> None:
        """Write an object into a file, whole or not at all. Raises StorageError, ResultsError.

        It must still be what was `listed`.
        """


def split_url(url: str) -> tuple[str, str]:
    """Return bucket and key of an s3:// URL. Raises StorageError for one without a bucket."""
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not bucket:
        raise StorageError(f'"{url}" is no address such as {SCHEME}bucket/folder/')
    return bucket, key


def as_prefix(key: str) -> str:
    """Return the prefix of a folder: with a slash at its end, so that images2/ is no part of images/."""
    return key if not key or key.endswith("/") else f"{key}/"


def folder_url(folder: Path) -> str:
    """Return the s3:// URL that stands for a folder."""
    return f"{SCHEME}{LOCAL}{as_prefix(folder.resolve().as_posix())}"


def open_store(bucket: str, client: Any = None) -> Store:
    """Return the store of a bucket: this machine's files for LOCAL, else S3 through a boto3 client, or a new one.

    Raises StorageError.
    """
    if bucket == LOCAL and client is None:
        return FolderStore()
    return S3Store(bucket, client or new_client(has_dates=False), is_own=client is None)


def new_client(*, has_dates: bool = True) -> Any:
    """Return a boto3 S3 client with boto3's own credentials, region and endpoint. Raises StorageError.

    Checksums only where the store requires them: Aliyun OSS and older stores refuse boto3's default since 1.36. Without
    dates, which stay texts, a listing takes a third of the time.
    """
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise StorageError(INSTALL) from error
    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": 1},  # `patiently` tries again, also where a body breaks off
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=64,
    )
    try:
        session = botocore.session.Session()
        if not has_dates:
            session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        return boto3.session.Session(botocore_session=session).client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"S3 cannot be used: {without_secrets(str(error))}") from error


class S3Store:
    """A bucket of an S3-compatible store. `is_own`: the client has boto3's own credentials, and is not another's."""

    def __init__(self, bucket: str, client: Any, *, is_own: bool = False) -> None:
        self.bucket, self.client, self.is_own = bucket, client, is_own

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield the objects below a prefix, however many thousands."""
        further: dict[str, str] = {}
        while True:
            arguments = {"Bucket": self.bucket, "Prefix": prefix, **further}
            page = self._patiently(functools.partial(self.client.list_objects_v2, **arguments), prefix)
            rows = page.get("Contents", [])
            for row in rows:
                if not row["Key"].endswith("/"):
                    yield Listed(row["Key"], int(row["Size"]), str(row.get("ETag", "")).strip('"'))
            if not page.get("IsTruncated") or not rows:
                return
            token = page.get("NextContinuationToken")
            further = {"ContinuationToken": token} if token else {"StartAfter": rows[-1]["Key"]}

    def read(self, key: str) -> bytes:
        """Return an object's bytes."""

        def get() -> bytes:
            response = self.client.get_object(Bucket=self.bucket, Key=key)
            content: bytes = response["Body"].read()
            return content

        return self._patiently(get, key)

    def size(self, key: str) -> int:
        """Return the bytes of an object."""
        response = self._patiently(lambda: self.client.head_object(Bucket=self.bucket, Key=key), key)
        return int(response["ContentLength"])

    def download(self, key: str, target: Path, listed: Listed | None = None) -> None:
        """Write an object into a file, whole or not at all."""

        def get() -> None:
            match = {"IfMatch": f'"{listed.etag}"'} if listed and listed.etag else {}
            response = self.client.get_object(Bucket=self.bucket, Key=key, **match)
            etag = str(response.get("ETag", "")).strip('"')
            if listed and (etag != listed.etag or int(response["ContentLength"]) != listed.size):
                raise ObjectGoneError(f"{SCHEME}{self.bucket}/{key}: it has changed since it was listed")
            with writing(target), atomic_path(target, durable=False) as temporary, temporary.open("wb") as file:
                for chunk in response["Body"].iter_chunks(CHUNK_BYTES):
                    file.write(chunk)

        self._patiently(get, key)

    def _patiently(self, work: Callable[[], Result], key: str) -> Result:
        """Return what `work` returns; try it again after faults that may pass. Raises StorageError."""
        for pause_s in (*PAUSES_S, None):
            try:
                return work()
            except PlatformError:
                raise
            except Exception as error:  # botocore's, whose classes are not known where the client is another's
                if pause_s is None or not _may_pass(error):
                    self._explain(error, key)
            time.sleep(pause_s)
        raise AssertionError

    def _explain(self, error: Exception, key: str) -> NoReturn:
        """Raise a StorageError about an error of botocore's; the error itself where it is a bug."""
        where = f"{SCHEME}{self.bucket}/{key}"
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:  # ClientError
            code, message = str(response["Error"].get("Code", "")), str(response["Error"].get("Message", ""))
            if code in ("404", "NoSuchKey", "412", "PreconditionFailed"):
                what = (
                    "there is no such object" if code in ("404", "NoSuchKey") else "it has changed since it was listed"
                )
                raise ObjectGoneError(f"{where}: {what}") from error
            raise StorageError(f"{where}: the store says {without_secrets(f'{code}: {message}')}") from error
        if type(error).__module__.partition(".")[0] not in ("botocore", "boto3", "urllib3", "s3transfer"):
            raise error
        text = without_secrets(str(error) or type(error).__name__)
        hint = "; credentials, region and endpoint are boto3's: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3 and others"
        raise StorageError(f"{where}: {text}{hint}") from error


class FolderStore:
    """This machine's files as objects: the key "abs/folder/1.jpg" is the file /abs/folder/1.jpg."""

    bucket = LOCAL

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield the files below a folder that are there."""
        for folder, names, files in os.walk(self._path(prefix)):
            names.sort()
            for name in sorted(files):
                path = Path(folder, name)
                try:
                    status = path.stat()
                except OSError:  # a broken link
                    continue
                yield Listed(path.as_posix().lstrip("/"), status.st_size, f"{status.st_mtime_ns}")

    def read(self, key: str) -> bytes:
        """Return a file's bytes."""
        return self._opened(key, Path.read_bytes)

    def size(self, key: str) -> int:
        """Return the bytes of a file."""
        return self._opened(key, lambda path: path.stat().st_size)

    def download(self, key: str, target: Path, listed: Listed | None = None) -> None:
        """Copy a file, whole or not at all."""
        content = self.read(key)
        with writing(target), atomic_path(target, durable=False) as temporary:
            temporary.write_bytes(content)

    def _path(self, key: str) -> Path:
        if ".." in key.split("/"):
            raise StorageError(f'{SCHEME}{LOCAL}/{key}: a key cannot hold ".."')
        return Path("/", key)

    def _opened(self, key: str, use: Callable[[Path], Result]) -> Result:
        try:
            return use(self._path(key))
        except FileNotFoundError as error:
            raise ObjectGoneError(f"{SCHEME}{LOCAL}/{key}: there is no such object") from error
        except OSError as error:
            raise StorageError(f"{SCHEME}{LOCAL}/{key}: it cannot be read: {error.strerror}") from error


def without_secrets(text: str) -> str:
    """Return a text without credentials of the environment, or of a URL, and cut to one line of 300 letters."""
    for name in SECRETS:
        if value := os.environ.get(name, ""):
            text = text.replace(value, "***")
    text = re.sub(r"//[^/@\s]+@", "//***@", text)
    return " ".join(text.split())[:300]


def _may_pass(error: Exception) -> bool:
    """Return whether a fault of the store or of the way to it may pass by itself."""
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = response["Error"].get("Code")
        return code in PASSING_CODES or status == 429 or (isinstance(status, int) and status >= 500)
    names = {kind.__name__ for kind in type(error).__mro__}
    is_of_the_way = {
        *("HTTPClientError", "ConnectionError", "IncompleteReadError", "ProtocolError", "ReadTimeoutError"),
        *("ResponseStreamingError", "TimeoutError"),
    }
    return bool(names & is_of_the_way) and "ProxyConnectionError" not in names
