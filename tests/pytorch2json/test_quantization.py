"""Descriptions in int8: what is rounded, run by the interpreter, checked, and built by TensorRT."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pytorch2json.converter import convert
from pytorch2json.description_checks import find_problems
from pytorch2json.description_file import read_description, write_description
from pytorch2json.interpreter import Interpreter
from pytorch2json.network import DescriptionError, Network
from pytorch2json.quantization import IntegerKernel, quantized

IMAGES = torch.tensor([[-2.6, 1.0], [1.283, -1.0], [0.011, 0.029]]).view(3, 2, 1, 1)


class Small(nn.Module):
    """Two 1x1 convolutions that read the same images, their sum, a ReLU and a linear layer: (N, 2, 1, 1) -> (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, bias=False)
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.left.weight.copy_(torch.tensor([[0.5, -0.1], [-2.0, 1.1]]).view(2, 2, 1, 1))
            self.left.bias.copy_(torch.tensor([0.25, -0.5]))
            self.right.weight.copy_(torch.tensor([[0.127, 0.0], [0.0, 0.0127]]).view(2, 2, 1, 1))
            self.head.weight.copy_(torch.tensor([[1.0, -1.0], [0.5, 2.0]]))
            self.head.bias.copy_(torch.tensor([0.0, 1.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head((self.left(images) + self.right(images)).relu().flatten(1))
        return logits


def kernel(rows: list[list[int]], scales: list[float], input_scale: float, is_conv: bool = True) -> IntegerKernel:
    values = torch.tensor(rows, dtype=torch.int8)
    return IntegerKernel(values[..., None, None] if is_conv else values, torch.tensor(scales), input_scale)


LEFT = kernel([[127, -25], [-127, 70]], [0.5 / 127, 2 / 127], 0.02)
RIGHT = kernel([[127, 0], [0, 127]], [0.001, 0.0001], 0.02)
HEAD = kernel([[127, -127], [32, 127]], [1 / 127, 2 / 127], 0.05, is_conv=False)


@pytest.fixture(scope="module")
def plain() -> tuple[Network, dict[str, torch.Tensor]]:
    return convert(Small().eval(), IMAGES)


@pytest.fixture(scope="module")
def rounded(plain: tuple[Network, dict[str, torch.Tensor]]) -> tuple[Network, dict[str, torch.Tensor]]:
    return quantized(*plain, [LEFT, RIGHT, HEAD])


def test_the_logits_are_those_of_integer_arithmetic(rounded: tuple[Network, dict[str, torch.Tensor]]) -> None:
    """The same in integers (Jacob et al. 2018, section 2.2, with zero points of 0): sums in int64, then the scales."""
    steps = np.array([[-128, 50], [64, -50], [1, 1]])  # -130 is limited; 64.15, 0.55 and 1.45 are rounded
    left = steps @ np.array([[127, -25], [-127, 70]]).T * 0.02 * np.array([0.5, 2]) / 127 + np.array([0.25, -0.5])
    right = steps @ np.array([[127, 0], [0, 127]]).T * 0.02 * np.array([0.001, 0.0001])
    hidden = np.clip(np.round(np.maximum(left + right, 0) / 0.05), -128, 127)
    wanted = hidden @ np.array([[127, -127], [32, 127]]).T * 0.05 * np.array([1, 2]) / 127 + np.array([0, 1])
    np.testing.assert_allclose(Interpreter(*rounded)(IMAGES).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_tensors_are_rounded_once_and_their_names_say_what_they_are(
    rounded: tuple[Network, dict[str, torch.Tensor]],
) -> None:
    network, weights = rounded
    tensors = Interpreter(network, weights).run(IMAGES)
    assert tensors["images.quantize"].flatten().tolist() == [-128, 50, 64, -50, 1, 1]
    torch.testing.assert_close(tensors["images.dequantize"].flatten()[:3], torch.tensor([-2.56, 1.0, 1.28]))
    readers = [layer.name for layer in network.layers if "images" in layer.inputs]
    assert readers == ["images.quantize"]
    kinds = [layer.type for layer in network.layers]
    assert (kinds.count("quantize"), kinds.count("dequantize")) == (2, 2 + 3)
    left = next(layer for layer in network.layers if layer.name == "left")
    assert left.inputs == ("images.dequantize", "left.kernel_dequantized") and left.weights.keys() == {"bias"}
    assert weights["left.kernel_int8"].dtype == torch.int8 and "left.kernel" not in weights
    assert {tuple(value.shape) for name, value in weights.items() if name.endswith(".scale")} == {()}


def test_it_is_a_description_of_version_2_and_others_stay_at_1(
    plain: tuple[Network, dict[str, torch.Tensor]], rounded: tuple[Network, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    assert plain[0].format_version == 1
    network, weights = rounded
    assert (network.format_version, network.precision) == (2, "int8")
    write_description(tmp_path / "model.json", network, weights)
    read, tensors = read_description(tmp_path / "model.json")
    assert read.layers == network.layers
    assert torch.equal(Interpreter(read, tensors)(IMAGES), tensors[read.parity.output])


def test_a_kernel_of_no_layer_is_an_error(plain: tuple[Network, dict[str, torch.Tensor]]) -> None:
    other = kernel([[127, -25], [-127, 71]], [0.5 / 127, 2 / 127], 0.02)  # a step off
    with pytest.raises(DescriptionError, match="1 of 2 int8 kernels are those of no layer"):
        quantized(*plain, [other, RIGHT])


def test_two_scales_of_one_tensor_are_an_error(plain: tuple[Network, dict[str, torch.Tensor]]) -> None:
    other = IntegerKernel(RIGHT.values, RIGHT.scales, 0.03)
    with pytest.raises(DescriptionError, match=r'tensor "images" has two scales, 0\.02 and 0\.03'):
        quantized(*plain, [LEFT, other])


def changed(network: Network, name: str, **changes: Any) -> Network:
    layers = [layer.model_copy(update=changes) if layer.name == name else layer for layer in network.layers]
    return network.model_copy(update={"layers": tuple(layers)})


PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "axis": ({"name": "left.kernel_dequantized", "axis": 4}, "its scale is float32 (2,), must be float32 ()"),
    "no axis": ({"name": "left.kernel_dequantized", "axis": None}, "its scale is float32 (2,), must be float32 ()"),
    "a scale a channel": ({"name": "images.quantize", "axis": 1}, "its scale is float32 (), must be float32 (2,)"),
    "not int8": (
        {"name": "images.dequantize", "inputs": ("images", "images.scale")},
        "it is between float and int8 of one shape, got float32 ('N', 2, 1, 1), float32 ('N', 2, 1, 1)",
    ),
    "scale that is computed": (
        {"name": "images.quantize", "inputs": ("images", "images")},
        'its scale "images" must be a constant',
    ),
    "both kernels": ({"name": "left", "weights": {"kernel": "left.kernel_int8"}}, "its weights are ['kernel'], needs"),
    "another kernel": (
        {"name": "left", "inputs": ("images.dequantize", "images.dequantize")},
        "its kernel is float32 ('N', 2, 1, 1), must be float32 (2, 2, 1, 1)",
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_does_not_fit_is_refused(
    case: str, rounded: tuple[Network, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    changes, problem = PROBLEMS[case]
    where = f'layer "{changes["name"]}"'
    found = list(find_problems(changed(rounded[0], **changes), rounded[1]))
    assert any(text.startswith(where) and problem in text for text in found), found
    with pytest.raises(DescriptionError, match=re.escape(where)):
        write_description(tmp_path / "model.json", changed(rounded[0], **changes), rounded[1])


@pytest.mark.parametrize("value", [0.0, -0.02, float("inf"), float("nan")])
def test_a_scale_is_a_positive_number(
    value: float, rounded: tuple[Network, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    network, weights = rounded
    with pytest.raises(DescriptionError, match=r'"images\.quantize" .*its scale "images\.scale" must be above 0'):
        write_description(tmp_path / "model.json", network, weights | {"images.scale": torch.tensor(value)})


def test_version_1_has_no_int8(rounded: tuple[Network, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    network = rounded[0].model_copy(update={"format_version": 1})
    with pytest.raises(DescriptionError, match="format_version 1 has no such layers; it must be 2"):
        write_description(tmp_path / "model.json", network, rounded[1])


def test_tensorrt_builds_an_engine_from_it(rounded: tuple[Network, dict[str, torch.Tensor]]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx, which builds without a GPU")
    from pytorch2json.engine import build_engine

    assert len(build_engine(*rounded)) > 1000
