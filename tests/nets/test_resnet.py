from __future__ import annotations

import pytest
import torch
import torchvision

from nets.support.pretrained import adopt_weights
from nets.support.rates import StochasticDepth
from nets.support.resnet import RESNETS, build_resnet
from nets.support.undrawn import WithoutDrawing


@pytest.mark.parametrize("zero_init_residual", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_values_and_outputs_are_torchvisions(name: str, zero_init_residual: bool) -> None:
    torch.manual_seed(3)
    ours = build_resnet(name, 7, 3, zero_init_residual=zero_init_residual)
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(name, num_classes=7, zero_init_residual=zero_init_residual)
    assert [k for k, _ in ours.named_modules()] == [k for k, _ in theirs.named_modules()]
    values = ours.state_dict()
    assert list(values) == list(theirs.state_dict())
    assert all(torch.equal(values[key], value) for key, value in theirs.state_dict().items())
    images = torch.randn(2, 3, 40, 33)
    assert torch.equal(ours(images), theirs(images))  # in training mode
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_all_resnets_of_torchvision_are_there() -> None:
    names = torchvision.models.list_models(module=torchvision.models, include=["*resnet*", "resnext*"])
    assert set(RESNETS) == set(names)


def test_stochastic_depth_is_torchvisions() -> None:
    x = torch.randn(16, 3, 2, 2)
    torch.manual_seed(0)
    ours = StochasticDepth(0.4)(x)
    torch.manual_seed(0)
    assert torch.equal(ours, torchvision.ops.StochasticDepth(0.4, "row")(x))
    assert StochasticDepth(0.4).eval()(x) is x


@pytest.mark.parametrize("name", ["mnasnet0_5", "googlenet", "swin_v2_t", "vit_b_32", "resnet18"])
def test_a_net_without_drawn_weights_is_the_same_once_it_has_a_files(name: str) -> None:
    arguments = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    theirs = torchvision.models.get_model(name, num_classes=3, **arguments).eval()
    with WithoutDrawing():
        net = torchvision.models.get_model(name, num_classes=3, **arguments).eval()
    weights = {k: v.double() if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    adopt_weights(net, weights)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in theirs.state_dict().items())
    assert all(value.dtype == net.state_dict()[key].dtype for key, value in theirs.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in theirs.parameters()]
    images = torch.randn(1, 3, 256 if name == "swin_v2_t" else 224, 224)
    with torch.no_grad():
        assert torch.equal(net(images), theirs(images))


def test_a_resnet_is_built_without_a_drawn_number() -> None:
    before = torch.random.get_rng_state()
    with WithoutDrawing():
        build_resnet("resnet18", 3, 3)
        torch.nn.Embedding(3, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert build_resnet("resnet18", 3, 3).conv1.weight.std() > 0
