"""Exports of nets that give boxes: every format of a small one, verified candidate by candidate, and what it finds."""

from __future__ import annotations

import json
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import inference
from artifacts.checkpoint import Checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from artifacts.metadata_reader import read_metadata
from configs.loading import process_config
from data_loader.preprocess import Preprocess, as_array
from deploy.backends.loading import load_backend
from deploy.export.sample_images import net_input
from deploy.inference.predictor import Predictor
from nets.net_interface import build_net
from pytorch2json.tensorrt_library import library_problem
from tests.conftest import slow_but
from tests.helpers.boxes import box_nets, write_boxes, write_config
from tests.helpers.exported import export, report_of
from tests.helpers.serving import GatedBackend, RunningService, base64_of, flags, running

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = {
    "jit": "model.pt",
    "pt2": "model.pt2",
    "onnx": "model.onnx",
    "nms": "model.nms.onnx",
    "json": "model.json",
}
FILES = {**EXACT, "int8": "model.int8.onnx"}


class Net(NamedTuple):
    """A net, and its last convolutions for the classes."""

    module: str
    args: dict[str, Any]
    classes: str


TORCHVISION = "torchvision_detectors_module"
SMALL = {"model_type": "mobilenet_v3_small"}
NETS = {
    "TinyBoxes": Net("tiny_boxes_module", {}, "head"),
    "Detector": Net("detector_module", {"model_type": "resnet18"}, "heads.*.classes"),
    "fcos": Net(TORCHVISION, {**SMALL, "width": 64}, "head.classification_head.cls_logits"),
    "retinanet": Net(TORCHVISION, {**SMALL, "width": 32}, "head.classification_head.cls_logits"),
    "ssdlite": Net(TORCHVISION, SMALL, "head.classification_head.module_list.?.1"),
}


@pytest.mark.parametrize("name", slow_but(("TinyBoxes",), NETS))
def test_every_format_gives_the_nets_boxes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more").mkdir()
    with box_nets(tmp_path / "more", monkeypatch) if name == "TinyBoxes" else nullcontext():
        weights = write_net(name, tmp_path)
        check_formats(weights, tmp_path / "out")
        check_predictions(weights, tmp_path / "out", tmp_path / "valid/images")


def write_net(name: str, folder: Path) -> Path:
    """Write images with boxes, and a checkpoint of a net of random weights that finds objects on them."""
    write_boxes(folder)
    module, args, classes = NETS[name]
    config = process_config(write_config(folder, model_module_name=module, model_net_name=name, model_args=args))
    torch.manual_seed(0)
    size = {"num_classes": 2, "img_height": 64, "img_width": 64}
    net = build_net(module, name, num_channels=3, model_args=args, **size).eval()
    if name == "fcos":
        torch.nn.init.ones_(net.head.regression_head.bbox_reg.bias)  # else its ReLU cuts most distances to 0
    preprocess = Preprocess(64, 64, resize="letterbox")
    images = [preprocess(as_array(preprocess.decode(path))) for path in sorted((folder / "valid/images").iterdir())]
    last = [part for path, part in net.named_modules() if fnmatch(path, classes)]
    spread_logits(net, last, torch.from_numpy(np.stack(images)))
    metadata = ModelMetadata(
        ("blue", "red"),
        preprocess,
        {"module": module, "name": name, "args": args},
        task="detection",
        output="boxes",
        temperature=0.8,
        thresholds={"score": 0.3, "nms_iou": 0.6, "score_offset": 0.2},
    )
    save_checkpoint(Checkpoint(config.model_dump(), metadata, net.state_dict()), folder / "net.pth")
    return folder / "net.pth"


@torch.no_grad()
def spread_logits(net: torch.nn.Module, layers: list[Any], images: torch.Tensor) -> None:
    """Scale the last layers so that the logits, of random weights all alike, differ by about 2 around -3."""
    for _ in range(4):  # a softmax is not linear
        logits = net(images)[:, :, 4:].double()
        for layer in layers:
            layer.weight.mul_(2 / logits.std())
            layer.bias.sub_(logits.mean() + 3)


def check_formats(weights: Path, out: Path) -> None:
    """Export, and compare each file's boxes with those of the checkpoint, on other images than the export has."""
    has_engines = not library_problem()
    formats = [*FILES, *(["engine"] if has_engines else [])]
    assert export(weights, formats, out, device="cpu", samples=weights.parent / "valid") == 0
    report = report_of(out)
    assert report["samples"]["used"] == 6
    rows = {row["format"]: row for row in report["formats"]}
    assert {name: rows[name]["runs"][0]["top1_agreement"] for name in EXACT} == dict.fromkeys(EXACT, 1.0)
    if has_engines:
        assert rows["engine"]["status"] == "not proved" and rows["engine"]["bytes"] > 10_000  # none runs on a CPU
        assert read_metadata(out / "model.engine").output == "boxes"
    net, metadata = load_backend(weights, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    images = net_input(pixels, metadata.preprocess, "float32 NCHW")
    expected = net(images)
    assert (expected[:, :, 4:] > 0).any()
    for name, file in FILES.items():
        backend, read = load_backend(out / file, device="cpu")
        assert read.output == "boxes" and read.thresholds == metadata.thresholds and read.temperature == 0.8
        if name in EXACT:
            assert np.abs(backend(images) - expected).max() < 1e-4 * np.abs(expected).max()


def check_predictions(weights: Path, out: Path, images: Path) -> None:
    """`inference.py` gives the checkpoint's objects from each file, and the service those of its own file."""
    expected = predicted(weights, images)
    assert len(expected) == 6 and all(len(row["objects"]) > 1 for row in expected)
    for file in EXACT.values():
        for row, wanted in zip(predicted(out / file, images), expected, strict=True):
            assert [found["class"] for found in row["objects"]] == [found["class"] for found in wanted["objects"]]
            for key, tolerance in (("score", 1e-3), ("box", 0.1)):
                got, net = ([found[key] for found in each["objects"]] for each in (row, wanted))
                np.testing.assert_allclose(got, net, rtol=0, atol=tolerance)
    assert all(row["objects"] for row in predicted(out / FILES["int8"], images))
    backend, metadata = load_backend(out / FILES["onnx"], device="cpu")
    with running(Predictor(backend, metadata), flags("--workers", 1)) as port:
        service = RunningService(port, GatedBackend())
        content = base64_of((images / "00.png").read_bytes())
        status, body, _ = service.send(body={"content": content})
    assert status == 200
    objects = body["data"][0]["objects"]
    assert [found["box"] for found in objects] == [
        pytest.approx(found["box"], abs=0.1) for found in expected[0]["objects"]
    ]


def predicted(weights: Path, images: Path) -> list[dict[str, Any]]:
    """Return the lines that inference.py writes of a folder."""
    output = weights.parent / f"{weights.name}.jsonl"
    flags = ["--image_dir", str(images), "--output", str(output), "--device", "cpu", "--workers", "1"]
    assert inference.main(["--weights", str(weights), *flags]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
