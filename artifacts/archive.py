"""Archives of torch that stand on the disk whole or not at all, and that tell when they no longer are."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from artifacts.errors import ArtifactError

_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error)

MARK = b"sha256 "  # what the archive's comment starts with; the digest of all that stands before the comment follows
SEAL_BYTES = len(MARK) + 64
_LENGTH_BYTES = 2  # of the comment's length, the last field of an archive without a comment


def write_archive(path: Path, save: Callable[[BinaryIO], object], *, earlier: int = 0) -> None:
    """Write a zip archive to a temporary file in the same folder, seal it with its sha256, fsync, rename, fsync.

    `save` writes the archive; `earlier` is how many of the files that stood there before are kept. Whatever happens,
    the old file or the new one stands there whole. Raises OSError, and what `save` raises.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            save(file)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        if earlier and path.exists():
            _keep_as_earlier(path, earlier)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_whole(path: Path) -> bool:
    """Hold an archive against its digest, or one without against its checksums; say whether it is an archive at all.

    Raises ArtifactError where it is damaged, OSError.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise ArtifactError(f"{path}: it is empty")
        file.seek(max(0, size - SEAL_BYTES))
        seal = file.read()
        file.seek(0)
        if seal.startswith(MARK):
            if _sha256(file, size - SEAL_BYTES) != seal.removeprefix(MARK):
                raise ArtifactError(f"{path}: it is damaged: it does not match its sha256")
            return True
        start = file.read(2)
    if start != b"PK" and not zipfile.is_zipfile(path):
        return False
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        if archive.comment:  # torch writes none: it was our seal
            raise ArtifactError(f"{path}: it is damaged: its sha256 cannot be read")
    return True


def is_whole(path: Path) -> bool:
    """Say whether a file is there, an archive, readable and undamaged."""
    try:
        return path.is_file() and check_whole(path)
    except (ArtifactError, OSError):
        return False


def earlier_file(path: Path, number: int) -> Path:
    """Name the file that stood at `path` `number` saves ago."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def earlier_files(path: Path) -> Iterator[Path]:
    """Give the kept files that stood at `path` before, the newest first."""
    return itertools.takewhile(Path.exists, (earlier_file(path, number) for number in itertools.count(1)))


def drop_earlier(path: Path, keep: int = 0) -> None:
    """Remove the earlier files beyond `keep`. Raises OSError."""
    for file in [*earlier_files(path)][keep:]:
        file.unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Remove what saves that were killed have left beside a file. Raises OSError."""
    for file in path.parent.iterdir() if path.parent.is_dir() else ():
        if file.name.startswith(f".{path.name}.") and file.suffix == ".tmp":
            file.unlink(missing_ok=True)


def _keep_as_earlier(path: Path, count: int) -> None:
    """Count up the earlier files' numbers, and let `path` be number 1 too: it never leaves its own place."""
    for number in range(count - 1, 0, -1):
        if earlier_file(path, number).exists():
            earlier_file(path, number).replace(earlier_file(path, number + 1))
    link = _temporary(path, ".earlier")
    try:
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:  # a file system without links
            with path.open("rb") as source, link.open("wb") as target:
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())
        link.replace(earlier_file(path, 1))
    finally:
        with suppress(OSError):
            link.unlink(missing_ok=True)


def _temporary(path: Path, what: str = "") -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{what}.tmp")


def _seal(file: BinaryIO) -> None:
    """Append the comment; what stands before it, its length included, is under the digest."""
    file.seek(-_LENGTH_BYTES, os.SEEK_END)
    file.write(SEAL_BYTES.to_bytes(_LENGTH_BYTES, "little"))
    size = file.tell()
    file.seek(0)
    digest = _sha256(file, size)
    file.seek(0, os.SEEK_END)
    file.write(MARK + digest)


def _sha256(file: BinaryIO, size: int) -> bytes:
    """Give the digits of the digest of the next `size` bytes."""
    digest = hashlib.sha256()
    while size and (block := file.read(min(size, 2**20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_archive(path: Path) -> None:
    """Hold every part of a torch archive against its checksum, which torch does not. Raises ArtifactError."""
    try:
        with _open_archive(path) as archive:
            damaged = archive.testzip()
    except _ARCHIVE_ERRORS as error:
        raise ArtifactError(f"{path}: it is damaged: {error}") from error
    if damaged:
        raise ArtifactError(f'{path}: it is damaged: "{damaged}" in it does not match its checksum')


def _open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive; raises BadZipFile also where it only ends in one, as a cut file that held another does."""
    archive = zipfile.ZipFile(path)
    if min((entry.header_offset for entry in archive.infolist()), default=0):
        archive.close()
        raise zipfile.BadZipFile("it is not whole")
    return archive
