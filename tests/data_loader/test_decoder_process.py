"""Decoding in other processes: the same pixels, a deadline, a limit of memory, and no process left."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.paths import ROOT
from data_loader import decoder_process
from data_loader.decoder_process import DecoderPool, DecoderStartError, DecodeTimeoutError
from data_loader.decoder_worker import BYTES, FIT, REQUEST
from data_loader.preprocess import ImageError, Preprocess
from tests.helpers import stand_in_decoder
from tests.helpers.serving import PATIENCE_S, png, wait
from tests.helpers.stand_in_decoder import ALLOCATE, BUG, CRASH, SLEEP, SPIN

PREPROCESS = Preprocess(20, 30)
DEADLINE_S = 0.5
MANY = 10**6


@contextmanager
def decoding(count: int = 1, timeout_s: float = PATIENCE_S, **changes: Any) -> Iterator[DecoderPool]:
    with closing(DecoderPool(changes.pop("preprocess", PREPROCESS), count, timeout_s, **changes)) as pool:
        yield pool


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "WORKER", stand_in_decoder.MODULE)


def children() -> set[str]:
    """Return the decoders' processes."""
    tasks = Path("/proc/self/task").glob("*/children")
    found = {child for task in tasks for child in task.read_text(encoding="ascii").split()}
    modules = (decoder_process.WORKER.encode(), b"data_loader.decoder_worker")
    parts = {child: Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0") for child in found}
    return {child for child in found if set(modules) & set(parts[child])}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_the_pixels_are_those_of_this_process(resize: str, channels: int, dataset: Path) -> None:
    """Fitting what is fitted changes nothing either: the net's input is made of it as of the decoded image."""
    preprocess = Preprocess(20, 32, channels, resize=resize)
    path = str(dataset / "images/train/00.png")
    expected = preprocess.fit(preprocess.decode(path))
    with decoding(preprocess=preprocess) as pool:
        for source in (path, Path(path).read_bytes()):
            found = pool.fit(source, MANY)
            assert found.size == preprocess.decode(path).size
            fitted = np.asarray(found.image).reshape(expected.shape)
            assert (fitted == expected).all()
        assert (preprocess(fitted) == preprocess(preprocess.load(path))).all()
        shown, fitted_too = pool.show(path, MANY, 10)
        assert shown.size == (10, 10) and shown.mode == "RGB"
        assert (np.asarray(fitted_too).reshape(expected.shape) == expected).all()


def test_a_bad_image_has_the_same_reason_as_in_this_process(tmp_path: Path) -> None:
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff.png")
    Path(odd).write_bytes(png())
    with decoding() as pool:
        assert pool.fit(odd, MANY).image.size == (30, 20)
        for source in (b"", b"no image", str(tmp_path / "none.png"), png()[:-30]):
            with pytest.raises(ImageError) as here:
                PREPROCESS.decode(source)
            with pytest.raises(ImageError) as there:
                pool.fit(source, MANY)
            assert str(there.value) == str(here.value)
        with pytest.raises(ImageError, match=r"9x7 is more than max_pixels \(62\) allows"):
            pool.fit(png(size=(9, 7)), 62)


@pytest.mark.parametrize("source", [SLEEP, SPIN])
def test_a_decoder_that_does_not_come_back_is_killed_at_the_deadline(source: bytes, stand_in: None) -> None:
    with decoding(timeout_s=DEADLINE_S) as pool:
        pool.start()
        before = children()
        started = time.monotonic()
        with pytest.raises(DecodeTimeoutError, match=r"^its decoder did not end within 0\.5 seconds$"):
            pool.fit(source, MANY)
        assert time.monotonic() - started >= DEADLINE_S
        assert not children() & before
        assert pool.fit(png(), MANY).image.size == (30, 20)  # by the process in its place
    assert not children() - before


def test_one_stuck_decoder_delays_no_other_image(stand_in: None) -> None:
    with decoding(2) as pool, ThreadPoolExecutor(1) as thread:
        stuck = thread.submit(pool.fit, SLEEP, MANY)
        for _ in range(20):
            assert pool.fit(png(), MANY).image.size == (30, 20)
        assert not stuck.done() and not pool.is_stalled(0.0)
        pool.close()
        with pytest.raises(ImageError, match="the program is ending"):
            stuck.result(PATIENCE_S)
        with pytest.raises(ImageError, match="the program is ending"):
            pool.fit(png(), MANY)


def test_the_system_limits_what_a_decoder_takes(stand_in: None) -> None:
    """100 MB beside what the process has: 80 fit and 200 do not, and it goes on afterwards."""
    with decoding(memory_bytes=100 * 10**6) as pool:
        for _ in range(2):
            with pytest.raises(ImageError, match=r"^it is too large for the memory$"):
                pool.fit(ALLOCATE, MANY)
            assert pool.fit(png(), MANY).image.size == (30, 20)
        (child,) = [decoder._child for decoder in pool._decoders if decoder._child]
        pid = child._process.pid
        peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) * 1024 < 200 * 10**6
        low, high = resource.prlimit(pid, resource.RLIMIT_AS)
        assert low == high != resource.RLIM_INFINITY


def test_a_crash_and_a_bug_cost_one_image(stand_in: None) -> None:
    with decoding() as pool:
        with pytest.raises(ImageError, match=r"^its decoder crashed$"):
            pool.fit(CRASH, MANY)
        with pytest.raises(RuntimeError, match="ZeroDivisionError: in the decoder"):
            pool.fit(BUG, MANY)
        assert pool.fit(png(), MANY).image.size == (30, 20)


def test_stalled_are_busy_processes_that_finish_nothing(stand_in: None) -> None:
    with decoding(2) as pool, ThreadPoolExecutor(2) as threads:
        assert not pool.is_stalled(0.0)
        pool.fit(png(), MANY)
        stuck = [threads.submit(pool.fit, SLEEP, MANY) for _ in range(2)]
        wait(lambda: pool.is_stalled(0.2))
        assert not pool.is_stalled(3600)
        pool.close()
        assert all(isinstance(future.exception(PATIENCE_S), ImageError) for future in stuck)


PAUSED = """
import os, signal, subprocess
from common.paths import ROOT
from data_loader import decoder_process
from data_loader.decoder_worker import BYTES, FIT, REQUEST
from data_loader.preprocess import Preprocess
from tests.helpers.serving import png
pool = decoder_process.DecoderPool(Preprocess(20, 30), 1, 0.5)
pool.start()
send = decoder_process._Child.send
def send_and_pause(*args):
    send(*args)
    subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
decoder_process._Child.send = send_and_pause
print(pool.fit(png(), 100).image.size)
pool.close()
"""


def test_a_pause_of_this_process_is_not_taken_for_the_decoders() -> None:
    """The decoder needs milliseconds; the program is stopped for twice the deadline meanwhile."""
    done = subprocess.run([sys.executable, "-c", PAUSED], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.stdout, done.stderr) == ("(30, 20)\n", "")


def test_a_process_that_does_not_start_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "WORKER", "json.tool")
    with decoding() as pool, pytest.raises(DecoderStartError, match=r"^a decoder process did not start: it ended$"):
        pool.start()


def test_closing_leaves_no_process_and_no_thread(stand_in: None) -> None:
    before, threads = children(), threading.active_count()
    with decoding(3) as pool:
        pool.start()
        assert len(children() - before) == 3
    assert children() == before and threading.active_count() == threads


def test_a_decoder_whose_parent_was_killed_ends_itself(stand_in: None) -> None:
    with decoding(timeout_s=DEADLINE_S) as pool:
        pool.start()
        (child,) = [decoder._child for decoder in pool._decoders if decoder._child]
        child.send(REQUEST.pack(FIT, BYTES, MANY, 0, len(SPIN)), SPIN, DEADLINE_S)  # and nobody reads the reply
        assert child._process.wait(PATIENCE_S) == -signal.SIGALRM


def test_the_guards_deadline_is_the_default(monkeypatch: pytest.MonkeyPatch, stand_in: None) -> None:
    monkeypatch.setattr(decoder_process.GUARD, "timeout_s", 0.3)
    with closing(DecoderPool(replace(PREPROCESS, height=8), 1)) as pool:
        pool.start()
        with pytest.raises(DecodeTimeoutError, match=r"within 0\.3 seconds"):
            pool.fit(SLEEP, MANY)
