"""Operators that a runtime or torch's exporter computes otherwise than torch: their files are refused, or right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from deploy.backends.loading import load_backend
from deploy.backends.torch_backend import CheckpointBackend
from deploy.export.errors import ExportError
from deploy.export.formats import EXPORT_FORMATS
from deploy.export.parity_rule import ParityResult
from deploy.export.reference import Reference
from deploy.export.sample_images import SampleImages
from deploy.export.verification import Verification, verify_file
from deploy.export.writers import Source, write_json, write_onnx
from pytorch2json.network import DescriptionError

SIZE = 15  # odd: the last windows reach over the edge


class Shrinks(nn.Module):
    """Resizes with averaging, which OpenVINO 2026.4 ignores."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(images, size=(6, 6), mode="bilinear", antialias=True)


class Exact(nn.Module):
    """Picks the nearest pixels by their centres, at a size that follows the input's."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        size = (images.shape[2] * 2 // 3, images.shape[3] * 2 // 3)
        return nn.functional.interpolate(images, size=size, mode="nearest-exact")


NETS = {  # an operator -> the runtimes that gave other values when this was written
    "antialias": (Shrinks, {"openvino"}),
    "average ceil_mode": (lambda: nn.AvgPool2d(4, 3, ceil_mode=True), set()),
    "average ceil_mode padding": (lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=True), set()),
    "maximum ceil_mode padding": (lambda: nn.MaxPool2d(2, 2, padding=1, ceil_mode=True), set()),
    "divisor_override": (lambda: nn.AvgPool2d(3, 2, divisor_override=5), {"onnxruntime", "openvino"}),
    "nearest-exact": (Exact, set()),
}


NOT_EXPORTED = {"maximum ceil_mode padding"}


class Net(nn.Module):
    """A convolution, the operator, and a classifier of every value."""

    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.operator = nn.Conv2d(3, 4, 1), operator
        with torch.no_grad():
            values = self.operator(self.conv(torch.zeros(1, 3, SIZE, SIZE))).numel()
        self.head = nn.Linear(values, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.operator(self.conv(images)).flatten(1))
        return logits


def source_of(name: str) -> tuple[Source, Reference]:
    net = Net(NETS[name][0]()).eval()
    metadata = ModelMetadata(("a", "b", "c"), Preprocess(SIZE, SIZE), {"module": "m", "name": "n", "args": {}})
    pixels = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)
    images = SampleImages(pixels, None, tuple(f"{row}.png" for row in range(40)), "made", 40)
    reference = Reference.of(CheckpointBackend(net, torch.device("cpu")), images, metadata)
    return Source(net, metadata, images, None, "fp32", "float32 NCHW"), reference


@pytest.mark.parametrize("name", NETS)
def test_what_a_runtime_computes_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    source, reference = source_of(name)
    path = tmp_path / "model.onnx"
    try:
        write_onnx(source, path)
    except ExportError as error:  # the exporter's own shapes contradict the operator's
        assert name in NOT_EXPORTED and "Inferred shape and existing shape differ" in str(error)
        return
    assert name not in NOT_EXPORTED
    inputs = torch.randn(5, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = source.net(inputs).numpy()
    deviating = set()
    for runtime in ("onnxruntime", "openvino"):
        try:
            got = load_backend(path, device="cpu", runtime=runtime)[0](inputs.numpy())
        except Exception:
            deviating.add(runtime)
            continue
        if got.shape != expected.shape or np.abs(got - expected).max() > 1e-3 * np.abs(expected).max():
            deviating.add(runtime)
    verification = verify_file(EXPORT_FORMATS["onnx"], path, source, reference, "cpu")
    assert bool(verification.problem) == bool(deviating), verification
    assert {runtime for runtime, result in verification.runs if result.problem} == deviating
    assert deviating >= NETS[name][1]


@pytest.mark.parametrize("name", ["antialias", "divisor_override", "average ceil_mode padding"])
def test_a_description_computes_as_the_net_or_is_refused(name: str, tmp_path: Path) -> None:
    source, reference = source_of(name)
    path = tmp_path / "model.json"
    try:
        write_json(source, path)
    except DescriptionError:
        return
    inputs = torch.randn(5, 3, SIZE, SIZE)
    got = load_backend(path, device="cpu")[0](inputs.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(got, source.net(inputs).numpy(), atol=1e-4)
    assert verify_file(EXPORT_FORMATS["json"], path, source, reference, "cpu").problem == ""


def test_a_float_file_that_differs_on_another_runtime_is_refused_and_an_int8_one_is_not() -> None:
    runs = [("onnxruntime", ParityResult(count=9)), ("openvino", ParityResult(count=9, problem="a logit differs"))]
    assert Verification(True, runs).problem == "a logit differs (on openvino)"
    assert Verification(False, runs).problem == ""
    lacking = [runs[0], ("openvino", ParityResult(problem="openvino cannot load it"))]
    assert Verification(True, lacking).problem == ""
