"""torchvision's detectors under the one loop: their losses count, they resume to the bit, and predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import inference
import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from tests.conftest import slow_but
from tests.helpers.boxes import write_boxes, write_config
from tests.helpers.breaking import dying_after_save

pytestmark = pytest.mark.usefixtures("one_thread")

NETS: dict[str, dict[str, Any]] = {"ssdlite": {}, "fcos": {"width": 64}, "retinanet": {"width": 32}}


@pytest.mark.parametrize("name", slow_but(("ssdlite",), NETS))
def test_it_trains_resumes_to_the_bit_and_predicts(name: str, tmp_path: Path) -> None:
    """Stopped between the two steps of its first epoch."""
    write_boxes(tmp_path, train=9, valid=3)
    args = {"model_type": "mobilenet_v3_small", **NETS[name]}
    keys: dict[str, Any] = {
        "model_module_name": "torchvision_detectors_module",
        "model_net_name": name,
        "model_args": args,
    }
    keys |= {
        "img_width": 64,
        "random_crop_scale": [0.5, 1.0],
        "horizontal_flip": 0.5,
        "ema_decay": 0.9,
        "log_interval": 1,
    }
    assert run(write_config(tmp_path, **keys, save_path=str(tmp_path / "whole"))) == 0
    whole = load_checkpoint(tmp_path / "whole/net_last.pth")
    assert all(epoch["loss"] > 0 for epoch in whole.progress["curves"]["train"])
    config = write_config(tmp_path, **keys, save_path=str(tmp_path / "stopped"), save_interval_steps=1)
    with dying_after_save(1, KeyboardInterrupt):
        assert run(config) == 130
    assert run(config, "--resume") == 0
    resumed = load_checkpoint(tmp_path / "stopped/net_last.pth")
    assert weights_sha256(whole.deployed()) == weights_sha256(resumed.deployed())
    assert whole.progress["curves"] == resumed.progress["curves"]
    results, images = tmp_path / "found.jsonl", tmp_path / "valid/images"
    flags = ["--image_dir", str(images), "--output", str(results), "--score_threshold", "0.01"]
    assert inference.main(["--weights", str(tmp_path / "whole/net_last.pth"), *flags]) == 0
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [(row["width"], row["height"]) for row in rows] == [(72, 64)] * 3
    assert all(set(row["objects"][0]) == {"class", "label", "score", "box"} for row in rows if row["objects"])


def run(config: Path, *flags: str) -> int:
    return train.main(["--config", str(config), *flags])
