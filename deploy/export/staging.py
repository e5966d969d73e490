"""The staging folder of an export: inside the output folder, to which its files are moved once verified."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from common.atomic_io import move_into_place, sync_file, sync_folder
from common.file_lock import try_lock
from deploy.export.errors import ExportError

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
FULL_DISK = re.compile(r"(No space left|Disk quota|File too large|Read-only file system)[^:(]*")
PREFIX, LOCK = ".export", "lock"  # the folder is called .export-<host>-<random>
UNNAMED = ".new-export-"  # until its lock is held
KEPT = "kept"  # inside it: copies of files that others are made from


@contextmanager
def staging_folder(output_dir: Path) -> Iterator[Path]:
    """Yield a temporary folder inside the output folder, which is made if it is missing and removed if it stays empty.

    A verified file in it is only renamed. Python's temporary files lie in it too, so that only one disk can be full.
    What a killed export left on this machine is removed. Raises ExportError, also where another export is running.
    """
    made = _make_folders(output_dir)
    try:
        with _locked_folder(output_dir) as folder:
            _remove_dead(output_dir, folder)
            before, tempfile.tempdir = tempfile.tempdir, str(folder)
            try:
                yield folder
            finally:
                tempfile.tempdir = before
    finally:
        with suppress(OSError):  # the first that is not empty stays, and so do those above it
            for parent in made:
                parent.rmdir()


def publish(files: Sequence[Path], output_dir: Path) -> None:
    """Move verified files to the output folder, the one that is loaded last; an earlier export's are replaced.

    Raises ExportError.
    """
    for file in files:
        with _writing(output_dir / file.name):
            sync_file(file)
    for file in reversed(files):
        with _writing(output_dir / file.name):
            move_into_place(file, output_dir / file.name, durable=False)
    with _writing(output_dir):
        sync_folder(output_dir)


def keep_copies(files: Sequence[Path], folder: Path) -> None:
    """Copy files into the staging folder's KEPT: another export may replace the published ones. Raises ExportError."""
    for file in files:
        target = folder / KEPT / file.name
        with _writing(target):
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def raise_disk_error(error: BaseException, path: Path) -> None:
    """Raise ExportError where an error, or its cause, is the disk's and not the net's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
            raise ExportError(f"{path}: cannot write it: {cause.strerror}") from error
        if found := FULL_DISK.search(str(cause)):  # safetensors and torch raise other types for it
            raise ExportError(f"{path}: cannot write it: {found[0].strip()}") from error
        cause = cause.__cause__ or cause.__context__


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; return the new ones, deepest first. Raises ExportError."""
    try:
        new = list(itertools.takewhile(lambda parent: not parent.exists(), (folder, *folder.parents)))
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{folder}: cannot make this folder for the files: {error.strerror}") from error
    return new


@contextmanager
def _locked_folder(output_dir: Path) -> Iterator[Path]:
    """Yield a new folder with a locked file in it, which the system unlocks when this process ends in any way.

    It gets the name by which others find it only when it is locked. Raises ExportError.
    """
    try:
        unnamed = Path(tempfile.mkdtemp(prefix=UNNAMED, dir=output_dir))
        lock = os.open(unnamed / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ExportError(f"{output_dir}: cannot write into this folder: {error.strerror}") from error
    try_lock(lock)
    folder = unnamed.rename(output_dir / f"{_own_prefix()}-{unnamed.name.rpartition('-')[2]}")
    try:
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_dead(output_dir: Path, own: Path) -> None:
    """Remove the folders of this machine whose export has died. Raises ExportError where one is still running.

    Another machine's folder, on a shared disk, is left alone: its lock may not be visible from here.
    """
    for path in sorted([*output_dir.glob(f"{PREFIX}-*/{LOCK}"), *output_dir.glob(f"{UNNAMED}*/{LOCK}")]):
        folder = path.parent
        if folder == own:
            continue
        try:
            lock = os.open(path, os.O_RDWR)
        except OSError:  # another user's, or gone by now
            continue
        try:
            is_locked = try_lock(lock)
        except BlockingIOError as error:
            hint = "wait for it, or choose another --output_dir"
            raise ExportError(f"{output_dir}: another export is running in this folder; {hint}") from error
        finally:
            os.close(lock)
        if is_locked and (folder.name.startswith(UNNAMED) or folder.name.rpartition("-")[0] == _own_prefix()):
            shutil.rmtree(folder, ignore_errors=True)


def _own_prefix() -> str:
    return f"{PREFIX}-{re.sub(r'[^A-Za-z0-9_.-]', '_', socket.gethostname())}"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(f"{path}: cannot write it: {error.strerror}") from error
