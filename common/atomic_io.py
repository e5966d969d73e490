"""Files that appear complete or not at all: written beside their place, then renamed.

No other module does so; tests/test_architecture.py checks it.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError


class ResultsError(UserError):
    """Results that cannot be written; the message is one sentence for the user."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a ResultsError that names the path."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{path}: cannot write it: {error.strerror or error}") from error


def check_folder(folder: Path) -> None:
    """Raise ResultsError unless the folder exists or can be made, and may be written to."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists() or parent.is_symlink())
    if not there.exists():
        raise ResultsError(f"{there}: it is a link to {there.readlink()}, which is not there")
    if not there.is_dir():
        raise ResultsError(f"{folder}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise ResultsError(f"{folder}: no permission to write there")


def check_spares(output: Path | None, *inputs: Path | None) -> None:
    """Raise ResultsError where the file to write is one of those that are read, also by a link or another name."""
    for file in inputs:
        if output and file and output.exists() and file.exists() and output.samefile(file):
            raise ResultsError(f"{output}: it is read here, and would be written over; choose another file")


@contextmanager
def atomic_path(
    target: Path, *, durable: bool = True, before_replace: Callable[[], None] | None = None
) -> Iterator[Path]:
    """Yield a temporary path in the same folder that becomes `target` when the block ends, and is removed on an error.

    See `move_into_place`. Raises OSError, which names the target where it names no other file, and what the block
    raises.
    """
    temporary = temporary_path(target)
    remove_leftovers(target.parent)
    try:
        yield temporary
        move_into_place(temporary, target, durable=durable, before_replace=before_replace)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(target)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(target: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file's text (UTF-8, line ends as they are) or bytes, complete or not at all. Raises OSError."""
    with atomic_path(target, durable=durable) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, which is missing or empty, that gets its name when the block ends.

    Its files are synced before, and it is removed on an error. Raises OSError, and what the block raises.
    """
    temporary = temporary_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent)
    try:
        temporary.mkdir()
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            (sync_folder if path.is_dir() else sync_file)(path)
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_into_place(
    source: Path, target: Path, *, durable: bool = True, before_replace: Callable[[], None] | None = None
) -> None:
    """Rename a complete file to `target` on the same disk; a file of that name is replaced. Raises OSError.

    `durable` syncs the file before and the folder after, so that a power cut leaves the old file or the new one;
    without it a killed process does, but not a power cut: enough for one of thousands of copies that can be made again.
    `before_replace` runs when the new file is complete and the old one still there.
    """
    if durable:
        sync_file(source)
    if before_replace is not None:
        before_replace()
    source.replace(target)
    if durable:
        sync_folder(target.parent)


def temporary_path(target: Path) -> Path:
    """Return this process's own path beside `target`: with a short name where the target's is as long as allowed."""
    name = f".{target.name}{temporary_ending()}"
    return target.with_name(name if len(os.fsencode(name)) <= 255 else temporary_ending())


def temporary_ending() -> str:
    """Return what the names of this process's temporary files end in: by it they are found when it has died."""
    return f".{_host()}.{os.getpid()}.tmp"


@functools.cache
def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes of this machine left in a folder, once a process.

    Another machine's, on a shared disk, are left alone: whether its process runs is not known here.
    """
    if os.name != "posix":  # there a signal 0 is Ctrl-C
        return
    ending = re.compile(rf"\.(?:.*\.)?{_host()}\.([0-9]+)\.tmp", re.DOTALL)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = ending.fullmatch(entry.name)
            if found and not _is_running(int(found[1])):
                with suppress(OSError):
                    shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else Path(entry.path).unlink()


@functools.cache
def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def sync_file(path: Path) -> None:
    """Write a file's bytes through to the disk. Raises OSError."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def check_in_place(path: Path, descriptor: int, size: int) -> None:
    """Raise OSError where an open file is no longer at its path, or shorter than it was: a line would be lost."""
    own = os.fstat(descriptor)
    if not (path.exists() and os.path.samestat(own, path.stat())) or own.st_size < size:
        text = f"{path.name} was moved, removed or cut while it is in use; bring it back"
        raise OSError(errno.ESTALE, text, str(path))


def sync_folder(folder: Path) -> None:
    """Write a folder's entries through to the disk. Raises OSError."""
    if os.name != "posix":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
