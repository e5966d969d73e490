"""Signals as an exception that ends a program, as a flag that a loop reads, or held back for a while."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

# SIGUSR1 is what schedulers such as SLURM send some time before the end (sbatch --signal); Windows has none.
STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # whose second one ends a program; SIGUSR1 may come again and again
GRACE_S = 5.0  # after the second signal, for cleaning up


class Stopped(KeyboardInterrupt):
    """A signal that ends the program; not an Exception, so that no handler of ordinary errors catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def ended_by_second_signal() -> Iterator[None]:
    """End the process GRACE_S after the second signal of one kind, and at once with the third, whatever it waits for.

    Python runs a signal's handler once the main thread is back from what it calls, which a decoder or a lock may
    prevent. The number arrives at once, though: another thread reads it here.
    """
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield  # elsewhere there are neither such signals nor such numbers
        return
    numbers, written = socket.socketpair()
    written.setblocking(False)
    before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_end_at_second, args=(numbers,), name="second_signal", daemon=True)
    thread.start()
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:  # not in a forked child
            signal.set_wakeup_fd(before)
            written.shutdown(socket.SHUT_WR)  # which ends the thread even while a forked child has the socket too
            thread.join()
            written.close()
            numbers.close()


@contextmanager
def ended_by_signals(*others: signal.Signals) -> Iterator[None]:
    """Make SIGTERM, a closed terminal and `others` raise Stopped. One that is ignored, as by nohup, stays so."""

    def stop(number: int, frame: object) -> NoReturn:
        raise Stopped(number)

    numbers = [*others, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


class StopRequest:
    """While entered, the first signal of STOPPING is only noted in `received`; the same again interrupts at once.

    A second SIGUSR1 is only noted too.
    """

    def __init__(self, message: str = "") -> None:
        self.message = message  # printed on stderr as soon as the signal arrives
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in STOPPING:
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread, which alone handles signals
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def receive(self, number: int) -> None:
        """Note a signal that another process received."""
        self.received = signal.Signals(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == number and _is_ending(number):
            raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)
        if self.received is None and self.message:
            os.write(2, f"\n{self.message}\n".encode())  # a handler may interrupt a print, so not print
        self.received = signal.Signals(number)


def _is_ending(number: int) -> bool:
    """Return whether a second signal of this number ends the program.

    torchrun passes a SIGTERM on that its processes may have got already, and kills them itself after a while.
    """
    name = signal.Signals(number).name
    return name in ENDING and not (name == "SIGTERM" and "TORCHELASTIC_RUN_ID" in os.environ)


def _end_at_second(numbers: socket.socket) -> None:
    received: Counter[int] = Counter()
    while data := numbers.recv(1):
        received[data[0]] += 1
        if received[data[0]] > 1 and _is_ending(data[0]):
            while select.select([numbers], [], [], GRACE_S)[0]:
                following = numbers.recv(1)
                if not following:
                    return  # it has ended by itself
                if following == data:
                    break
            os._exit(128 + data[0])


@contextmanager
def deferred_child_signals() -> Iterator[None]:
    """Defer SIGCHLD to the end of the block: the loaders' handler raises wherever it interrupts, also in a write."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
    if received and callable(before):
        before(signal.SIGCHLD, None)
