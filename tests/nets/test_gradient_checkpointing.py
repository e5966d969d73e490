"""Gradient checkpointing changes nothing but memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nets.net_interface import build_net
from nets.support.errors import NetError
from nets.support.gradient_checkpointing import CheckpointedSequential, enable_gradient_checkpointing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("module", "name", "size_px"),
    [
        ("GeM_ResNet_module", "GeM_ResNet_AVP", 32),
        ("mobilenet_v3_module", "mobilenet_v3_small", 32),  # in-place layers that give another result when repeated
        ("squeezenet_module", "squeezenet1_1", 32),
        ("densenet_module", "densenet121", 32),
        ("shufflenet_v2_module", "shufflenet_v2_x0_5", 32),
        ("mnasnet_module", "mnasnet0_5", 32),
        ("efficientnet_module", "efficientnet_b0", 32),
        ("efficientnet_lite_module", "efficientnet_lite0", 32),
        ("regnet_module", "regnet_y_400mf", 32),
        ("swin_module", "swin_t", 32),
        ("vit_module", "vit_b_32", 32),
    ],
)
def test_equal_gradients_outputs_and_statistics(module: str, name: str, size_px: int) -> None:
    torch.manual_seed(0)
    net = build_net(module, name, num_classes=4, img_height=size_px, img_width=size_px, model_args={})
    other = copy.deepcopy(net)
    assert enable_gradient_checkpointing(other) > 0
    assert list(net.state_dict()) == list(other.state_dict())
    images = torch.randn(3, 3, size_px, size_px)
    outputs = []
    for each in (net, other):
        torch.manual_seed(1)  # dropout and stochastic depth
        outputs.append(each.train()(images))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for (key, ours), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    assert torch.equal(net.eval()(images), other.eval()(images))


def test_backward_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for checkpointed in (False, True):
        net = build_net("resnet_module", "resnet18", num_classes=4, img_height=64, img_width=64, model_args={})
        if checkpointed:
            enable_gradient_checkpointing(net)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            net(torch.randn(4, 3, 64, 64))
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_twice_is_once_and_slices_and_copies_work() -> None:
    net = build_net("vgg_module", "vgg11_bn", num_classes=4, img_height=32, img_width=32, model_args={})
    enable_gradient_checkpointing(net)
    enable_gradient_checkpointing(net)
    features = copy.deepcopy(net.features)
    assert isinstance(features, CheckpointedSequential)
    output = features[:4](torch.randn(2, 3, 32, 32))
    assert output.shape == (2, 64, 16, 16)
    output.sum().backward()
    output = features(torch.randn(2, 3, 32, 32)).sum()
    output.backward(retain_graph=True)
    output.backward()
    assert features[1].num_batches_tracked.item() == 2


def test_a_net_without_stages_is_refused() -> None:
    with pytest.raises(NetError) as caught:
        enable_gradient_checkpointing(nn.Linear(2, 2))
    assert str(caught.value) == (
        "Linear has no sequential stages for gradient checkpointing (looked for layer1, layer2, layer3, layer4, "
        "stage2, stage3, stage4, features, layers, blocks, trunk_output); switch it off for this net"
    )
