"""The float32 gradients of depthwise convolutions that are trained in bf16 on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nets.net_interface import build_net
from trainers.config_checks import training_config
from trainers.runtime.depthwise import use_float32_gradients
from trainers.runtime.device import Runtime
from trainers.tasks.classification import ClassificationTask
from trainers.train_step import Learner

LITE = {"model_module_name": "efficientnet_lite_module", "model_net_name": "efficientnet_lite0"}

CASES: dict[str, dict[str, Any]] = {
    "stride 1": {"kernel_size": 3, "padding": 1, "bias": False},
    "stride 2": {"kernel_size": 5, "stride": 2, "bias": False},
    "bias and dilation": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "two outputs a channel": {"kernel_size": 3, "padding": (1, 0)},
}


def run(net: nn.Module, images: torch.Tensor, weights: torch.Tensor, *, bf16: bool) -> list[torch.Tensor]:
    """Return the output, and the gradients of images and parameters for the output's weighted sum, all float32."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = net(images)
    output.backward(weights.to(output.dtype))
    gradients = [images.grad, *(parameter.grad for parameter in net.parameters())]
    return [output.detach().float(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_float32s(name: str) -> None:
    torch.manual_seed(0)
    width = 16 if name == "two outputs a channel" else 8
    plain = nn.Conv2d(8, width, groups=8, **CASES[name])
    net = copy.deepcopy(plain)
    use_float32_gradients(net)
    for module in (plain, net):  # numbers that bf16 holds, so that only the backward pass can differ
        for parameter in module.parameters():
            parameter.data = parameter.data.bfloat16().float()
    images = torch.randn(4, 8, 19, 17).bfloat16().float()
    weights = torch.randn(plain(images).shape).bfloat16().float()
    exact = run(plain, images, weights, bf16=False)
    got = run(net, images, weights, bf16=True)
    assert len(got) == len(exact) == 2 + len(list(net.parameters()))
    for one, other in zip(exact, got, strict=True):
        torch.testing.assert_close(other, one, rtol=2**-8, atol=1e-4)  # rounded to bf16 once, at the end


def test_frozen_layers_and_a_net_without_gradients_go_torchs_way() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1))
    net[0].requires_grad_(False)
    use_float32_gradients(net)
    images = torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        net(images).float().sum().backward()
    assert net[0].weight.grad is None and net[1].weight.grad is not None
    assert type(net[2]) is nn.Conv2d
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert net(images).grad_fn is None
    torch.testing.assert_close(net(images), copy.deepcopy(net)(images), rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_only_a_training_in_bf16_on_a_cpu_uses_them(precision: str, make_config: Callable[..., Path]) -> None:
    """And what it leaves names its tensors as ever."""
    config = training_config(make_config(precision=precision, **LITE))
    net = build_net(
        LITE["model_module_name"], LITE["model_net_name"], num_classes=3, img_height=32, img_width=32, model_args={}
    )
    names = list(net.state_dict())
    task = ClassificationTask(net)
    learner = Learner(config, task, Runtime(torch.device("cpu"), precision), rate=0.1)
    changed = [name for name, module in learner.task.net.named_modules() if type(module).__name__ == "_DepthwiseConv2d"]
    assert len(changed) == (16 if precision == "bf16" else 0)
    assert list(learner.deployed_net().state_dict()) == names
