"""Locks that the system ends with the process that holds them, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def try_lock(descriptor: int) -> bool:
    """Lock an open file; return False where the disk has no locks. Raises BlockingIOError where it is locked.

    The lock is shared with processes that are forked while it is held.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold a lock file of this process alone, not of those it forks; the file is removed at the end.

    Two blocks of one process do not exclude each other. A disk without locks counts as unlocked. Raises BlockingIOError
    where another process holds it, OSError where the file cannot be made.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = _locked(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before it is unlocked: nobody removes a file that another process holds
        os.close(descriptor)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file or folder, which stays, against other threads and processes; wait while another one holds it.

    A process that is forked meanwhile does not hold it on. A disk without locks counts as unlocked. Raises OSError.
    """
    with locked_if_free(path, waits=True):
        yield


@contextmanager
def locked_if_free(path: Path, *, waits: bool = False) -> Iterator[bool]:
    """Yield whether a file or folder is held by this block alone, as `exclusive` does. Raises OSError."""
    if sys.platform == "win32":
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    is_ours = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            is_ours = False
        except OSError:
            pass
        yield is_ours
    finally:
        with suppress(OSError):
            if is_ours:  # a process that was forked meanwhile has the descriptor, too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Open and lock a file, and open it anew where its holder has removed it meanwhile."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # EAGAIN or EACCES: POSIX allows both
            os.close(descriptor)
            raise BlockingIOError(error.errno, error.strerror, str(path)) from error
        except OSError:
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # noqa: PTH116
                return descriptor
        os.close(descriptor)
