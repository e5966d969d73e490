"""Locks between processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.file_lock import lock_file
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
