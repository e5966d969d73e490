"""Files in a folder at an address that fsspec reads (s3://, https://, sftp://, ...), read patiently."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from common.errors import UserError
from common.formatting import first_line

INSTALL = "pip install -r requirements-remote.txt"
MISSING, REFUSED = (404, 410), (401, 403)  # HTTP's
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")  # botocore's
PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between five tries
BLOCK_BYTES = 16 * 2**20

T = TypeVar("T")


class RemoteError(UserError):
    """An address that gives no file; the message is one sentence. `is_missing`: it answers, but not with the file."""

    def __init__(self, sentence: str, *, is_missing: bool = False) -> None:
        super().__init__(sentence)
        self.is_missing = is_missing


@dataclass(frozen=True)
class RemoteFolder:
    """A folder: a file system of fsspec's, its path there, and its address, for messages without a password."""

    system: Any
    path: str
    url: str = field(repr=False)

    @property
    def shown(self) -> str:
        """Return the address for messages."""
        return without_password(self.url)

    def address(self, file: str) -> str:
        """Return the address of a file, for messages."""
        return f"{self.shown}/{file}"

    def content(self, file: str) -> bytes:
        """Return the bytes of a small file. Raises RemoteError."""
        return self.patiently(lambda: bytes(self.system.cat_file(f"{self.path}/{file}")))

    def gives_ranges(self, file: str, size: int) -> bool:
        """Return whether a part of a file can be read by itself, which simple HTTP servers do not give."""
        if not self.path.startswith("http"):
            return True
        with self._opened(file, size) as source:
            source.seek(1)
            try:
                return bool(source.read(1))
            except ValueError:  # fsspec's
                return False

    def blocks(self, file: str, size: int, start: int | None) -> Iterator[bytes]:
        """Yield the bytes of a file of `size` bytes from `start` on; for None all of them, without asking for ranges.

        Raises each driver's own errors.
        """
        with self._opened(file, size, BLOCK_BYTES if start is not None else 0) as source:
            if start:
                source.seek(start)
            while block := source.read(BLOCK_BYTES):
                yield block

    def patiently(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; try again after faults that may pass. Raises RemoteError, UserError."""
        for pause_s in (*PAUSES_S, None):
            try:
                return work()
            except UserError:
                raise
            except Exception as error:  # each driver has errors of its own
                status = getattr(error, "status", None)
                if isinstance(error, FileNotFoundError) or status in MISSING:
                    raise RemoteError("it is not there", is_missing=True) from error
                is_refused = isinstance(error, PermissionError) or type(error).__name__ in NO_CREDENTIALS
                if is_refused or status in REFUSED:
                    raise RemoteError(f"it may not be read: {first_line(error)}", is_missing=True) from error
                if pause_s is None:
                    raise RemoteError(f"it cannot be reached: {first_line(error)}") from error
            time.sleep(pause_s)
        raise AssertionError

    def _opened(self, file: str, size: int, block_bytes: int = BLOCK_BYTES) -> Any:
        path = f"{self.path}/{file}"
        return self.system.open(path, "rb", block_size=block_bytes, cache_type="none", size=size)


def open_folder(address: str) -> RemoteFolder:
    """Return the folder at an address, without asking it. Raises RemoteError where the driver is not installed."""
    options: dict[str, Any] = {}
    try:
        if address.startswith("http"):  # by itself it gives a file five minutes, however large it is
            limits = importlib.import_module("aiohttp").ClientTimeout(total=None, sock_connect=20, sock_read=60)
            options = {"client_kwargs": {"timeout": limits}}
        system, path = importlib.import_module("fsspec").url_to_fs(address, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:  # no driver, or no such protocol
        raise RemoteError(f"{first_line(error)}; {INSTALL} adds s3:// and https://") from error
    return RemoteFolder(system, path.rstrip("/"), address)


def without_password(address: str) -> str:
    """Return an address for messages."""
    return re.sub(r"//[^/@\s]+@", "//***@", address)
