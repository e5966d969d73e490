"""What goes wrong during a training: kills, signals and full disks leave `output/` whole, and the exit code says it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from common.paths import ROOT
from platforms import base
from platforms.pie_engine import cli, hooks
from platforms.pie_engine.nets import CHANGE, DETECTION, SEGMENTATION
from tests.helpers.pie import MODELS, PICTURES, request, small_nets, training_log, write_data

KILLED = """
import os, signal, sys
from pathlib import Path
import pytest
from common import atomic_io
from platforms.pie_engine import cli
from tests.helpers.pie import small_nets

name, number, moved = sys.argv[1], int(sys.argv[2]), atomic_io.move_into_place
count = 0


def moving(source, target, **options):
    global count
    count += target.name.endswith(name)
    if target.name.endswith(name) and count == number:
        os.kill(os.getpid(), signal.SIGKILL)
    moved(source, target, **options)


atomic_io.move_into_place = moving
with pytest.MonkeyPatch.context() as patch, small_nets(Path(sys.argv[3]), patch):
    os.chdir(sys.argv[4])
    sys.exit(cli.main([]))
"""


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with small_nets(tmp_path, monkeypatch):
        yield


def check_whole(task: str, epochs: int) -> None:
    """Check that all files that the platform knows are whole, and of so many epochs."""
    log = training_log()
    assert [row["epoch"] for row in log["epochs"]] == [str(number) for number in range(1, epochs + 1)]
    assert log["end_time"] and log["best"]
    for name in PICTURES[task]:
        with Image.open(f"output/picture/{name}") as image:
            image.load()
    assert torch.load(f"output/files/{MODELS[task]}.th", weights_only=True)


@pytest.mark.parametrize("task", [SEGMENTATION, CHANGE, DETECTION])
def test_the_order_of_an_epoch(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures, weights, log, each whole before the next, and only then the line."""
    done: list[str] = []
    write = base.write_atomic

    def writing(path: Path, content: Any) -> None:
        write(path, content)
        done.append(path.name)

    def line(self: Any, text: str) -> None:
        check_whole(task, int(text[len("[Process: ")]))
        done.append(text)

    monkeypatch.setattr(base, "write_atomic", writing)
    made = hooks.PlatformHooks.__init__
    monkeypatch.setattr(
        hooks.PlatformHooks, "__init__", lambda self, session, _: made(self, session, lambda text: line(self, text))
    )
    request(task, write_data(tmp_path / "data", task))
    assert cli.main([]) == 0
    pictures = {CHANGE: ["A.png", "B.png", "label.png", "pred.png"], DETECTION: ["pred.png"]}
    epoch = [*pictures.get(task, ["image.png", "label.png", "pred.png"]), f"{MODELS[task]}.th", "trainlog.json"]
    begin = ["trainlog.json", "trainlog.json", "classes.json"]
    assert done == [*begin, *epoch, "[Process: 1/2]", *epoch]
    assert capsys.readouterr().out == "[Process: 2/2]\n"  # the last one's, once report and exports are there


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("name", "number", "epochs"),
    [
        (".th", 2, 1),
        pytest.param("label.png", 2, 1, marks=pytest.mark.slow),
        pytest.param("trainlog.json", 4, 1, marks=pytest.mark.slow),
        pytest.param("report.html", 1, 2, marks=pytest.mark.slow),
    ],
)
def test_a_kill_between_two_writes(tmp_path: Path, name: str, number: int, epochs: int) -> None:
    """Killed before the second epoch's file got its name: the first one's are whole, and the next run clears up."""
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION))
    (tmp_path / "child").mkdir()
    command = [sys.executable, "-c", KILLED, name, str(number), str(tmp_path / "child"), str(Path.cwd())]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert result.stdout == "[Process: 1/2]\n"
    check_whole(SEGMENTATION, epochs)
    left = [path.name for path in Path("output").rglob("*") if path.is_file() and path.name.endswith(".tmp")]
    assert len(left) == 1 and left[0].startswith(".")
    if name == ".th":
        request(SEGMENTATION, tmp_path / "data", epochs=1)
        assert cli.main([]) == 0
        check_whole(SEGMENTATION, 1)
        assert not list(Path("output").rglob("*.tmp"))


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_after_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    ended = hooks.PlatformHooks.epoch_ended

    def stopping(self: Any, *args: Any) -> None:
        ended(self, *args)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(hooks.PlatformHooks, "epoch_ended", stopping)
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION), epochs=5)
    assert cli.main([]) == 128 + number
    assert capsys.readouterr().out == "[Process: 1/5]\n"
    check_whole(SEGMENTATION, 1)


@pytest.mark.parametrize(
    ("name", "number", "epochs"), [("pred.png", 2, 1), (".th", 2, 1), ("trainlog.json", 4, 1), ("trainlog.json", 1, 0)]
)
def test_a_full_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    number: int,
    epochs: int,
) -> None:
    write, count = base.write_atomic, [0]

    def writing(path: Path, content: Any) -> None:
        count[0] += path.name.endswith(name)
        if path.name.endswith(name) and count[0] == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(base, "write_atomic", writing)
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION), epochs=3)
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert f"{name}: cannot write it: No space left on device" in err
    if epochs:
        assert out == "[Process: 1/3]\n"
        check_whole(SEGMENTATION, epochs)


def test_a_training_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION), learning_rate=1e30)
    assert cli.main([]) == 1
    err = capsys.readouterr().err
    assert "the training failed, see the lines above" in err
    assert json.loads(Path("output/trainlog.json").read_text(encoding="utf-8"))["epochs"] == []


def test_two_trainings_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys, time; from pathlib import Path; from common.file_lock import lock_file\n"
        "with lock_file(Path('.pie_engine/lock')): print('locked', flush=True); sys.stdin.read()"
    )
    Path(".pie_engine").mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        assert cli.main([]) == 2
        process.communicate("")
    assert "another training is running in this folder; wait for it" in capsys.readouterr().err
    assert not Path("output").exists()
