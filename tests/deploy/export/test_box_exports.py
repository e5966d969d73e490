"""Exports of nets that give boxes: every format of a small one, verified candidate by candidate."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from artifacts.checkpoint import Checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from configs.loading import process_config
from data_loader.preprocess import Preprocess
from deploy.backends.loading import load_backend
from deploy.export.sample_images import net_input
from nets.net_interface import build_net
from tests.conftest import slow_but
from tests.helpers.boxes import box_nets, write_boxes, write_config
from tests.helpers.exported import export, report_of

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = {
    "jit": "model.pt",
    "pt2": "model.pt2",
    "onnx": "model.onnx",
    "nms": "model.nms.onnx",
    "json": "model.json",
}
NETS = {"TinyBoxes": "tiny_boxes_module", "Detector": "detector_module"}


@pytest.mark.parametrize("name", slow_but(("TinyBoxes",), NETS))
def test_every_format_gives_the_nets_boxes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more").mkdir()
    with box_nets(tmp_path / "more", monkeypatch) if name == "TinyBoxes" else nullcontext():
        check_formats(name, tmp_path)


def check_formats(name: str, tmp_path: Path) -> None:
    write_boxes(tmp_path)
    module, args = NETS[name], {} if name == "TinyBoxes" else {"model_type": "resnet18"}
    config = process_config(write_config(tmp_path, model_module_name=module, model_net_name=name, model_args=args))
    torch.manual_seed(0)
    size = {"num_classes": 2, "img_height": 64, "img_width": 64}
    net = build_net(module, name, num_channels=3, model_args=args, **size).eval()
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, torch.nn.Conv2d) and part.bias is not None:
                part.bias.add_(1.0)  # so that some positions are candidates
    metadata = ModelMetadata(
        ("blue", "red"),
        Preprocess(64, 64, resize="letterbox"),
        {"module": module, "name": name, "args": args},
        task="detection",
        output="boxes",
        temperature=0.8,
        thresholds={"score": 0.3, "nms_iou": 0.6, "score_offset": 0.2},
    )
    save_checkpoint(Checkpoint(config.model_dump(), metadata, net.state_dict()), tmp_path / "net.pth")
    out = tmp_path / "out"
    assert export(tmp_path / "net.pth", list(FILES), out, device="cpu", samples=tmp_path / "valid") == 0
    report = report_of(out)
    assert report["samples"]["used"] == 6
    assert {row["format"]: row["runs"][0]["top1_agreement"] for row in report["formats"]} == dict.fromkeys(FILES, 1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    images = net_input(pixels, metadata.preprocess, "float32 NCHW")
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    for file in FILES.values():
        backend, read = load_backend(out / file, device="cpu")
        assert read.output == "boxes" and read.thresholds == metadata.thresholds and read.temperature == 0.8
        assert np.abs(backend(images) - expected).max() < 1e-4 * np.abs(expected).max()
