"""A training as a job over ssh, killed in the middle: it goes on to the bits of one that was never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from artifacts.checkpoint import load_checkpoint
from projects.book import Book
from tests.helpers.cifar import write_cifar10
from tests.helpers.experiments import TINY
from tests.helpers.jobs import commit_all, sshd_on_loopback
from tools import antgo

PATIENCE_S = 600
HOOKS = """
import time
from pathlib import Path

def epoch_ended(trainer, validation):
    while trainer.progress.epoch == 1 and Path({wait!r}).exists():
        time.sleep(0.05)
"""


def run(words: str, *flags: str) -> None:
    assert antgo.main([*words.split(), *flags]) == 0


def weights_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(load_checkpoint(path).net.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.slow  # three trainings of three epochs, by an sshd on loopback; test_jobs.py has the same without torch
def test_killed_over_ssh_and_resumed_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, wait = tmp_path / "work", tmp_path / "wait"
    work.mkdir()
    monkeypatch.chdir(work)
    run("create mvp --name small")
    Path("small/hooks.py").write_text(HOOKS.format(wait=str(wait)), encoding="utf-8")
    commit_all(work)
    run("create project --git git@host:team/birds.git")
    run("create exp --name small")
    write_cifar10(tmp_path / "cifar-10-binary.tar.gz")
    setup = f"export PYTHON={sys.executable} OMP_NUM_THREADS=1\n"
    Path("../setup.sh").write_text(setup, encoding="utf-8")
    data = ("--data", str(tmp_path / "cifar-10-binary.tar.gz"), "--set", "validation_interval=1", *TINY[2:])
    train = ("train --exp small --project birds --ssh --gpu-id -1 --", "--max-epochs", "3", *data)
    with sshd_on_loopback(tmp_path / "sshd") as programs:
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        config = {"config": {"ip": "box", "folder": str(tmp_path / "jobs")}, "script": "../setup.sh"}
        Path("../ssh.yaml").write_text(json.dumps(config), encoding="utf-8")
        run("submitter update --ssh --config ../ssh.yaml")
        run(*train)
        whole = ended("finish")
        wait.touch()
        run(*train)
        there = tmp_path / "jobs/birds" / Book().read("birds").exp["small"][1].id
        kill_after(there / "small/output/checkpoint/epoch_1.pth", there)
        wait.unlink()
        run(f"train --exp small --resume --id {there.name}")
        resumed = ended("finish", 1)
    assert "resum" in (resumed / "log.txt").read_text(encoding="utf-8")
    places = [folder / "small/output/checkpoint/latest.pth" for folder in (whole, resumed)]
    first, second = map(weights_sha256, places)
    assert first == second
    assert [load_checkpoint(path).progress["epoch"] for path in places] == [3, 3]


def kill_after(file: Path, folder: Path) -> None:
    """Kill a job's runner and the training that waits after its first epoch, as a power cut does."""
    end = time.monotonic() + PATIENCE_S
    while not file.exists():
        assert time.monotonic() < end, (folder / "log.txt").read_text(encoding="utf-8")
        time.sleep(0.1)
    runner = json.loads((folder / "state.json").read_text(encoding="utf-8"))["pid"]
    trainings = Path(f"/proc/{runner}/task/{runner}/children").read_text(encoding="utf-8").split()
    for pid in (runner, *map(int, trainings)):
        os.kill(pid, signal.SIGKILL)


def ended(state: str, number: int = 0) -> Path:
    """Wait for a run's end, and return its folder here."""
    end = time.monotonic() + PATIENCE_S
    while True:
        run("ls")
        found = Book().read("birds").exp["small"][number]
        if found.state == state:
            return Path(found.root)
        assert time.monotonic() < end and found.state != "stop", found
        time.sleep(0.5)
