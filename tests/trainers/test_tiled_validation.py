"""A validation by tiles: the figures of what inference.py --tiles predicts, at the images' own size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inference
import train
from common.paths import ROOT
from configs.loading import ConfigError
from nets import net_interface
from tests.helpers.masks import VALUES, mask_nets, scene, write_config, write_scenes
from trainers.config_checks import training_config


@pytest.fixture(autouse=True)
def tiny_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with mask_nets(tmp_path, monkeypatch):
        yield


def test_figures_are_those_of_tiled_predictions(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=6, valid=0)
    for number, size in enumerate([(60, 50), (31, 70), (20, 18)]):  # larger than the input of 24, and smaller
        pixels, indices = scene(100 + number, size)
        for name, content in (("images", pixels), ("labels", VALUES[indices])):
            place = tmp_path / f"valid/{name}/{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(place)
    config = write_config(tmp_path, num_epochs=2, val_tiles=0.3, val_batch_size=3, ema_decay=0.5)
    assert train.main(["--config", str(config)]) == 0
    report = json.loads((tmp_path / "weights/report.json").read_text(encoding="utf-8"))

    flags = ["--weights", str(tmp_path / "weights/net.pth"), "--image_dir", str(tmp_path / "valid"), "--workers", "1"]
    outputs = ["--device", "cpu", "--output", str(tmp_path / "a.json"), "--save_images", str(tmp_path / "out")]
    assert inference.main([*flags, *outputs, "--tiles", "0.3"]) == 0
    confusion = np.zeros((3, 3), np.int64)
    for number in range(3):
        truth, predicted = (
            np.searchsorted(VALUES, np.asarray(Image.open(path).convert("P" if "out" in str(path) else "L")))
            for path in (tmp_path / f"valid/labels/{number}.png", tmp_path / f"out/images/{number}.png.mask.png")
        )
        np.add.at(confusion, (truth.ravel(), predicted.ravel()), 1)
    assert confusion.sum() == 60 * 50 + 31 * 70 + 20 * 18
    assert report["confusion"] == confusion.tolist()


def test_other_tasks_have_no_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path)
    monkeypatch.setattr(net_interface, "NETS_DIR", ROOT / "nets")
    net = {"model_module_name": "wide_resnet_module", "model_net_name": "WideResNet"}
    with pytest.raises(ConfigError, match="val_tiles are for nets that give masks; leave it out"):
        training_config(write_config(tmp_path, val_tiles=0.5, **net))
