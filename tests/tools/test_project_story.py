"""From nothing to a product: create mvp, a project, two epochs, export, show, promote; and how a stopped run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.paths import ROOT
from projects.book import Book
from tests.helpers.cifar import write_cifar10
from tests.helpers.experiments import TINY, run_main
from tools import antgo

FLAGS = ("--data", "cifar-10-binary.tar.gz", "--max-epochs", "2", "--set", "test_time_views=1", *TINY[2:])


def run(words: str, *flags: str) -> None:
    assert antgo.main([*words.split(), *flags]) == 0


def test_from_nothing_to_a_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path / "cifar-10-binary.tar.gz")
    run("create mvp --name small")
    run("create project --git git@host:team/birds.git")
    run("create exp --project birds --name small")
    run("train --exp small --project birds --gpu-id -1 --", *FLAGS)
    (entered,) = Book().read("birds").exp["small"]
    assert entered.state == "finish" and entered.checkpoint.endswith("small/output/metric/best.pth")
    score = json.loads(Path(entered.root, "small/output/metric/best.json").read_text(encoding="utf-8"))["score"]
    assert entered.metric["score"] == score and 0 <= score["top_1"] <= 1
    assert Path(entered.root, "FINISH").is_file()
    words = ("--process", "export", "--gpu-id", "-1", "--root", entered.root)
    assert run_main(tmp_path / "small/main.py", "--exp", "small", *words) == 0
    assert Path(entered.root, "small/output/export/small-best-model.onnx").is_file()
    run("add product --exp small")
    run("add baseline --exp small --id", entered.id)
    capfd.readouterr()
    run("show exp")
    line = f"small  {entered.id}  finish  supervised  top_1 {score['top_1']:.4f}  -       product, baseline"
    assert line in capfd.readouterr().out
    run("ls")
    assert f"birds    small  {entered.id}  finish" in capfd.readouterr().out
    assert antgo.main(["train", "--exp", "smal"]) == 2
    assert 'smal/main.py: the experiment is not here; did you mean "small"?' in capfd.readouterr().err


def test_a_signal_ends_the_training_and_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiment here is a program that waits for SIGTERM."""
    monkeypatch.chdir(tmp_path)
    run("create project --git a/birds")
    run("create exp --name slow")
    waits = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    Path("slow/main.py").write_text(f"{waits}open('ready', 'w')\ntime.sleep(600)\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tools.antgo", "train", "--exp", "slow", "--project", "birds"]
    process = subprocess.Popen(command, env=environment)
    while not Path("ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert Book().read("birds").exp["slow"][0].state == "running"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    (entered,) = Book().read("birds").exp["slow"]
    assert entered.state == "stop" and Path(entered.root, "STOP").is_file()
    Path("slow/main.py").write_text("raise SystemExit(2)\n", encoding="utf-8")
    assert antgo.main(["train", "--exp", "slow", "--project", "birds"]) == 2
    failed = Book().read("birds").exp["slow"][1]
    assert (failed.state, failed.metric, failed.checkpoint) == ("stop", {}, "")
