"""Runs the project's programs as child processes, which get the signals that this program receives."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

from common.errors import UserError
from common.signals import STOPPING, Stopped

SHOWN_LINES = 3  # of a log, in a message


class ChildError(UserError):
    """A program of ours that ended with a mistake; the message has its last lines."""


def run_logged(log: Path, *arguments: object, may_end_with: tuple[int, ...] = (0,)) -> tuple[int, str]:
    """Run one of our programs, which prints into a log; return its exit code and the log's last line.

    Raises ChildError for another code than `may_end_with`, Stopped, OSError.
    """
    code = run_child([str(argument) for argument in arguments], log)
    said = last_lines(log)
    if code not in may_end_with:
        name = arguments[1] if arguments[0] == "-m" else Path(str(arguments[0])).name
        raise ChildError(f"{name} ended with exit code {code}:\n{said}\n{log} has all of it")
    return code, said.rpartition("\n")[2]


def run_child(arguments: Sequence[str], log: Path | None = None, keep: Sequence[int] = ()) -> int:
    """Run `python ARGUMENTS` and return its exit code. It prints where this program does, or appends to `log`. It
    inherits the files of the descriptors `keep`.

    A signal that stops programs is passed on, so that a training saves and leaves; then Stopped is raised. Raises
    OSError where the log cannot be written.
    """
    received: list[int] = []
    hangup = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
    with log.open("ab") if log else nullcontext() as file:
        # A session of its own: Ctrl-C of the terminal reaches this process alone, which passes it on once.
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT if file else None,
            start_new_session=True,
            pass_fds=keep,
        )

        def pass_on(number: int, frame: FrameType | None) -> None:
            received.append(number)
            if process.poll() is None:
                process.send_signal(number)

        numbers = [number for number in (*STOPPING, *hangup) if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, pass_on) for number in numbers}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if received:
        raise Stopped(received[0])
    return code if code >= 0 else 128 - code  # as shells count a signal


def last_lines(log: Path) -> str:
    """Return the last lines of a log that are not blank; "" where there are none."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-SHOWN_LINES:])
