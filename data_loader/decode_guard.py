"""A deadline for each image that a program decodes itself: beyond it the file is named and the process ended.

A decoder is third-party C: some small, valid images keep one busy for a minute, and nothing in its own process can
stop it. So each process notes in a shared table what it decodes, which costs 2 us an image, and another process watches
the table. It can wait where Python cannot: several decoders hold the interpreter's lock while they work.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from common.errors import UserError
from data_loader import decode_watchdog
from data_loader.decode_watchdog import BUSY, EXPIRED, HEAD, IDLE, NAME_BYTES, SLOT_BYTES, SLOTS, name_of, sentence

DECODE_TIMEOUT_S = 60.0

P = ParamSpec("P")
T = TypeVar("T")


class DecodeDeadlineError(UserError):
    """An image whose decoder did not end in time, in a loader process; the message names the file."""

    one_process = True  # of several, only the one that met the image knows of it


class DecodeGuard:
    """The table of what this process and its forked children decode, and the process that watches it."""

    def __init__(self) -> None:
        self.timeout_s = DECODE_TIMEOUT_S  # of this program's images from now on; 0: they are not watched
        self._table: mmap.mmap | None = None
        self._descriptor = -1
        self._number = 0
        self._is_started = False
        self._after_fork()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def start(self) -> None:
        """Start watching, where it is not done yet; before a fork, so that the children share one watchdog."""
        if self._is_started or not self.timeout_s:
            return
        with self._lock:
            if not self._is_started:
                self._is_started = True
                if os.name == "posix":
                    with contextlib.suppress(OSError):  # no process or file is left: it goes on unwatched
                        self._start()

    def enter(self, name: str) -> int | None:
        """Note that an image is being decoded; return its place in the table, for `leave`."""
        self.start()
        if self._table is None or not self.timeout_s:
            return None
        try:
            slot = self._free.pop()
        except IndexError:
            if (found := self._allocate()) is None:
                return None
            slot = found
        data = name.encode("utf-8", "backslashreplace")[-NAME_BYTES:]
        first = slot * SLOT_BYTES
        self._table[first + HEAD.size : first + HEAD.size + len(data)] = data
        self._number += 1
        HEAD.pack_into(self._table, first, os.getpid(), BUSY, self._number, self.timeout_s, len(data))
        self._held().append(slot)
        return slot

    def leave(self, slot: int | None) -> None:
        """Note that it has been decoded."""
        if slot is not None and self._table is not None:
            HEAD.pack_into(self._table, slot * SLOT_BYTES, os.getpid(), IDLE, 0, 0.0, 0)
            self._held().remove(slot)
            self._free.append(slot)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what this thread is decoding unwatched while it waits for something else; then its time begins anew."""
        table, slots = self._table, self._held()
        if table is None or not slots:
            yield
            return
        held = [(slot * SLOT_BYTES, HEAD.unpack_from(table, slot * SLOT_BYTES)) for slot in slots]
        for first, (pid, _, *rest) in held:
            HEAD.pack_into(table, first, pid, IDLE, *rest)
        try:
            yield
        finally:
            for first, (pid, state, _, *rest) in held:
                self._number += 1
                HEAD.pack_into(table, first, pid, state, self._number, *rest)

    def check_expired(self) -> None:
        """Raise DecodeDeadlineError where a process was ended because of an image."""
        if self._table is None:
            return
        lines = []
        for slot in range(SLOTS):
            _, state, _, deadline_s, _ = HEAD.unpack_from(self._table, slot * SLOT_BYTES)
            if state == EXPIRED:
                lines.append(sentence(name_of(self._table, slot), deadline_s))
                HEAD.pack_into(self._table, slot * SLOT_BYTES, 0, IDLE, 0, 0.0, 0)
        if lines:
            raise DecodeDeadlineError("\n".join(lines))

    def _start(self) -> None:
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("decoding")
        else:
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())
        os.truncate(self._descriptor, SLOTS * SLOT_BYTES)
        command = [sys.executable, "-I", "-S", decode_watchdog.__file__, str(self._descriptor), str(os.getpid())]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[self._descriptor]
        )
        self._table = mmap.mmap(self._descriptor, SLOTS * SLOT_BYTES)
        atexit.register(_end, process, os.getpid())

    def _held(self) -> list[int]:
        """Return the places in the table of what this thread is decoding: none, or several, one within another."""
        slots: list[int] = vars(self._of_thread).setdefault("slots", [])
        return slots

    def _allocate(self) -> int | None:
        """Return a slot that no thread and no process has; None where all are taken."""
        import fcntl  # not on Windows, where there is no table either

        assert self._table is not None
        with self._lock:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
            try:
                for slot in range(SLOTS):
                    if not HEAD.unpack_from(self._table, slot * SLOT_BYTES)[0]:
                        HEAD.pack_into(self._table, slot * SLOT_BYTES, os.getpid(), IDLE, 0, 0.0, 0)
                        return slot
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
        return None

    def _after_fork(self) -> None:
        """Forget the parent's slots, and a lock that one of its threads may have held."""
        self._free: list[int] = []
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        self._is_started = self._table is not None


GUARD = DecodeGuard()


def guarded(decode: Callable[P, T]) -> Callable[P, T]:
    """Return a decoder that the guard watches; its first argument is a path, or an image's bytes."""

    @functools.wraps(decode)
    def watched(*args: P.args, **kwargs: P.kwargs) -> T:
        source = args[0] if args else kwargs["source"]
        slot = GUARD.enter(f"an image of {len(source)} bytes" if isinstance(source, bytes) else str(source))
        try:
            return decode(*args, **kwargs)
        finally:
            GUARD.leave(slot)

    return watched


def _end(process: subprocess.Popen[bytes], starter: int) -> None:
    if os.getpid() == starter and process.stdin is not None:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
