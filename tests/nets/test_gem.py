"""GeM pooling and the ResNet around it, against formulas and nets from elsewhere."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from nets.GeM_ResNet_module import MODEL_TYPES, GeM_ResNet_AVP
from nets.support.gem import GeM

pytestmark = pytest.mark.usefixtures("one_thread")


def gem_by_numpy(features: torch.Tensor, p: float) -> np.ndarray:
    """Radenovic et al. 2018, eq. 3, image by image and channel by channel in float64."""
    x = features.double().numpy()
    pooled = np.empty(x.shape[:2])
    for image, channel in np.ndindex(*pooled.shape):
        values = np.maximum(x[image, channel].ravel(), 1e-6)
        pooled[image, channel] = (sum(value**p for value in values) / len(values)) ** (1 / p)
    return pooled


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_gem_equals_the_formula(p: float) -> None:
    features = torch.randn(3, 4, 5, 7)
    np.testing.assert_allclose(GeM(p)(features).detach().numpy(), gem_by_numpy(features, p), rtol=2e-5)


def test_gem_starts_at_3_with_one_learnable_exponent() -> None:
    gem = GeM()
    assert gem.p.shape == (1,) and gem.p.item() == 3.0 and gem.p.requires_grad and gem.eps == 1e-6
    gem(torch.rand(2, 3, 4, 4)).sum().backward()
    assert gem.p.grad is not None and gem.p.grad.item() != 0


@pytest.mark.parametrize(("driven_to", "stays"), [(-4.0, 1.0), (9.0, 6.0)])
def test_gem_exponent_is_brought_back_and_keeps_its_gradient(driven_to: float, stays: float) -> None:
    """A high rate once drove p below 0 and the loss to NaN; at p = 9 the gradient of a dark channel is NaN."""
    gem = GeM()
    torch.nn.init.constant_(gem.p, driven_to)
    features = torch.rand(2, 3, 4, 4)
    features[:, 0] = 0.0
    in_eval = gem.eval()(features).detach().numpy()
    np.testing.assert_allclose(in_eval, gem_by_numpy(features, stays), rtol=2e-5)
    features.requires_grad_(True)
    gem.train()(features).sum().backward()
    assert gem.p.item() == stays
    assert gem.p.grad is not None and torch.isfinite(gem.p.grad).all() and gem.p.grad.item() != 0
    assert features.grad is not None and torch.isfinite(features.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gem_stays_float32_under_autocast(dtype: torch.dtype) -> None:
    features = (60 * torch.rand(2, 3, 8, 8)).to(dtype)  # 60^3 overflows float16
    with torch.autocast("cpu", dtype=dtype):
        pooled = GeM()(features)
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled.detach().numpy(), gem_by_numpy(features, 3.0), rtol=1e-5)


def test_net_runs_under_autocast_and_in_half_precision() -> None:
    net = GeM_ResNet_AVP("resnet18").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under_autocast = net(images)
        in_bfloat16 = net.bfloat16()(images.bfloat16())
    for logits in (under_autocast, in_bfloat16):
        torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.05)


def test_classic_signature() -> None:
    parameters = list(inspect.signature(GeM_ResNet_AVP).parameters.values())[:3]
    assert [(p.name, p.default) for p in parameters] == [
        ("model_type", "resnet34"),
        ("in_size", 128),
        ("num_classes", 10),
    ]
    with torch.device("meta"):
        assert GeM_ResNet_AVP("resnet50", 64, 7).fc.weight.shape == (7, 2 * 2048)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_backbone_names_are_torchvisions(model_type: str) -> None:
    with torch.device("meta"):
        ours = GeM_ResNet_AVP(model_type).state_dict()
        theirs = torchvision.models.get_model(model_type, weights=None).state_dict()
    assert {k: v.shape for k, v in ours.items() if k not in ("fc.weight", "fc.bias", "gem.p")} == {
        k: v.shape for k, v in theirs.items() if not k.startswith("fc.")
    }


def test_features_equal_torchvisions_with_its_weights() -> None:
    theirs = torchvision.models.resnet18(weights=None)
    theirs.train()(torch.randn(4, 3, 64, 64))  # running statistics of their own
    theirs.eval()
    ours = GeM_ResNet_AVP("resnet18").eval()
    missing, unexpected = ours.load_state_dict(
        {k: v for k, v in theirs.state_dict().items() if "fc." not in k}, strict=False
    )
    assert sorted(missing) == ["fc.bias", "fc.weight", "gem.p"] and unexpected == []
    images = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        expected = nn.Sequential(*list(theirs.children())[:-2])(images)  # all but avgpool and fc
        features = ours.features(images)
        logits = ours(images)
    assert torch.equal(features, expected)
    pooled = np.concatenate([gem_by_numpy(expected, 3.0), expected.double().numpy().mean(axis=(2, 3))], axis=1)
    expected = pooled @ ours.fc.weight.detach().double().numpy().T + ours.fc.bias.detach().double().numpy()
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 97), (28, 28)])
def test_any_size_will_do(size: tuple[int, int]) -> None:
    assert GeM_ResNet_AVP("resnet18", num_channels=1).eval()(torch.randn(1, 1, *size)).shape == (1, 10)


@pytest.fixture(scope="module")
def small_net() -> GeM_ResNet_AVP:
    return GeM_ResNet_AVP("resnet18", num_classes=4).eval()


def test_export_with_a_free_batch_agrees(small_net: GeM_ResNet_AVP) -> None:
    dynamic = {"images": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(small_net, (torch.randn(2, 3, 40, 48),), dynamic_shapes=dynamic)
    assert not [node for node in exported.graph.nodes if "autocast" in str(node.target)]
    agrees_at_batch_1_and_3(exported.module(), small_net)


@pytest.mark.filterwarnings("ignore:.torch.jit.*:FutureWarning", "ignore:.torch.jit.*:DeprecationWarning")
def test_trace_agrees_at_other_batches(small_net: GeM_ResNet_AVP) -> None:
    agrees_at_batch_1_and_3(torch.jit.trace(small_net, torch.randn(2, 3, 40, 48)), small_net)


def agrees_at_batch_1_and_3(other: nn.Module, net: nn.Module) -> None:
    for batch in (1, 3):
        images = torch.randn(batch, 3, 40, 48)
        with torch.no_grad():
            torch.testing.assert_close(other(images), net(images), rtol=1e-4, atol=1e-5)
