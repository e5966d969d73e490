"""Wide ResNet and the stem for small images, against published sizes and the layers written out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from nets.net_interface import build_net
from nets.simsiam_module import SimSiam_probe
from nets.support.errors import NetError
from nets.support.gradient_checkpointing import enable_gradient_checkpointing
from nets.support.saliency import heat_mapper
from nets.wide_resnet_module import WideResNet
from tests.helpers.exported import build_metadata, export_onnx

SMALL = {"depth": 10, "widen_factor": 2}


def build(module: str, name: str, size_px: int = 32, **model_args: Any) -> nn.Module:
    sizes = {"img_height": size_px, "img_width": size_px}
    return build_net(f"{module}_module", name, num_classes=10, model_args=model_args, **sizes)


def with_trained_norms(net: nn.Module) -> nn.Module:
    """Return the net in eval mode, its batch norms without values of 0 and 1, as after a training."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def wide() -> nn.Module:
    torch.manual_seed(0)
    return with_trained_norms(build("wide_resnet", "WideResNet", **SMALL))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("depth", "widen_factor", "millions"),  # Zagoruyko & Komodakis 2016, tables 2, 3 and 5
    [(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (28, 10, 36.5), (22, 8, 17.2), (16, 8, 11.0), (16, 10, 17.1)],
)
def test_the_published_numbers_of_parameters(depth: int, widen_factor: int, millions: float) -> None:
    with torch.device("meta"):
        net = build("wide_resnet", "WideResNet", depth=depth, widen_factor=widen_factor)
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 1) == millions
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert sum(conv.kernel_size == (3, 3) for conv in convolutions) == depth - 3  # besides them three 1x1 and linear


def test_forward_is_the_layers_written_out(wide: nn.Module, images: torch.Tensor) -> None:
    state = wide.state_dict()

    def norm_relu(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"]).relu()

    x = functional.conv2d(images, state["conv1.weight"], padding=1)
    for group, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2)):  # depth 10: a block each
        activated = norm_relu(x, f"{group}.0.bn1")
        branch = functional.conv2d(activated, state[f"{group}.0.conv1.weight"], stride=stride, padding=1)
        branch = functional.conv2d(norm_relu(branch, f"{group}.0.bn2"), state[f"{group}.0.conv2.weight"], padding=1)
        x = branch + functional.conv2d(activated, state[f"{group}.0.shortcut.weight"], stride=stride)
    assert x.shape == (3, 128, 8, 8)
    expected = norm_relu(x, "bn").mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    with torch.no_grad():
        torch.testing.assert_close(wide(images), expected, rtol=1e-4, atol=1e-4)


def test_later_blocks_add_their_input_itself() -> None:
    net = WideResNet(depth=16, widen_factor=1)
    shortcuts = [name for name, _ in net.named_modules() if name.endswith("shortcut")]
    assert shortcuts == ["layer2.0.shortcut", "layer3.0.shortcut"]  # 16 channels stay 16 in the first group
    block = net.layer1[1].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)


def test_dropout_is_between_the_convolutions() -> None:
    net = WideResNet(**SMALL, dropout=0.3)
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.3] * 3
    seen = []
    net.layer1[0].conv2.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    net(torch.randn(2, 3, 16, 16))
    kept = seen[0][seen[0] > 0]
    assert (seen[0] == 0).float().mean() > 0.55  # ReLU's half, and three tenths of the rest
    assert float(kept.min()) >= 0


@pytest.mark.parametrize("num_channels", [1, 3])
def test_one_batch_is_overfitted_by_every_parameter(num_channels: int) -> None:
    torch.manual_seed(0)
    net = WideResNet(depth=10, widen_factor=1, num_classes=5, num_channels=num_channels)
    images, labels = torch.randn(8, num_channels, 16, 20), torch.arange(8) % 5
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(80):
        loss = functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.any() for parameter in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < 1.0 < losses[0]


@pytest.mark.parametrize(
    ("model_args", "sentence"),
    [
        ({"depth": 27}, "depth must be 6n + 4 with n at least 1, such as 16, 22, 28 or 40, got 27"),
        ({"depth": 4}, "depth must be 6n + 4 with n at least 1, such as 16, 22, 28 or 40, got 4"),
        ({"widen_factor": 0}, "widen_factor must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"depth": "28"}, "nets/wide_resnet_module.py: WideResNet: model_args.depth must be int, got '28'"),
    ],
)
def test_wrong_arguments_are_sentences(model_args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NetError) as caught:
        build("wide_resnet", "WideResNet", **model_args)
    assert str(caught.value) == sentence


def test_torchscript_and_onnx_give_the_nets_logits(wide: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    with torch.no_grad():
        expected = wide(images)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit")  # deprecated
            traced = torch.jit.trace(wide, images[:2])
        torch.testing.assert_close(traced(images), expected)
    export_onnx(wide, images, tmp_path / "model.onnx", build_metadata(32))
    got = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(["logits"], {"images": images[:1].numpy()})[0]
    np.testing.assert_allclose(got, expected[:1].numpy(), atol=1e-5 * float(expected.abs().max()))


def test_gradient_checkpointing_and_heat_maps(wide: nn.Module, images: torch.Tensor) -> None:
    assert heat_mapper(wide, 3, 32, 32)(images, torch.tensor([0, 1, 2])).maps.shape == (3, 32, 32)
    assert enable_gradient_checkpointing(WideResNet(**SMALL)) == 3


# --- ResNet's stem for small images


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2"])
def test_the_small_stem_keeps_the_image_size(name: str) -> None:
    with torch.device("meta"):
        net: Any = build("resnet", name, stem="small")
        published = build("resnet", name)
        sizes = []
        for each in (net, published):
            each.layer4.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2:]))
            each(torch.zeros(2, 3, 32, 32))
    assert sizes == [(4, 4), (1, 1)]
    shapes = {key: value.shape for key, value in published.state_dict().items()}
    assert {key: value.shape for key, value in net.state_dict().items()} == shapes | {"conv1.weight": (64, 3, 3, 3)}


def test_the_small_stem_is_simsiams() -> None:
    """What SimSiam has learnt can go on in the net alone."""
    torch.manual_seed(0)
    net, probe = build("resnet", "resnet18", stem="small").eval(), SimSiam_probe("resnet18", 10, stem="small").eval()
    missing = net.load_state_dict(probe.backbone.state_dict(), strict=False).missing_keys
    assert missing == ["fc.weight", "fc.bias"]
    net.fc.load_state_dict(probe.fc.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images), probe(images))


def test_a_grey_small_stem_and_a_wrong_one() -> None:
    net = build_net(
        "resnet_module",
        "resnet18",
        num_classes=4,
        num_channels=1,
        img_height=28,
        img_width=28,
        model_args={"stem": "small"},
    )
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 4)
    with pytest.raises(NetError, match=r'^stem must be one of imagenet, small, got "cifar"$'):
        build("resnet", "resnet18", stem="cifar")
