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
from data_loader.bad_images import BadImageError
from data_loader.samples import ListError
from deploy.export import exporter
from deploy.export.errors import ExportError
from deploy.export.request import ExportRequest
from platforms import base
from platforms.pie_engine import cli, hooks
from platforms.pie_engine.addresses import Addresses
from platforms.pie_engine.files import TrainLog
from platforms.pie_engine.nets import CHANGE, DETECTION, SEGMENTATION
from tests.helpers.pie import MODELS, PICTURES, request, small_nets, training_log, write_data
from trainers.reporting import report

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
    begin = ["trainlog.json", "trainlog.json", "classes.json", "config.json"]
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


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_a_disk_that_is_full_at_the_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = report.write_atomic

    def writing(path: Path, content: str) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(report, "write_atomic", writing)
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION))
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "[Process: 1/2]\n" and "the report could not be written, see the lines above" in err
    assert "cannot write the report: No space left on device" in err
    check_whole(SEGMENTATION, 2)


def test_a_report_that_cannot_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault of the page is not one of the training: all else is complete, and the last line stands."""

    def draw(*_: object, **__: object) -> str:
        raise LookupError("no <colour>")

    monkeypatch.setattr(report, "render_page", draw)
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION), epochs=1)
    assert cli.main([]) == 0
    out, err = capsys.readouterr()
    assert out == "[Process: 1/1]\n" and "Traceback" in err
    assert "warning: report.html could not be drawn (LookupError: no <colour>); report.json has all" in err
    assert "no &lt;colour&gt;" in Path("output/files/report.html").read_text(encoding="utf-8")
    check_whole(SEGMENTATION, 1)
    figures = json.loads(Path("output/files/report.json").read_text(encoding="utf-8"))
    assert figures["status"] == "finished" and figures["best"]


def test_a_training_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION), learning_rate=1e30)
    assert cli.main([]) == 1
    err = capsys.readouterr().err
    assert "the training failed, see the lines above" in err
    assert json.loads(Path("output/trainlog.json").read_text(encoding="utf-8"))["epochs"] == []


@pytest.mark.parametrize(
    ("outcome", "code", "sentence"),
    [
        (3, 0, "warning: an export was refused, see "),
        (
            RuntimeError("an operator\nis missing"),
            0,
            "the net was not exported, its checkpoint is complete: an operator",
        ),
        (ExportError("too few images"), 0, "the net was not exported, its checkpoint is complete: too few images"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "model.onnx: cannot write it: No space left on device"),
    ],
)
def test_an_export_that_fails(
    outcome: Any,
    code: int,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The training is done: its last line stands, but for a full disk. All that the platform shows is complete."""

    def export(request: ExportRequest) -> int:
        if not isinstance(outcome, Exception):
            return int(outcome)
        raise ExportError(str(outcome)) from outcome

    monkeypatch.setattr(exporter, "export_formats", export)
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION), epochs=2)
    assert cli.main([]) == code
    out, err = capsys.readouterr()
    assert out == "[Process: 1/2]\n" + "[Process: 2/2]\n" * (code == 0) and sentence in err
    check_whole(SEGMENTATION, 2)


def test_what_is_no_earlier_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data in the folder that a training clears are refused and stay; so does traincfg.json there."""
    Path("output").mkdir()
    data = write_data(Path("output/data").absolute(), SEGMENTATION)
    count = len([*data.rglob("*")])
    for place in ("output/data", "output", f"s3://local{data}"):
        request(SEGMENTATION, Path(place), dataset_path=place)
        assert cli.main([]) == 2
        text = f"{place}: the data are in output/, which every training clears; move them out of it"
        assert text in capsys.readouterr().err and len([*data.rglob("*")]) == count
        assert training_log()["epochs"] == []
    request(SEGMENTATION, data.rename(tmp_path / "data"), epochs=1)
    Path("traincfg.json").rename("output/traincfg.json")
    Path("output/loop").symlink_to("loop")
    for _ in range(2):
        assert cli.main(["--traincfg", "output/traincfg.json"]) == 0
    assert not Path("output/loop").is_symlink()


def test_a_loss_that_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = TrainLog(tmp_path / "trainlog.json")
    for loss in (float("inf"), float("nan"), 0.5):
        rows = [{"class": "all", "values": {"IoU": 0.5, "loss": loss}}]
        log.add_epoch(len(log.epochs) + 1, [{"class": "all", "values": {"loss": 0.25}}], rows, is_best=True)
    log.write()
    epochs = json.loads(log.path.read_text(encoding="utf-8"))["epochs"]
    assert [epoch["valid"][0]["values"]["loss"] for epoch in epochs] == [1e9, 1e9, 0.5]
    assert "warning: the loss of valid is inf in epoch 1; trainlog.json has 1e+09 for it" in capsys.readouterr().err


WORKER = """
import os, sys, time
from platforms.pie_engine.train import end_with

end_with(os.getppid())
print("begun", flush=True)
time.sleep(600)
"""
PARENT = """
import os, signal, subprocess, sys

with subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE) as worker:
    worker.stdout.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_end_with_a_killed_parent() -> None:
    """Else they would go on writing into the folder of the next training."""
    command = [sys.executable, "-c", PARENT, WORKER]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE) as parent:
        assert parent.communicate(timeout=120) == (None, b"")  # once nobody holds the standard error any more
    assert parent.returncode == -signal.SIGKILL


def test_a_mistake_of_all_processes_is_printed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the main one, with addresses for the copies of what a store has."""

    def worker(file: Path, addresses: Addresses) -> int:
        addresses[".pie_engine/dataset"] = "s3://b/d1"
        raise (
            BadImageError(f"{Path.cwd()}/.pie_engine/dataset/train/1.png")
            if file.name == "own"
            else ListError([".pie_engine/dataset/train/1.png: it is empty"])
        )

    monkeypatch.setattr(cli, "run_worker", worker)
    lines = []
    for rank, name in (("0", "all"), ("1", "all"), ("1", "own")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert cli.main(["--worker", name]) == 2
        lines.append(capsys.readouterr().err)
    assert lines == [
        "pie_engine: s3://b/d1/train/1.png: it is empty\n",
        "",
        "pie_engine: s3://b/d1/train/1.png\n",  # which this process alone has met
    ]


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


def test_a_folder_that_takes_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path(".pie_engine").touch()
    assert cli.main([]) == 2
    assert capsys.readouterr().err == f"pie_engine: {Path.cwd()}/.pie_engine: cannot write it: File exists\n"
