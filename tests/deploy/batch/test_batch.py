"""python -m deploy.batch: all parts of a folder by processes that die, or by Ray's workers that do."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.paths import ROOT
from deploy.batch import __main__ as batch
from deploy.batch import processes
from deploy.inference.shard_file import read_shard
from deploy.inference.shards import Shard
from tests.helpers.exported import paint

DYING = """
import importlib.util, os, signal, sys
sys.path.insert(1, {root!r})
spec = importlib.util.spec_from_file_location("real_inference", {root!r} + "/inference.py")
real_inference = sys.modules["real_inference"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real_inference)
from deploy.inference import predictor, shard_file
from tests.helpers.in_process import BOXES, InProcess
from tests.helpers.masks_served import BoxBackend

real_inference.load_net = lambda *_: (BoxBackend(), BOXES)
predictor.DecoderPool = InProcess
real, calls = shard_file._write, 0

def write(file, data):
    global calls
    calls += 1
    if calls == 3:
        real(file, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    real(file, data)

shard_file._write = write
main = real_inference.main
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven images, and a program in the place of inference.py that kills itself in each third row that it writes."""
    for number in range(7):
        paint(tmp_path / f"images/{number}.png", number % 3, number)
    (tmp_path / "net.onnx").write_bytes(b"")
    (tmp_path / "inference.py").write_text(DYING.format(root=str(ROOT)), encoding="utf-8")
    monkeypatch.setattr(processes, "PROGRAM", tmp_path / "inference.py")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "images"


def flags_of(images: Path, *more: object) -> list[str]:
    folder = images.parent
    flags = ("--image_dir", images, "--weights", folder / "net.onnx", "--batch_size", 2, "--output", folder / "r.jsonl")
    return [str(flag) for flag in (*flags, *more)]


def run(images: Path, *more: object) -> int:
    return batch.main(flags_of(images, *more))


def run_with_ray(images: Path, *more: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from deploy.batch.__main__ import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": f"{images.parent}:{ROOT}", "HOME": str(images.parent)}
    command = [sys.executable, "-c", code, *flags_of(images, "--engine", "ray", *more)]
    return subprocess.run(command, cwd=images.parent, env=environment, capture_output=True, text=True)


def check_each_once(images: Path) -> None:
    rows = [json.loads(line) for line in (images.parent / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["file"] for row in rows] == [f"{images}/{number}.png" for number in range(7)]


def test_processes_that_are_killed(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of four rows each process writes two; one more writes the shard's last line, of three rows the same."""
    assert run(images, "--shards", 2, "--at_once", 2) == 0
    check_each_once(images)
    lines = capsys.readouterr().out.splitlines()
    died = [line for line in lines if line.endswith("its process was ended (-9); another goes on")]
    assert sorted(line[:9] for line in died) == ["shard 1/2", "shard 1/2", "shard 2/2"]
    assert lines[-1] == f"7 images of 2 shards, each once: 7 answered, 0 failed; results in {images.parent}/r.jsonl"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs requirements-ray.txt")
@pytest.mark.slow
def test_ray_workers_that_are_killed(images: Path) -> None:
    """The same program in Ray's workers, one at a time, which do several shards."""
    done = run_with_ray(images, "--shards", 3, "--at_once", 2)
    assert done.returncode == 0, done.stderr
    check_each_once(images)
    assert [f"shard {number}/3: done" in done.stdout for number in (1, 2, 3)] == [True] * 3
    # of 7 rows and 3 last lines each third ends a worker, which then is written again
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    assert all(read_shard(shard.path(images.parent / "r.jsonl"), shard).is_complete for shard in shards)
    assert done.stderr.count("died") + done.stdout.count("died") > 0


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs requirements-ray.txt")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            'print("no room", flush=True); os.kill(os.getpid(), 9)',
            "shard 1/1: 3 in turn died before a prediction; the last one said: no room",
        ),
        ('print("no net", file=sys.stderr); return 2', "shard 1/1: it ended with exit code 2: no net"),
        ('raise KeyError("a")', "shard 1/1: KeyError: 'a'"),
    ],
)
def test_ray_gives_up_a_shard_whose_workers_only_die(images: Path, program: str, message: str) -> None:
    code = f"import os, sys\ndef main(words):\n    {program}\n"
    (images.parent / "inference.py").write_text(code, encoding="utf-8")
    done = run_with_ray(images, "--shards", 1)
    assert done.returncode == 2
    assert f"deploy.batch: {message}; what is predicted is kept\n" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            "shard 1/8: 3 in turn died before a prediction; the last one said: nothing",
        ),
        ("raise SystemExit(2)", "shard 1/8 ended with exit code 2; what is predicted is kept"),
        ("raise SystemExit(0)", None),
    ],
)
def test_programs_that_cannot_go_on(
    program: str, message: str | None, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.PROGRAM.write_text(program, encoding="utf-8")
    assert run(images, "--at_once", 1) == 2
    error = capsys.readouterr().err
    if message is None:
        assert "r.jsonl: no shards beside it" in error
    else:
        assert error == f"deploy.batch: {message}\n"


def test_mistakes_in_the_flags(
    images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(images, "--shard", "1/2") == 2
    assert capsys.readouterr().err == "deploy.batch: --shard: leave it out; --shards N runs all parts\n"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(images, "--engine", "ray") == 2
    assert capsys.readouterr().err == "deploy.batch: --engine ray needs Ray: pip install -r requirements-ray.txt\n"
