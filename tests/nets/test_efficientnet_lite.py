"""EfficientNet-Lite against published sizes, TensorFlow's padding written out, and the names of published files."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from nets.efficientnet_lite_module import InvertedResidual, SamePad
from nets.net_interface import build_net
from nets.support.errors import NetError
from nets.support.pretrained import load_start_weights

PUBLISHED = {  # millions of parameters and of multiply-adds at the published size: the README of Google's lite variants
    "efficientnet_lite0": (224, 4.7, 407),
    "efficientnet_lite1": (240, 5.4, 631),
    "efficientnet_lite2": (260, 6.1, 899),
    "efficientnet_lite3": (280, 8.2, 1440),
    "efficientnet_lite4": (300, 13.0, 2640),
}


def build(name: str, size_px: int = 64, num_classes: int = 5, **model_args: float) -> nn.Module:
    sizes = {"img_height": size_px, "img_width": size_px}
    return build_net("efficientnet_lite_module", name, num_classes=num_classes, model_args=model_args, **sizes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes(name: str) -> None:
    size_px, millions, multiply_adds = PUBLISHED[name]
    counted = 0
    with torch.device("meta"):
        net = build(name, size_px, num_classes=1000).eval()

        def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            nonlocal counted
            counted += module.weight[0].numel() * output[0].numel()

        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(count)
        assert net(torch.zeros(1, 3, size_px, size_px)).shape == (1, 1000)
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 1) == millions
    assert 0.93 < counted / 1e6 / multiply_adds < 1  # the published figure counts norms too


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 11), (1, 2)])
def test_a_stride_of_2_is_padded_as_tensorflow_does(kernel: int, size: tuple[int, int]) -> None:
    """TensorFlow's documentation of "SAME": ceil(size / 2) outputs, the smaller half of the padding before."""
    x = torch.randn(1, 2, *size)
    sides = []
    for side in reversed(size):
        total = max((math.ceil(side / 2) - 1) * 2 + kernel - side, 0)
        sides += [total // 2, total - total // 2]
    assert torch.equal(SamePad(kernel)(x), functional.pad(x, sides))
    block = InvertedResidual(2, 4, kernel, stride=2, expansion=1, drop_path=0.0)
    assert block(x.expand(2, -1, -1, -1)).shape[2:] == (math.ceil(size[0] / 2), math.ceil(size[1] / 2))


def test_forward_is_the_layers_written_out() -> None:
    torch.manual_seed(0)
    net = build("efficientnet_lite0").eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    state = net.state_dict()
    images = torch.randn(2, 3, 33, 32)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3)

    with torch.no_grad():
        x = functional.conv2d(functional.pad(images, (0, 1, 1, 1)), state["conv_stem.weight"], stride=2)
        x = norm(x, "bn0").clamp(0, 6)  # (2, 32, 17, 16)
        strides = {1: (3, 2), 3: (5, 2), 5: (3, 2), 11: (5, 2)}
        for number in range(16):
            name = f"blocks.{number}"
            y = x
            if number:
                y = norm(functional.conv2d(y, state[f"{name}.expand_conv.weight"]), f"{name}.bn0").clamp(0, 6)
            kernel, stride = strides.get(number, (state[f"{name}.depthwise_conv.weight"].shape[2], 1))
            total = [
                max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in (y.shape[3], y.shape[2])
            ]
            y = functional.pad(y, [part for side in total for part in (side // 2, side - side // 2)])
            y = functional.conv2d(y, state[f"{name}.depthwise_conv.weight"], stride=stride, groups=y.shape[1])
            y = norm(y, f"{name}.bn1").clamp(0, 6)
            y = norm(functional.conv2d(y, state[f"{name}.project_conv.weight"]), f"{name}.bn2")
            x = x + y if x.shape == y.shape else y
        x = norm(functional.conv2d(x, state["conv_head.weight"]), "bn1").clamp(0, 6)
        expected = x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
        torch.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-4)


def test_published_names_are_found() -> None:
    """Published files begin each part of a name with an underscore: _blocks.0._bn1.weight."""
    torch.manual_seed(0)
    source, net = build("efficientnet_lite0", num_classes=7), build("efficientnet_lite0")
    published = {
        ".".join(part if part.isdecimal() or index > depth else f"_{part}" for index, part in enumerate(parts)): value
        for name, value in source.state_dict().items()
        for parts in [name.split(".")]
        for depth in [len(parts) - 2]
    }
    assert "_blocks.0._bn1.weight" in published and "_conv_stem.weight" in published
    report = load_start_weights(net, published, new_head=True)
    assert set(report.skipped_head) == {"fc.weight", "fc.bias"}
    assert not (report.missing or report.unexpected or report.skipped_shape)
    assert torch.equal(net.blocks[3].depthwise_conv.weight, source.blocks[3].depthwise_conv.weight)


@pytest.mark.parametrize("name", PUBLISHED)
def test_stages_end_at_strides_4_to_32(name: str) -> None:
    net = build(name).eval()
    sizes = []
    for stage in net.stage_names:
        net.get_submodule(stage).register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2]))
    with torch.no_grad():
        net(torch.zeros(1, 3, 64, 64))
    assert sizes == [16, 8, 4, 2]


def test_stochastic_depth_grows_and_is_off_in_eval_mode() -> None:
    net = build("efficientnet_lite0", drop_path=0.32)
    rates = [block.drop.rate for block in net.blocks]
    assert rates == pytest.approx([0.02 * number for number in range(16)])
    images = torch.randn(2, 3, 32, 32)
    net.eval()
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"num_channels": 65}, "num_channels must be from 1 to 64, got 65"), ({"dropout": 1.0}, "dropout must be"),
     ({"drop_path": -0.1}, "drop_path must be")],
)  # fmt: skip
def test_mistakes(changes: dict[str, float], sentence: str) -> None:
    channels = int(changes.pop("num_channels", 3))
    with pytest.raises(NetError, match=sentence):
        build_net(
            "efficientnet_lite_module", "efficientnet_lite0", num_classes=3, num_channels=channels, img_height=32,
            img_width=32, model_args=changes,
        )  # fmt: skip
