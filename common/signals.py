"""Signals that end a program in the way of an error, so that nothing half-made is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Stopped(KeyboardInterrupt):
    """A signal that ends the program; no ordinary error, so that nothing on the way takes it for its own."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def ended_by_signals(*others: signal.Signals) -> Iterator[None]:
    """Let SIGTERM, a closed terminal and `others` raise Stopped. One ignored from the start, as by nohup, stays so."""

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
