"""The second signal ends a program, whatever it waits for; one signal alone only asks."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.paths import ROOT
from tests.helpers.serving import PATIENCE_S

PROGRAM = """
import ctypes, os, signal, sys, threading, time
from common import signals
from common.cli import run_program
from common.signals import Stopped, StopRequest, ended_by_signals
signals.GRACE_S = 0.5
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
def work():
    {code}
raise SystemExit(run_program("program", work))
"""
DEAF = """
    with StopRequest():
        print("in", flush=True)
        while True:
            try:
                time.sleep(3600)
            except BaseException:
                pass
"""
LOCKED = """
    lock = threading.Lock()
    lock.acquire()
    def hold():
        with StopRequest():
            print("in", flush=True)
            lock.acquire()
    try:
        hold()
    finally:
        while True:
            try:
                lock.acquire()
            except BaseException:
                pass
"""
IN_C = """
    with StopRequest():
        print("in", flush=True)
        signal.siginterrupt(signal.SIGTERM, False)
        signal.siginterrupt(signal.SIGINT, False)
        ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
"""
CLEANING = """
    with ended_by_signals(signal.SIGINT):
        try:
            print("in", flush=True)
            time.sleep(3600)
        finally:
            while True:
                try:
                    time.sleep(3600)
                except BaseException:
                    pass
"""
WAITING = """
    with StopRequest() as stop:
        print("in", flush=True)
        for _ in range(30):
            time.sleep(0.1)
        print(stop.received.name, flush=True)
        return 0
"""


def start(code: str, **variables: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(code=code.strip())],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    return process


def send(process: "subprocess.Popen[str]", *numbers: signal.Signals) -> None:
    for number in numbers:
        process.send_signal(number)
        until = time.monotonic() + PATIENCE_S
        time.sleep(0.2)
        while is_pending(process.pid, number) and time.monotonic() < until:  # two that are pending together are one
            time.sleep(0.05)


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Return whether a signal has been sent to a process that has not received it; where it cannot be known, False."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    pending = re.search(r"^ShdPnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(pending and int(pending[1], 16) >> (number - 1) & 1)


def end_of(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Wait for a process, and return what it printed to stdout and stderr."""
    try:
        return process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("code", [DEAF, LOCKED, IN_C, CLEANING], ids=["deaf", "locked", "in_c", "cleaning"])
def test_the_second_signal_always_ends_a_program(code: str, number: signal.Signals) -> None:
    process = start(code)
    send(process, number)
    assert process.poll() is None
    send(process, number)
    end_of(process)
    assert process.returncode == 128 + number


def test_the_third_ends_it_at_once() -> None:
    process = start(DEAF.replace('print("in"', 'signals.GRACE_S = 3600; print("in"'))
    send(process, *[signal.SIGTERM] * 3)
    end_of(process)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("numbers", "variables", "received"),
    [
        ([signal.SIGINT], {}, "SIGINT"),
        ([signal.SIGINT, signal.SIGTERM], {}, "SIGTERM"),  # a launcher's own, after the terminal's
        ([signal.SIGUSR1] * 3, {}, "SIGUSR1"),
        ([signal.SIGTERM] * 2, {"TORCHELASTIC_RUN_ID": "none"}, "SIGTERM"),
    ],
)
def test_what_is_no_second_signal(numbers: list[signal.Signals], variables: dict[str, str], received: str) -> None:
    process = start(WAITING, **variables)
    send(process, *numbers)
    output, errors = end_of(process)
    assert (process.returncode, output, errors) == (0, f"{received}\n", "")


def test_a_forked_child_that_lives_on_does_not_hold_a_program_up() -> None:
    process = start(
        """
    child = os.fork()
    if not child:
        time.sleep(3600)
    print("in", flush=True)
    print(child, flush=True)
    return 0
"""
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert process.wait(PATIENCE_S) == 0
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("number", "errors"), [(signal.SIGINT, ""), (signal.SIGTERM, "program: stopped by SIGTERM\n")])
def test_the_second_signal_cleans_up_where_it_can(number: signal.Signals, errors: str) -> None:
    process = start(
        WAITING.replace("        print(stop", "        time.sleep(3600)\n        print(stop") + "    return 0\n"
    )
    send(process, number, number)
    assert end_of(process) == ("", errors)
    assert process.returncode == 128 + number
