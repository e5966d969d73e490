"""Archives of torch that are complete on the disk or not there at all, and that are verified when they are read."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from artifacts.errors import ArtifactError
from common.atomic_io import atomic_path, move_into_place, sync_file

ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error)

MARK = b"sha256 "  # what the archive's comment starts with; the digest of all that stands before the comment follows
COMMENT_BYTES = len(MARK) + 64
_LENGTH_BYTES = 2  # of the comment's length, the last field of an archive without a comment


def write_archive(path: Path, save: Callable[[BinaryIO], object], *, backups: int = 0) -> None:
    """Write a zip archive with its sha256 as the comment, complete or not at all, and sync it to the disk.

    `save` writes the archive; `backups` is how many of the files that stood there before are kept. Raises OSError, and
    what `save` raises; the file that stood there before is then untouched.
    """

    def keep_old() -> None:
        if backups and path.exists():
            _make_backup(path, backups)

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, before_replace=keep_old) as temporary, temporary.open("w+b") as file:
        save(file)
        _append_checksum(file)


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors do: the length of a JSON object, and its brace. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(9)
        size = file.seek(0, os.SEEK_END)
    return start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= size - 8


def verify_archive(path: Path) -> bool:
    """Return whether a file is an archive; verify its sha256, or where it has none the checksums of its entries.

    Raises ArtifactError where it is damaged, OSError.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise ArtifactError(f"{path}: it is empty")
        file.seek(max(0, size - COMMENT_BYTES))
        comment = file.read()
        file.seek(0)
        if comment.startswith(MARK):
            if _sha256(file, size - COMMENT_BYTES) != comment.removeprefix(MARK):
                raise ArtifactError(f"{path}: it is damaged: it does not match its sha256")
            return True
        start = file.read(2)
    if start != b"PK" and not zipfile.is_zipfile(path):
        return False
    verify_entries(path)
    with zipfile.ZipFile(path) as archive:
        if archive.comment:  # torch writes none: it was our checksum
            raise ArtifactError(f"{path}: it is damaged: its sha256 cannot be read")
    return True


def verify_entries(path: Path) -> None:
    """Verify the checksum of every entry of a torch archive, which torch does not. Raises ArtifactError."""
    try:
        with open_archive(path) as archive:
            damaged = archive.testzip()
    except ARCHIVE_ERRORS as error:
        raise ArtifactError(f"{path}: it is damaged: {error}") from error
    if damaged:
        raise ArtifactError(f'{path}: it is damaged: "{damaged}" in it does not match its checksum')


def is_complete(path: Path) -> bool:
    """Return whether a file is there, an archive, readable and undamaged."""
    try:
        return path.is_file() and verify_archive(path)
    except (ArtifactError, OSError):
        return False


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive. Raises BadZipFile also where the file only ends in one, as a cut one that held another."""
    archive = zipfile.ZipFile(path)
    if min((entry.header_offset for entry in archive.infolist()), default=0):
        archive.close()
        raise zipfile.BadZipFile("it is not complete")
    return archive


def backup_file(path: Path, number: int) -> Path:
    """Return the path of the file that stood at `path` `number` saves ago."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def backup_files(path: Path) -> Iterator[Path]:
    """Yield the backups of the file at `path`, the newest first."""
    return itertools.takewhile(Path.exists, (backup_file(path, number) for number in itertools.count(1)))


def remove_backups(path: Path, *, keep: int = 0) -> None:
    """Remove all backups but the newest `keep`. Raises OSError."""
    for file in [*backup_files(path)][keep:]:
        file.unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Remove the temporary files that killed saves have left beside a file. Raises OSError."""
    beginnings = tuple(f".{target.name}." for target in (path, backup_file(path, 1)))
    for file in path.parent.iterdir() if path.parent.is_dir() else ():
        if file.name.startswith(beginnings) and file.suffix == ".tmp":
            file.unlink(missing_ok=True)


def _make_backup(path: Path, count: int) -> None:
    """Move each backup up by one number, and link `path` as number 1; `path` itself always stays in its place."""
    for number in range(count - 1, 0, -1):
        if backup_file(path, number).exists():
            move_into_place(backup_file(path, number), backup_file(path, number + 1), durable=False)
    with atomic_path(backup_file(path, 1), durable=False) as link:
        link.unlink(missing_ok=True)  # a killed save's, which may be a link to another backup
        try:
            os.link(path, link)
        except OSError:  # a file system without links
            with path.open("rb") as source, link.open("wb") as target:
                shutil.copyfileobj(source, target)
            sync_file(link)


def _append_checksum(file: BinaryIO) -> None:
    """Append the comment; the sha256 is of all that stands before it, its length included."""
    file.seek(-_LENGTH_BYTES, os.SEEK_END)
    file.write(COMMENT_BYTES.to_bytes(_LENGTH_BYTES, "little"))
    size = file.tell()
    file.seek(0)
    digest = _sha256(file, size)
    file.seek(0, os.SEEK_END)
    file.write(MARK + digest)


def _sha256(file: BinaryIO, size: int) -> bytes:
    """Return the hexadecimal sha256 of the next `size` bytes."""
    digest = hashlib.sha256()
    while size and (block := file.read(min(size, 2**20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()
