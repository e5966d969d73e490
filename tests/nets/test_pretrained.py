"""Initial weights: files that fit, fit in part, and do not fit."""

from __future__ import annotations

import urllib.error
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from nets.GeM_ResNet_module import GeM_ResNet_AVP
from nets.net_interface import build_net
from nets.support.errors import NetError
from nets.support.pretrained import load_start_weights, published_state_dict

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, torch.Tensor]


def build(module: str, name: str, num_classes: int = 5, size_px: int = 64, num_channels: int = 3) -> nn.Module:
    return build_net(
        module,
        name,
        num_classes=num_classes,
        num_channels=num_channels,
        img_height=size_px,
        img_width=size_px,
        model_args={},
    )


def small(num_classes: int = 5, num_channels: int = 3) -> nn.Module:
    return build("shufflenet_v2_module", "shufflenet_v2_x0_5", num_classes, num_channels=num_channels)


def copied(net: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def no_download(*_: object, **__: object) -> State:
    raise urllib.error.URLError("no route to host")


def test_finetune_takes_torchvisions_resnet_into_gem() -> None:
    published = torchvision.models.resnet18(weights=None).state_dict()
    net = GeM_ResNet_AVP("resnet18", num_classes=7)
    fresh = net.fc.weight.detach().clone()
    report = load_start_weights(net, published, new_head=True)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in published.items() if "fc." not in name)
    assert torch.equal(net.fc.weight, fresh)
    assert report.skipped_head == ("fc.weight", "fc.bias")
    assert report.missing == ("gem.p",) and report.unexpected == () and report.skipped_shape == ()
    assert len(report.loaded) == 120 and report.percent == pytest.approx(100 * 120 / 123)
    assert report.summary() == (
        "loaded 120 of 123 tensors of the net (97.6 %)\n"
        "new head, left fresh: fc.weight, fc.bias\n"
        "not in the file, left fresh: gem.p"
    )


@pytest.mark.parametrize(
    ("module", "name", "head"),
    [
        ("shufflenet_v2_module", "shufflenet_v2_x0_5", "fc"),
        ("squeezenet_module", "squeezenet1_1", "classifier.1"),
        ("mobilenet_v3_module", "mobilenet_v3_small", "classifier.3"),
        ("densenet_module", "densenet121", "classifier"),
        ("inception_v3_module", "inception_v3", "fc"),
        ("vgg_module", "vgg11", "classifier.6"),
        ("vit_module", "vit_b_32", "heads.head"),
        ("swin_module", "swin_t", "head"),
        ("convnext_module", "convnext_tiny", "classifier.2"),
    ],
)
def test_finetune_leaves_the_head_fresh_even_when_shapes_agree(module: str, name: str, head: str) -> None:
    with torch.device("meta"):
        net = build(module, name, size_px=96)
        report = load_start_weights(net, build(module, name, size_px=96).state_dict(), new_head=True)
    assert report.skipped_head == (f"{head}.weight", f"{head}.bias")
    assert len(report.loaded) == len(net.state_dict()) - 2
    assert not report.missing and not report.unexpected and not report.skipped_shape


def test_update_takes_everything_buffers_too() -> None:
    source, net = small(), small()
    source.train()(torch.randn(2, 3, 64, 64))
    report = load_start_weights(net, source.state_dict(), new_head=False)
    assert report.percent == 100 and report.summary() == "loaded 338 of 338 tensors of the net (100.0 %)"
    assert all(torch.equal(net.state_dict()[name], value) for name, value in source.state_dict().items())
    assert net.state_dict()["conv1.1.num_batches_tracked"].item() == 1


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_stripped(prefix: str) -> None:
    source, net = small(), small()
    load_start_weights(net, {prefix + name: value for name, value in source.state_dict().items()}, new_head=False)
    assert torch.equal(net.state_dict()["fc.weight"], source.state_dict()["fc.weight"])


def test_a_wrapped_net_is_loaded_too() -> None:
    source, net = small(), small()
    report = load_start_weights(nn.DataParallel(net), source.state_dict(), new_head=True)
    assert report.skipped_head == ("fc.weight", "fc.bias")
    assert torch.equal(net.state_dict()["conv5.0.weight"], source.state_dict()["conv5.0.weight"])


def test_update_reports_every_difference_and_changes_nothing() -> None:
    net = small(num_classes=5)
    before = copied(net)
    state = copied(small(num_classes=1000))
    state["extra.weight"] = torch.zeros(1)
    for name in [name for name in state if name.startswith("stage2.0.branch1") and "num_batches" not in name]:
        del state[name]
    with pytest.raises(NetError) as caught:
        load_start_weights(net, state, new_head=False)
    assert str(caught.value) == (
        "the weights do not match ShuffleNetV2: 10 missing in the file: stage2.0.branch1.0.weight, "
        "stage2.0.branch1.1.weight, stage2.0.branch1.1.bias, stage2.0.branch1.1.running_mean, "
        "stage2.0.branch1.1.running_var, ... and 5 more; 1 unexpected in the file: extra.weight; "
        "2 of another shape: fc.weight (file (1000, 1024), net (5, 1024)), fc.bias (file (1000,), net (5,)). "
        'train_mode "update" needs all of them; "finetune" takes what fits and a new head'
    )
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_finetune_lists_what_does_not_match() -> None:
    state = copied(small())
    state["conv5.0.weight"] = torch.zeros(8, 192, 1, 1)
    state["extra.weight"] = torch.zeros(1)
    del state["conv1.1.bias"]
    report = load_start_weights(small(), state, new_head=True)
    assert report.skipped_shape == (("conv5.0.weight", (8, 192, 1, 1), (1024, 192, 1, 1)),)
    assert report.unexpected == ("extra.weight",) and report.missing == ("conv1.1.bias",)
    assert report.summary() == (
        "loaded 334 of 338 tensors of the net (98.8 %)\n"
        "new head, left fresh: fc.weight, fc.bias\n"
        "other shape, left fresh: conv5.0.weight (file (8, 192, 1, 1), net (1024, 192, 1, 1))\n"
        "not in the file, left fresh: conv1.1.bias\n"
        "only in the file: extra.weight"
    )


@pytest.mark.parametrize("new_head", [True, False])
def test_a_foreign_file_is_refused(new_head: bool) -> None:
    foreign = {f"encoder.{index}.weight": torch.zeros(1) for index in range(7)}
    with pytest.raises(NetError) as caught:
        load_start_weights(small(), foreign, new_head=new_head)
    assert str(caught.value) == (
        "the weights fit nothing in ShuffleNetV2: the file has encoder.0.weight, encoder.1.weight, encoder.2.weight, "
        "encoder.3.weight, encoder.4.weight, ... and 2 more; the net has conv1.0.weight, conv1.1.weight, conv1.1.bias, "
        "conv1.1.running_mean, conv1.1.running_var, ... and 333 more"
    )


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({}, "the weights are no state dict: a non-empty mapping of names to tensors is needed"),
        ({"epoch": 3}, "the weights are no state dict: the entry 'epoch' is of type int, not a tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(state: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NetError) as caught:
        load_start_weights(small(), state, new_head=True)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("in_file", "in_net", "way"), [(3, 1, "summed over the input channels"), (1, 3, "repeated, a third each")]
)
def test_first_conv_is_fitted_between_grey_and_colour(in_file: int, in_net: int, way: str) -> None:
    source, net = small(num_channels=in_file), small(num_channels=in_net)
    report = load_start_weights(net, source.state_dict(), new_head=True)
    assert report.converted == (f"conv1.0.weight: {in_file} input channels became {in_net}, {way}",)
    assert report.converted[0] in report.summary() and not report.skipped_shape
    grey = torch.randn(2, 1, 64, 64)
    outputs = []
    for each, channels in ((source, in_file), (net, in_net)):
        each.get_submodule("fc").load_state_dict(source.get_submodule("fc").state_dict())
        with torch.no_grad():
            outputs.append(each.eval()(grey.expand(-1, channels, -1, -1)))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    with pytest.raises(NetError, match=r"1 of another shape: conv1.0.weight \(file \(24, "):
        load_start_weights(small(num_channels=in_net), source.state_dict(), new_head=False)


def test_position_embeddings_are_interpolated() -> None:
    source = build("vit_module", "vit_b_32", size_px=64).state_dict()
    source["encoder.pos_embedding"] = torch.arange(5.0).reshape(1, 5, 1).expand(1, 5, 768)
    net = build("vit_module", "vit_b_32", size_px=96)
    report = load_start_weights(net, source, new_head=True)
    assert report.converted == ("encoder.pos_embedding: interpolated from 4 to 9 patches",)
    token_and_corners = net.state_dict()["encoder.pos_embedding"][0, [0, 1, 3, 7, 9], 0]
    torch.testing.assert_close(token_and_corners, torch.arange(5.0), rtol=0, atol=1e-5)
    source["encoder.pos_embedding"] = torch.zeros(1, 4, 768)  # three patches are no square
    report = load_start_weights(net, source, new_head=True)
    assert report.skipped_shape == (("encoder.pos_embedding", (1, 4, 768), (1, 10, 768)),)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_second_heads_of_published_files_are_skipped(name: str) -> None:
    with torch.device("meta"):
        published = torchvision.models.get_model(name, weights=None, init_weights=False).state_dict()
        net = build(f"{name}_module", name, num_classes=1000, size_px=96)
        for new_head in (True, False):
            report = load_start_weights(net, published, new_head=new_head)
            assert report.unexpected == () and report.missing == () and report.skipped_auxiliary
    assert "only in the file, auxiliary heads: " in report.summary()


@pytest.mark.parametrize(
    ("module", "name", "old_names"),
    [
        (
            "densenet_module",
            "densenet121",
            {"norm1.": "norm.1.", "norm2.": "norm.2.", "conv1.": "conv.1.", "conv2.": "conv.2."},
        ),
        ("vit_module", "vit_b_32", {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}),
    ],
)
def test_names_of_old_files_are_updated(module: str, name: str, old_names: dict[str, str]) -> None:
    with torch.device("meta"):
        net = build(module, name)
        state = {key: value for key, value in net.state_dict().items() if "num_batches_tracked" not in key}
        for new, old in old_names.items():  # as torchvision.models.densenet and .vision_transformer rename them back
            state = {key.replace(new, old): value for key, value in state.items()}
        assert set(state) - set(net.state_dict())
        report = load_start_weights(net, state, new_head=False)
    assert len(report.loaded) == len(state) and report.missing == ()


def test_a_net_may_name_its_heads() -> None:
    class TwoHeads(nn.Module):
        head_names = ("first", "second")

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.body = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 4)

    report = load_start_weights(nn.Sequential(TwoHeads()), nn.Sequential(TwoHeads()).state_dict(), new_head=True)
    assert report.loaded == ("0.body.weight", "0.body.bias")
    assert report.skipped_head == ("0.first.weight", "0.first.bias", "0.second.weight", "0.second.bias")


@pytest.mark.parametrize(
    ("module", "name", "model_args", "fetched"),
    [
        ("GeM_ResNet_module", "GeM_ResNet_AVP", {}, "resnet34-"),
        ("GeM_ResNet_module", "GeM_ResNet_AVP", {"model_type": "resnet50"}, "resnet50-"),
        ("shufflenet_v2_module", "shufflenet_v2_x0_5", {}, "shufflenetv2_x0.5-"),
    ],
)
def test_published_weights_are_fetched(
    module: str, name: str, model_args: dict[str, Any], fetched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(url: str, **options: Any) -> State:
        asked.append((url, options))
        return {"a": torch.zeros(1)}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert list(published_state_dict(module, name, model_args)) == ["a"]
    assert asked[0][0].startswith(f"https://download.pytorch.org/models/{fetched}")
    assert asked[0][1] == {"progress": False, "check_hash": True, "weights_only": True}


def test_a_failed_download_gives_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_download)
    with pytest.raises(NetError) as caught:
        published_state_dict("resnet_module", "resnet18", {})
    assert str(caught.value) == (
        "the published weights of resnet18 could not be downloaded from "
        "https://download.pytorch.org/models/resnet18-f37072fd.pth (<urlopen error no route to host>); fetch that file "
        "on another machine, place it in the folder pretrained_path and name it in pretrained_file"
    )


def test_a_net_without_published_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetError) as caught:
        published_state_dict("GeM_ResNet_module", "GeM_ResNet_AVP", {"model_type": "own"})
    assert str(caught.value) == (
        'torchvision publishes no weights for "own"; name a weights file in pretrained_file instead'
    )


# --- weights of other nets, and under other names


@pytest.mark.parametrize("prefix", ["model.", "net.encoder.", "backbone."])
@pytest.mark.parametrize("new_head", [True, False])
def test_a_foreign_prefix_is_found(prefix: str, new_head: bool) -> None:
    torch.manual_seed(1)
    state, net = copied(small()), small()
    report = load_start_weights(net, {f"{prefix}{name}": value for name, value in state.items()}, new_head=new_head)
    assert report.converted == (f'the prefix "{prefix}" of the file\'s names was left out',)
    assert all(torch.equal(net.state_dict()[name], state[name]) for name in report.loaded)
    assert len(report.loaded) + len(report.skipped_head) == len(state)


def test_weights_of_which_less_than_half_fit_are_another_nets() -> None:
    """A wide ResNet-50's bottlenecks are twice as wide inside: of each, conv1, bn1, conv2, bn2 and conv3 differ."""
    wide, plain = build("resnet_module", "wide_resnet50_2"), build("resnet_module", "resnet50")
    state = copied(wide)
    same = [name for name, value in plain.state_dict().items() if state[name].shape == value.shape]
    body = [name for name in same if not name.startswith("fc.")]
    assert 0.4 < len(body) / (len(state) - 2) < 0.6
    before = copied(plain)
    for name in body[: len(body) // 2]:  # fewer than half of the tensors are left
        del state[name]
        state[f"other.{name}"] = torch.zeros(1)
    with pytest.raises(NetError, match=r"^the weights are those of another net than ResNet: .*\nloaded ") as caught:
        load_start_weights(plain, state, new_head=True)
    assert str(caught.value).endswith(
        "name the net that they were trained for (model_net_name, model_args), or their file"
    )
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in before.items())


def test_a_deeper_nets_weights_and_a_shallower_ones_are_taken() -> None:
    for file, net in (("resnet34", "resnet18"), ("resnet18", "resnet34")):
        report = load_start_weights(build("resnet_module", net), copied(build("resnet_module", file)), new_head=True)
        assert report.fitting == 1.0
