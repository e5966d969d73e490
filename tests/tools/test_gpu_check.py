"""`tools.gpu_check` without a GPU: its parts on a CPU, and its messages."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.paths import ROOT
from configs.loading import process_config
from configs.schema import Config
from tools.gpu_check import (
    CIFAR10_EPOCHS,
    PARTS,
    Figure,
    deployed_net,
    format_figure,
    forward_ms,
    main,
    make_images,
    median_rate,
    run_part,
    training_config,
)
from trainers.config_checks import net_problems

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_it_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == "python -m tools.gpu_check: there is no CUDA device here\n"


@without_gpu
def test_a_part_that_fails_is_reported_with_its_last_line() -> None:
    figures, failure = run_part("forward", None)
    assert figures == [] and ("CUDA" in failure or "NVIDIA" in failure)
    assert run_part("simsiam", None) == ([], "not measured: it needs --cifar10")


def test_the_training_part_measures_what_trains(tmp_path: Path) -> None:
    make_images(tmp_path, 20, 16)
    config = training_config(tmp_path, img_height=32, img_width=32, batch_size=10, gpu_id="cpu", precision="fp32")
    rate = median_rate(config, epochs=2)
    assert 1 < rate < 100_000


def test_the_forward_part_measures_the_call() -> None:
    net = deployed_net(torch.device("cpu"))
    images = torch.rand(1, 3, 128, 128, dtype=torch.bfloat16)
    calls = []
    forward_ms(lambda: calls.append(net(images).shape), images.device, repeats=3)
    assert calls == [(1, 5)] * 8


@pytest.mark.parametrize("part", ["cifar10", "simsiam"])
def test_the_trained_parts_have_valid_configs(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their commands are checked by the config's rules, and their reports are invented."""
    make_class_folders(tmp_path)
    configs: list[Config] = []

    def run(command: list[str], **_: object) -> None:
        flags = [command[place + 1] for place, word in enumerate(command) if word == "--set"]
        config = process_config(ROOT / command[command.index("--config") + 1], flags, checks=[net_problems])
        configs.append(config)
        points = [{"epoch": 10, "top1": 0.955}]
        report = {"best": {"top1": 0.955}, "train_seconds": 16.0, "curves": {"val": points}}
        (Path(config.save_path) / "report.json").write_text(json.dumps(report))

    monkeypatch.setattr("subprocess.run", run)
    figures = list(PARTS[part].measure(argparse.Namespace(cifar10=tmp_path)))
    (config,) = configs
    assert config.num_epochs == {"cifar10": CIFAR10_EPOCHS, "simsiam": 200}[part]
    assert figures[0].part == part


def make_class_folders(folder: Path) -> None:
    """Write a set of CIFAR-10's ten classes with an image each."""
    for split in ("train", "test"):
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(folder / split / str(label) / "image.png")


def test_a_figure_is_reached_from_its_own_side() -> None:
    fast, slow = (
        Figure("train", "a", 30_000, "images/s", 28_000),
        Figure("forward", "b", 0.5, "ms", 0.4, at_least=False),
    )
    assert fast.is_reached() and not slow.is_reached()
    assert format_figure(slow) == "missed  forward  b: 0.5 ms (at most 0.4)"
    assert Figure(**json.loads(json.dumps(slow.__dict__))) == slow
