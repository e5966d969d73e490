"""The deadline of what a program decodes itself: the file is named, and the process ended; nothing else is touched."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.paths import ROOT
from data_loader import decode_guard
from data_loader.band_image import Decoded
from data_loader.decode_guard import GUARD, DecodeDeadlineError, DecodeGuard
from data_loader.epoch_plan import EpochBatches, plan_epoch
from data_loader.list_reader import read_list
from data_loader.loaders import ImageDataset, LoaderProcessError, end_processes, lost_loaders_reported, training_loader
from data_loader.preprocess import Preprocess
from tests.helpers.serving import PATIENCE_S, wait

PROGRAM = """
import sys, time
from data_loader.band_image import Decoded
from data_loader.decode_guard import GUARD, guarded
GUARD.timeout_s = 1.0
@guarded
def decode(path):
    exec(sys.argv[1])
decode(sys.argv[2])
print("decoded")
"""
NAMED = "bad.tif: its decoder did not end within 1 seconds: remove the image or convert it, or raise decode_timeout_s"


def run(code: str, path: str = "/data/bad.tif") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM, code, path]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    "code",
    ["time.sleep(3600)", "sum(range(sys.maxsize))", "while True: pass"],
    ids=["sleeps", "spins_with_the_interpreters_lock", "spins"],
)
def test_a_decoder_that_does_not_come_back_ends_the_program_which_names_the_file(code: str) -> None:
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGALRM, "", f"\n/data/{NAMED}\n")


def test_a_process_that_ignores_the_alarm_is_killed() -> None:
    done = run("import signal; signal.signal(signal.SIGALRM, signal.SIG_IGN); sum(range(sys.maxsize))")
    assert done.returncode == -signal.SIGKILL and done.stderr.endswith(NAMED + "\n")


def test_a_slow_decoder_within_the_deadline_is_left_alone() -> None:
    done = run("time.sleep(0.3)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "decoded\n", "")


def test_what_a_thread_waits_for_meanwhile_does_not_count() -> None:
    done = run("with GUARD.paused(): time.sleep(2)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "decoded\n", "")
    done = run("with GUARD.paused(): time.sleep(2)\ntime.sleep(3600)")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGALRM, "", f"\n/data/{NAMED}\n")


def test_many_images_of_several_threads_take_a_deadline_each() -> None:
    code = """
import threading
def each():
    for _ in range(8):
        slot = GUARD.enter("good.png"); time.sleep(0.2); GUARD.leave(slot)
threads = [threading.Thread(target=each) for _ in range(3)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
GUARD.timeout_s = 0
"""
    program = PROGRAM.replace("decode(sys.argv[2])", "exec(sys.argv[1])")
    done = subprocess.run([sys.executable, "-c", program, code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "decoded\n", "")


def test_a_name_is_printed_without_its_control_characters() -> None:
    assert run("time.sleep(3600)", "/数据/\x1b[31mbad.tif").stderr == f"\n/数据/\\x1b[31m{NAMED}\n"


def test_a_stopped_program_is_not_taken_for_a_stuck_decoder() -> None:
    """Ctrl-Z stops the watchdog as well, since it is of the same process group."""
    command = [sys.executable, "-c", PROGRAM, "print('in', flush=True); time.sleep(0.3)", "a.png"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=PATIENCE_S)[0] == "decoded\n"


def watchdogs(parent: int) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            parts = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"decode_watchdog.py" in b"".join(parts) and str(parent).encode() in parts:
            found.append(int(file.parent.name))
    return found


def test_the_watchdog_ends_with_its_program_even_if_that_is_killed() -> None:
    patient = PROGRAM.replace("timeout_s = 1.0", "timeout_s = 3600")  # it is not the deadline that ends them
    command = [sys.executable, "-c", patient, "print('in', flush=True); sys.stdin.read()", "a.png"]
    for number in (signal.SIGKILL, None):
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "in\n"
            assert len(watchdogs(process.pid)) == 1
            if number is not None:
                process.send_signal(number)
            process.communicate(timeout=PATIENCE_S)
        wait(lambda pid=process.pid: not watchdogs(pid))


def test_a_loader_process_that_meets_such_an_image_is_ended_and_the_training_names_it(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = read_list(dataset / "train.txt", dataset / "images", "----", 3)
    bad = samples.samples[6].path
    original = Preprocess(32, 32).decode

    @decode_guard.guarded
    def decode(source: str) -> Decoded:
        if source == bad:
            sum(range(sys.maxsize))
        return original(source)

    monkeypatch.setattr("data_loader.loaders.Preprocess.decode", lambda _, source, at_least=None: decode(source))
    monkeypatch.setattr(GUARD, "timeout_s", 1.0)
    batches = EpochBatches()
    batches.set_epoch(0, np.arange(21), plan_epoch(21, 4))
    loader = training_loader(ImageDataset(samples, Preprocess(32, 32)), batches, 2)
    with pytest.raises(DecodeDeadlineError) as caught, lost_loaders_reported():
        for _ in loader:
            pass
    assert str(caught.value) == f"{bad.removesuffix(Path(bad).name)}{Path(bad).name}{NAMED.removeprefix('bad.tif')}"
    end_processes(loader)
    with pytest.raises(LoaderProcessError), lost_loaders_reported():  # it is named once
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")


def test_a_table_without_room_and_a_system_without_processes_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = DecodeGuard()
    monkeypatch.setattr(decode_guard, "SLOTS", 2)
    slots = [guard.enter("a.png") for _ in range(3)]
    assert sorted(slots[:2]) == [0, 1] and slots[2] is None  # type: ignore[type-var]
    guard.leave(slots[2])
    guard.leave(slots[0])
    assert guard.enter("b.png") == slots[0]
    for slot in slots:
        guard.leave(slot)

    def fail(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    guard = DecodeGuard()
    assert guard.enter("a.png") is None
    guard.leave(None)
