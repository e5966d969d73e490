"""timm's nets: as a net, as features, and as a backbone with stages; the reference is timm's own net."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nets.net_interface import build_net, net_task
from nets.pim_module import PIM
from nets.simsiam_module import SimSiam, SimSiam_probe
from nets.support import timm_builder
from nets.support.encoders import build_encoder
from nets.support.errors import NetError
from nets.support.pretrained import load_start_weights, published_state_dict
from nets.support.timm_builder import TimmStages, pretrained_cfg

timm = pytest.importorskip("timm", reason="timm is not installed: requirements-timm.txt")
pytestmark = pytest.mark.usefixtures("one_thread")

TINY = ["test_resnet", "test_convnext", "test_efficientnet", "test_vit", "test_byobnet", "test_mambaout"]


def build(name: str, side: int = 64, num_classes: int = 5, num_channels: int = 3, **args: Any) -> nn.Module:
    return build_net(
        "timm_module",
        "timm_net",
        num_classes=num_classes,
        num_channels=num_channels,
        img_height=side,
        img_width=side,
        model_args={"model_type": name, **args},
    )


def published(name: str) -> nn.Module:
    """Return timm's own net with 10 classes, at its own size, as its published files have it."""
    torch.manual_seed(7)
    net: nn.Module = timm.create_model(name, num_classes=10)
    return net.eval()


@pytest.mark.parametrize("name", TINY)
def test_the_net_is_timms_by_names_outputs_and_gradients(name: str) -> None:
    net = build(name).eval()
    sizes = {"img_size": 64} if name == "test_vit" else {}
    own = timm.create_model(name, num_classes=5, **sizes).eval()
    assert [(key, value.shape) for key, value in net.state_dict().items()] == [
        (key, value.shape) for key, value in own.state_dict().items()
    ]
    own.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = net(images)
        assert torch.equal(logits, own(images)) and logits.shape == (2, 5)
    grey = build(name, num_channels=1).train()
    grey(torch.randn(4, 1, 64, 64)).logsumexp(1).sum().backward()
    assert [
        key for key, value in grey.named_parameters() if value.grad is None or not value.grad.isfinite().all()
    ] == []
    assert net_task("timm_module", "timm_net") == "classification"


def test_the_heads_are_timms_classifiers() -> None:
    assert build("test_resnet").head_names == ("fc",)
    assert build("test_convnext").head_names == ("head.fc",)
    assert build("deit_tiny_distilled_patch16_224", 32).head_names == ("head", "head_dist")
    net = build("deit_tiny_distilled_patch16_224", 32, num_classes=3)
    fresh = net.state_dict()["head_dist.weight"].clone()
    report = load_start_weights(net, published("deit_tiny_distilled_patch16_224").state_dict(), new_head=True)
    assert report.skipped_head == ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    assert torch.equal(net.state_dict()["head_dist.weight"], fresh)


def test_rates_are_passed_on() -> None:
    net = build("test_vit", dropout=0.25, drop_path=0.5)
    assert net.head_drop.p == 0.25 and net.blocks[-1].drop_path1.drop_prob == 0.5
    with pytest.raises(NetError, match="dropout must be at least 0 and below 1, got 1"):
        build("test_vit", dropout=1.0)
    with pytest.raises(NetError, match=r"^vgg11 has no drop_path$"):
        build("vgg11", 32, drop_path=0.1)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet19", r'timm \S+ has no net "resnet19"; did you mean "resnet1\d"\?'),
        ("resnet18.none", 'timm has no weights "none" of resnet18; it knows: .*a1_in1k'),
        ("hf-hub:timm/resnet18.a1_in1k", '"hf-hub:timm/resnet18.a1_in1k" would be a download .*nothing is downloaded'),
        ("local-dir:weights", '"local-dir:weights" would be a download or a folder'),
        ("test_vit", r"test_vit does not take images of 40x40 px \(published for 160x160\): "),
    ],
)
def test_mistakes_are_sentences(name: str, sentence: str) -> None:
    with pytest.raises(NetError, match=sentence):
        build(name, 40)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    for name in ("load_pretrained", "load_custom_pretrained"):
        monkeypatch.setattr(f"timm.models._builder.{name}", refuse)
    build("test_resnet.r160_in1k")
    with pytest.raises(NetError, match='torchvision publishes no weights for "timm:resnet18"'):
        published_state_dict("timm_module", "timm_net", {"model_type": "resnet18"})


def test_without_timm_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_builder, "is_installed", lambda: False)
    for make in (lambda: build("test_resnet"), lambda: PIM("timm:test_resnet"), lambda: SimSiam("timm:test_resnet")):
        with pytest.raises(NetError, match=r"pip install -r requirements-timm.txt$"):
            make()


# --- start weights


def test_a_vits_positions_are_fitted_to_the_size_as_timm_does() -> None:
    """The reference is timm's own resampling, called by itself."""
    start = published("vit_tiny_patch16_224").state_dict()
    net = build("vit_tiny_patch16_224", 96)
    report = load_start_weights(net, start, new_head=True)
    expected = timm.layers.resample_abs_pos_embed(start["pos_embed"], (6, 6), num_prefix_tokens=1)
    torch.testing.assert_close(net.state_dict()["pos_embed"], expected)
    assert report.skipped_shape == () and report.missing == ()


def test_names_of_the_papers_files_become_timms() -> None:
    """ConvNeXt's own files call the stem downsample_layers.0 and the blocks' layers dwconv, pwconv1 and pwconv2."""
    start = published("test_convnext").state_dict()
    theirs = {
        name.replace("stem.", "downsample_layers.0.")
        .replace("conv_dw", "dwconv")
        .replace("mlp.fc", "pwconv")
        .replace("head.fc.", "head.")
        .replace("head.norm.", "norm."): value
        for name, value in start.items()
        if "downsample" not in name
    }
    for stage in range(1, 4):
        for part in ("0.weight", "0.bias", "1.weight", "1.bias"):
            theirs[f"downsample_layers.{stage}.{part}"] = start[f"stages.{stage}.downsample.{part}"]
    theirs = {
        ".".join(p for p in name.split(".") if p != "blocks"): value for name, value in theirs.items()
    }  # stages.0.0.dwconv.weight
    net = build("test_convnext")
    report = load_start_weights(net, theirs, new_head=True)
    assert report.missing == () and report.unexpected == () and report.skipped_shape == ()
    state = net.state_dict()
    assert all(torch.equal(state[name], value) for name, value in start.items() if not name.startswith("head.fc."))


# --- features and stages


def hooked(net: nn.Module, names: list[str], images: torch.Tensor) -> list[torch.Tensor]:
    """Return what modules of a net compute."""
    outputs: list[torch.Tensor] = []
    handles = [
        net.get_submodule(name).register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for name in names
    ]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("test_resnet", [f"layer{number}" for number in range(1, 5)]),
        ("test_convnext", [f"stages.{number}" for number in range(4)]),
    ],
)
def test_stages_are_the_maps_of_strides_4_to_32(name: str, modules: list[str]) -> None:
    stages = TimmStages(name, 3, (64, 96)).eval()
    whole = published(name)
    load_start_weights(around_it(stages), whole.state_dict(), new_head=True)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = stages(images)
    assert list(maps) == ["stage1", "stage2", "stage3", "stage4"]
    expected = hooked(whole, modules, images)
    for stride, x, value in zip((4, 8, 16, 32), maps.values(), expected, strict=True):
        assert x.shape[2:] == (64 // stride, 96 // stride)
        torch.testing.assert_close(x, value)


@pytest.mark.parametrize(
    ("name", "modules", "strides"),
    [
        ("test_resnet", [f"layer{number}" for number in range(1, 5)], (4, 8, 16, 32)),
        ("test_convnext", [f"stages.{number}" for number in range(4)], (4, 8, 16, 32)),
        ("test_resnet", [f"layer{number}" for number in range(1, 5)], (4, 8, 16, 16)),
    ],
)
def test_an_encoder_gives_the_nets_maps(name: str, modules: list[str], strides: tuple[int, ...]) -> None:
    encoder = build_encoder(f"timm:{name}", 3, strides[-1]).eval()
    whole = published(name)
    load_start_weights(around_it(encoder), whole.state_dict(), new_head=True)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = encoder(images)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert encoder.strides[-4:] == strides
    expected = hooked(whole, modules, images)
    for x, value in list(zip(maps[-4:], expected, strict=True))[: 4 if strides[-1] == 32 else 3]:
        torch.testing.assert_close(x, value)


@pytest.mark.parametrize(
    ("module", "net_name", "name"),
    [
        ("unet_module", "backbone_unet", "test_convnext"),
        ("linknet_module", "LinkNet", "test_resnet"),
        ("deeplab_module", "deeplabv3plus", "test_efficientnet"),
        ("lraspp_module", "lraspp", "test_convnext"),
        ("detector_module", "Detector", "test_convnext"),
        ("torchvision_detectors_module", "fcos", "test_resnet"),
        ("torchvision_detectors_module", "ssdlite", "test_efficientnet"),
    ],
)
def test_nets_of_masks_and_boxes_take_a_timm_backbone_and_its_weights(module: str, net_name: str, name: str) -> None:
    sizes = {"num_classes": 3, "num_channels": 3, "img_height": 64, "img_width": 64}
    net = build_net(module, net_name, **sizes, model_args={"model_type": f"timm:{name}"})
    start = published(name).state_dict()
    report = load_start_weights(net, start, new_head=True)
    place = "backbone.net.net." if module == "torchvision_detectors_module" else "backbone.net."
    backbone = [key for key in net.state_dict() if key.startswith(place)]
    assert len(backbone) > 20 and set(backbone) <= {*report.loaded}
    net.train()
    output = net(torch.randn(2, 3, 64, 64))
    assert output.shape == ((2, 3, 64, 64) if "detector" not in module else (2, output.shape[1], 7))
    output.square().mean().backward()
    assert [key for key, p in net.named_parameters() if key in backbone and p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "output_stride", "sentence"),
    [
        ("vit_tiny_patch16_224", 32, "timm's vit_tiny_patch16_224 takes images of one size"),
        ("test_vit2", 32, "timm's test_vit2 takes images of one size"),
        ("vgg11", 16, "timm's vgg11 cannot dilate its last stage, which this net needs"),
        (
            "mobilenetv3_small_050",
            16,
            "timm's mobilenetv3_small_050 cannot dilate its last stage, which this net needs",
        ),
        ("resnet19", 32, 'has no net "resnet19"; did you mean "resnet18"?'),
    ],
)
def test_what_is_no_encoder_is_told(name: str, output_stride: int, sentence: str) -> None:
    with pytest.raises(NetError) as caught:
        build_encoder(f"timm:{name}", 3, output_stride)
    assert sentence in str(caught.value)


def test_linknet_needs_a_map_of_stride_2() -> None:
    with pytest.raises(NetError, match="LinkNet adds a map of stride 2, and timm:test_convnext has none"):
        build_net(
            "linknet_module",
            "LinkNet",
            num_classes=2,
            num_channels=3,
            img_height=64,
            img_width=64,
            model_args={"model_type": "timm:test_convnext"},
        )


def around_it(stages: nn.Module) -> nn.Module:
    """Return a net around a backbone, as PIM is one."""
    net = nn.Module()
    net.add_module("backbone", stages)
    net.head_names = ()  # type: ignore[assignment]
    return net


def test_a_net_of_one_resolution_gives_four_of_its_blocks() -> None:
    stages = TimmStages("vit_tiny_patch16_224", 3, (64, 96)).eval()
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=(64, 96)).eval()
    load_start_weights(around_it(stages), whole.state_dict(), new_head=True)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = list(stages(images).values())
    expected = hooked(whole, ["blocks.2", "blocks.5", "blocks.8", "blocks.11"], images)  # of 12
    for x, tokens in zip(maps, expected, strict=True):
        torch.testing.assert_close(x, tokens[:, 1:].transpose(1, 2).reshape(2, 192, 4, 6))  # without the class token


def test_pim_over_a_timm_backbone_learns_and_takes_its_weights() -> None:
    net = PIM("timm:test_convnext", num_classes=4, img_height=64, img_width=64, fpn_size=16)
    start = published("test_convnext").state_dict()
    report = load_start_weights(net, start, new_head=True)
    state = net.state_dict()
    body = [name for name in start if f"backbone.net.{name}" in state]
    assert len(body) > 80 and all(torch.equal(state[f"backbone.net.{name}"], start[name]) for name in body)
    assert set(start) - set(body) == {"head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"}
    assert not [name for name in report.missing if name.startswith("backbone.")]
    net.logits(net.train().outputs(torch.randn(2, 3, 64, 64))).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None and name.startswith("backbone.")] == []


def test_pim_names_what_is_no_backbone() -> None:
    with pytest.raises(NetError, match="timm's levit_128s has 3 stages of feature maps; 4 are needed"):
        PIM("timm:levit_128s", img_height=224, img_width=224, fpn_size=8)


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_vit"])
def test_simsiam_and_its_probe_take_features_of_timm(name: str) -> None:
    start = published(name)
    sizes = {"img_height": 64, "img_width": 64}
    probe = SimSiam_probe(f"timm:{name}", num_classes=3, **sizes).eval()
    simsiam = SimSiam(f"timm:{name}", projector_size=16, predictor_size=8, **sizes).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = start.forward_head(start.forward_features(images), pre_logits=True)
        for net in (probe, simsiam):
            report = load_start_weights(net, start.state_dict(), new_head=True)
            assert not [key for key in report.missing if key.startswith("backbone.")]
            torch.testing.assert_close(net.backbone(images), expected)
        assert torch.equal(simsiam(images), simsiam.backbone(images))
    assert probe(images).shape == (2, 3) and probe.fc.in_features == expected.shape[1]
    with pytest.raises(NetError, match='only torchvision\'s ResNets have the stem "small", timm:test_resnet does not'):
        SimSiam("timm:test_resnet", stem="small", **sizes)


def test_the_record_of_published_weights_is_that_of_the_tag() -> None:
    values = pretrained_cfg("test_resnet.r160_in1k")
    assert values["input_size"] == (3, 160, 160) and values["mean"] == (0.5, 0.5, 0.5) and values["crop_pct"] == 0.95
    assert pretrained_cfg("vit_tiny_patch16_224")["fixed_input_size"] is True
