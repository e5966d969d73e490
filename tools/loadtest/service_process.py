"""A service in a process of its own, and the memory and processor time that it takes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import BenchmarkError
from common.paths import ROOT

START_S, STOP_S = 120.0, 20.0
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # a second


class Service:
    """A service in a process of its own, ready once `health` returns 200. Raises BenchmarkError."""

    def __init__(self, name: str, command: Sequence[str], health: str) -> None:
        self.name = name
        self.port = _free_port()
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed by `close`)
        self.process = subprocess.Popen(
            [part.format(port=self.port) for part in command],
            stdout=self._log,
            stderr=self._log,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            self._wait_for(f"http://127.0.0.1:{self.port}{health}")
        except BaseException:
            self.close()
            raise

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the service and its child processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Stop the service and its child processes."""
        if not self._log.closed:
            for numbers in ((signal.SIGTERM, signal.SIGCONT), (signal.SIGKILL,)):
                for number in numbers:
                    self.signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(STOP_S)
            self._log.close()

    def _wait_for(self, url: str) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
            time.sleep(0.2)
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        raise BenchmarkError(f"{self.name}: it did not start: {lines[-1] if lines else 'it printed no message'}")


def memory_mb(pid: int) -> float:
    """Return the memory of a process and its children in MB (10^6 bytes); pages that several share count once.

    Linux's Pss; 0 of a process that has ended. Raises OSError where a process may not be inspected.
    """
    return sum(_kilobytes(each) for each in _with_children(pid)) * 1024 / 1e6


def processor_s(pid: int) -> float:
    """Return the processor time in seconds of a process and its children that still run."""
    ticks = 0
    for each in _with_children(pid):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            fields = Path(f"/proc/{each}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime: fields 14 and 15 of proc(5)
    return ticks / TICKS


def _kilobytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (ProcessLookupError, FileNotFoundError):
        return 0
    found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            for child in file.read_text(encoding="ascii").split():
                yield from _with_children(int(child))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
