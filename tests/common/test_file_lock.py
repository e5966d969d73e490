"""Locks between processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.file_lock import exclusive, lock_file, locked_if_free
from common.paths import ROOT

HOLD = """
import os, sys, time
from pathlib import Path
from common.file_lock import lock_file
with lock_file(Path(sys.argv[1])):
    if os.fork() == 0:  # as a loader process
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_kept_out_until_the_holder_dies(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(file)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), lock_file(file):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with lock_file(file):  # its child goes on, and holds nothing
            assert file.exists()
        assert not file.exists()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_a_file_that_cannot_be_made_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lock_file(tmp_path / "gone/.lock"):
        pass


def test_threads_and_forks_exclude_each_other(tmp_path: Path) -> None:
    """A child that was forked while its parent held the folder does not keep it."""
    entered = threading.Event()

    def enter() -> None:
        with exclusive(tmp_path):
            entered.set()

    waiting = threading.Thread(target=enter)
    with exclusive(tmp_path):
        with locked_if_free(tmp_path) as is_ours:
            assert not is_ours
        waiting.start()
        assert not entered.wait(0.2)
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        waiting.join(60)
        assert entered.is_set()
        with locked_if_free(tmp_path) as is_ours:
            assert is_ours
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not list(tmp_path.iterdir())
