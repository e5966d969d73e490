"""The state of a run in its folder, for whoever sees that folder: the same for runs here and elsewhere.

`RUNNING`, `FINISH` or `STOP`, empty files for people and scripts, and `state.json`, which is renewed each minute.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic, writing
from common.signals import Stopped
from projects.models import FINISHED, LOST, RUNNING, STOPPED

FILE = "state.json"
MARKS = {RUNNING: "RUNNING", FINISHED: "FINISH", STOPPED: "STOP"}
RENEWED_S, LOST_S = 60.0, 600.0


def stamp(seconds: float | None = None) -> str:
    """Return a time, now where none is given, as projects have it: 2026-11-29x08-15-00."""
    return time.strftime("%Y-%m-%dx%H-%M-%S", time.localtime(seconds))


@contextmanager
def reported(folder: Path) -> Iterator[Callable[[int], None]]:
    """Keep a run's state while the block runs it; the block gives the exit code to what is yielded.

    Without an exit code, after an error, the run counts as stopped. Raises ResultsError.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_state(folder, RUNNING)
    codes: list[int] = []
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEWED_S):
            with suppress(OSError):  # a disk that is full for a while ends no training
                write_state(folder, RUNNING)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield codes.append
    except Stopped as error:
        codes.append(error.exit_code)
        raise
    finally:
        ended.set()
        thread.join()
        code = codes[-1] if codes else None
        with writing(folder):
            write_state(folder, STOPPED if code or code is None else FINISHED, code)


def write_state(folder: Path, state: str, exit_code: int | None = None) -> None:
    """Write state.json, and the mark of the state in place of the one before. Raises OSError."""
    content = {"state": state, "exit_code": exit_code, "host": socket.gethostname(), "pid": os.getpid()}
    place_state(folder, {**content, "time": time.time()})


def place_state(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the content of a state.json, and the mark of its state. Raises OSError."""
    state = content["state"]
    write_atomic(folder / FILE, json.dumps(content) + "\n")
    (folder / MARKS[state]).touch()
    for other, mark in MARKS.items():
        if other != state:
            (folder / mark).unlink(missing_ok=True)


def read_state(folder: Path) -> tuple[str, float]:
    """Return a run's state and the seconds since 1970 of its last sign; lost where that is older than ten minutes."""
    try:
        content: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        state, seen = str(content["state"]), float(content["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return LOST, 0.0
    if state not in MARKS or (state == RUNNING and time.time() - seen > LOST_S):
        return LOST, seen
    return state, seen
