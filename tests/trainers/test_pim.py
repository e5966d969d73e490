"""PIM's net: every backbone, its selection and heads against plain loops, its switches, its errors' text."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from nets.net_interface import build_net
from nets.pim_module import HEADS, PIM, Combiner, PimOutputs
from nets.support.errors import NetError
from nets.support.gradient_checkpointing import enable_gradient_checkpointing
from tests.conftest import slow_but
from tests.helpers.pim import build, enlivened, settle

pytestmark = pytest.mark.usefixtures("one_thread")

BACKBONES = [
    *("resnet18", "resnet34", "resnet50"),
    *(f"efficientnet_b{number}" for number in range(8)),
    *("efficientnet_lite0", "efficientnet_lite2"),
    *("swin_t", "swin_s", "swin_b"),
]
OTHERS = {  # families without tested defaults; those with stages are unknown to pim_module.STAGES
    "convnext_tiny": [],
    "regnet_y_400mf": [],
    "swin_v2_t": [],
    "densenet121": [f"features.denseblock{number}" for number in (1, 2, 3, 4)],
    "mobilenet_v3_small": ["features.1", "features.3", "features.8", "features.12"],
    "googlenet": ["maxpool2", "inception3b", "inception4e", "inception5b"],
}
HEIGHT, WIDTH = 33, 47  # odd, not square, and the smallest stage is still more than one pixel
NAMES = ("stage1", "stage2", "stage3", "stage4")
Array = np.ndarray


# --- every backbone


@pytest.mark.parametrize("model_type", slow_but(("resnet18", "efficientnet_lite0", "swin_t"), BACKBONES))
def test_every_default_backbone_gives_logits_and_gradients(model_type: str) -> None:
    net = enlivened(PIM(model_type, 5, 3, HEIGHT, WIDTH, fpn_size=16))
    images = torch.randn(3, 3, HEIGHT, WIDTH)
    # Swin cuts whole patches of 4 px; a convolution of stride 2 with padding rounds up, as Swin's merging does.
    height, width = ((n // 4 if model_type.startswith("swin") else math.ceil(n / 4)) for n in (HEIGHT, WIDTH))
    positions = [math.ceil(height / 2**n) * math.ceil(width / 2**n) for n in range(4)]
    counts = [max(1, round(count * 2 / 9)) for count in positions]
    settle(net, images)
    trained = net.train().outputs(images)
    assert [tuple(x.shape) for x in trained.stage_logits] == [(3, count, 5) for count in positions]
    assert [tuple(x.shape) for x in trained.selected_logits] == [(3, count, 5) for count in counts]
    assert [x.shape[1] for x in trained.dropped_logits] == [p - c for p, c in zip(positions, counts, strict=True)]
    logits = net.eval()(images)
    for scores in (net.logits(trained).exp(), logits.exp()):
        assert scores.shape == (3, 5)
        torch.testing.assert_close(scores.sum(1), torch.ones(3))
    # In eval mode: a bias before a batch norm has no gradient in training.
    (logits * torch.randn(3, 5)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("model_type", ["resnet18", "efficientnet_b0", "swin_t", *OTHERS])
def test_feature_maps_are_those_of_torchvisions_own_net(model_type: str) -> None:
    stages = OTHERS.get(model_type, [])
    net = PIM(model_type, 5, 3, 64, 48, fpn_size=16, stages=stages).eval()
    known = {
        "resnet18": ["layer1", "layer2", "layer3", "layer4"],
        "efficientnet_b0": ["features.2", "features.3", "features.5", "features.7"],
        "regnet_y_400mf": [f"trunk_output.block{number}" for number in (1, 2, 3, 4)],
    }
    names = stages or known.get(model_type, ["features.1", "features.3", "features.5", "features.7"])
    options = {"init_weights": True, "aux_logits": False} if model_type == "googlenet" else {}
    whole = torchvision.models.get_model(model_type, num_classes=2, **options).eval()
    weights = net.backbone.state_dict()
    assert whole.load_state_dict(weights, strict=False).unexpected_keys == []
    seen: dict[str, torch.Tensor] = {}
    for name in names:
        whole.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output.clone()})
        )
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        whole(images)
        maps = net.feature_maps(images)
    for name, found in zip(names, maps, strict=True):
        expected = seen[name].permute(0, 3, 1, 2) if model_type.startswith("swin") else seen[name]
        torch.testing.assert_close(found, expected)
    sizes = [x.shape[2] * x.shape[3] for x in maps]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[3]
    assert net(images).isfinite().all()


@pytest.mark.parametrize(
    ("model_type", "side", "positions", "counts"),
    [  # the published counts of Swin-L at 384 px; EfficientNet: strides 16, 16, 32 and 32, and 32 positions each
        ("swin_t", 384, [2304, 576, 144, 144], [2048, 512, 128, 32]),
        ("efficientnet_b0", 224, [196, 196, 49, 49], [32, 32, 32, 32]),
        ("resnet18", 224, [3136, 784, 196, 49], [32, 32, 32, 32]),
    ],
)
def test_published_stages_and_shares(model_type: str, side: int, positions: list[int], counts: list[int]) -> None:
    net = PIM(model_type, 5, 3, side, side, fpn_size=4, published_stages=True).eval()
    assert net.counts == counts
    whole = torchvision.models.get_model(model_type, num_classes=2).eval()
    whole.load_state_dict(net.backbone.state_dict(), strict=False)
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        maps = net.feature_maps(images)
        assert [x.shape[2] * x.shape[3] for x in maps] == positions
        if model_type != "resnet18":
            x = whole.features[:3](images) if model_type == "swin_t" else whole.features[:5](images)
            torch.testing.assert_close(maps[0], x.permute(0, 3, 1, 2) if model_type == "swin_t" else x)
        assert net(images).isfinite().all()
    assert PIM(model_type, 5, 3, 64, 64, fpn_size=4).counts == [57, 14, 4, 1]  # 2/9 of 256, 64, 16 and 4


def test_a_grey_net_equals_the_colour_net_on_equal_channels() -> None:
    torch.manual_seed(3)
    grey_net = PIM("resnet18", 5, 1, 64, 64, fpn_size=16).eval()
    torch.manual_seed(3)
    colour_net = PIM("resnet18", 5, 3, 64, 64, fpn_size=16).eval()
    assert grey_net.backbone.conv1.weight.shape == (64, 1, 7, 7)
    grey = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(grey_net(grey), colour_net(grey.repeat(1, 3, 1, 1)), rtol=1e-3, atol=1e-4)


def test_a_larger_image_than_it_was_built_for_is_predicted() -> None:
    net = build().eval()
    assert net(torch.randn(2, 3, 96, 70)).isfinite().all()


# --- against plain loops


def softmax(row: Array) -> Array:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def linear(x: Array, layer: Any) -> Array:
    """Apply a layer's weight (O, I), of a 1x1 convolution too, to the last axis."""
    weight = layer.weight.detach().double().numpy()
    return x @ weight.reshape(weight.shape[:2]).T + layer.bias.detach().double().numpy()


def batch_norm(x: Array, layer: Any) -> Array:
    """Normalise (N, positions, C) over all but the channels, in training with the batch's own statistics."""
    mean, var = layer.running_mean.double().numpy(), layer.running_var.double().numpy()
    if layer.training:
        mean, var = x.mean((0, 1)), x.var((0, 1))
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    return (x - mean) / np.sqrt(var + layer.eps) * weight + bias


def plain_pyramid(net: PIM, maps: list[torch.Tensor], top_down: bool) -> list[Array]:
    """Return the four stages' features (N, S, C)."""
    projected = []
    for x, layers in zip(maps, net.fpn.projections, strict=True):
        rows = x.permute(0, 2, 3, 1).numpy()
        rows = linear(np.maximum(linear(rows, layers[0]), 0), layers[2])  # (N, H, W, C)
        projected.append(torch.from_numpy(rows).permute(0, 3, 1, 2))
    for stage in (2, 1, 0) if top_down else ():
        above = nn.functional.interpolate(projected[stage + 1], projected[stage].shape[2:], mode="bilinear")
        projected[stage] = projected[stage] + above
    return [x.flatten(2).transpose(1, 2).numpy() for x in projected]


def plain_combiner(combiner: Combiner, tokens: Array) -> Array:
    """Compute logits (N, K) of tokens (N, T, C), node by node."""
    samples, _, channels = tokens.shape
    nodes = combiner.adjacency.shape[0]
    alpha = combiner.alpha.item()
    adjacency = combiner.adjacency.detach().double().numpy()
    mixed = np.zeros((samples, nodes, channels))
    for n in range(samples):
        x = linear(tokens[n].T, combiner.pool).T  # (J, C)
        query = [linear(x[i], combiner.query).mean() for i in range(nodes)]
        key = [linear(x[j], combiner.key).mean() for j in range(nodes)]
        y = linear(x, combiner.conv)
        for i in range(nodes):
            for j in range(nodes):
                mixed[n, j] += y[i] * (adjacency[i, j] + alpha * math.tanh(query[i] - key[j]))
    normed = batch_norm(mixed, combiner.norm)
    merged = linear(normed.transpose(0, 2, 1), combiner.merge)[:, :, 0]  # (N, C)
    return linear(merged, combiner.classifier)


def plain_outputs(net: PIM, images: torch.Tensor, counts: list[int], **switches: bool) -> dict[str, Any]:
    """Do what the paper says, position after position: the selected and dropped ones, and every head's logits."""
    with torch.no_grad():
        maps = net.feature_maps(images)
    features = plain_pyramid(net, maps, switches.get("use_fpn", True))
    found: dict[str, Any] = {"selected": [], "kept": [], "dropped": [], "stages": []}
    tokens: list[list[Array]] = [[] for _ in images]
    for x, head, count in zip(features, net.heads, counts, strict=True):
        logits = linear(np.maximum(batch_norm(linear(x, head[0]), head[1]), 0), head[3])  # (N, S, K)
        found["stages"].append(logits)
        order = []
        for n in range(len(images)):
            certainty = [max(softmax(row)) for row in logits[n]]
            ranking = sorted(range(len(certainty)), key=lambda position: -certainty[position])
            if not switches.get("use_selection", True):
                ranking = list(range(len(certainty)))
            order.append(ranking)
            tokens[n] += [x[n, position] for position in ranking[:count]]
        found["selected"].append([ranking[:count] for ranking in order])
        found["kept"].append([logits[n, ranking[:count]] for n, ranking in enumerate(order)])
        found["dropped"].append([logits[n, sorted(ranking[count:])] for n, ranking in enumerate(order)])
    heads = {name: logits.mean(1) for name, logits in zip(NAMES, found["stages"], strict=True)}
    if net.combiner is not None:
        heads["combiner"] = plain_combiner(net.combiner, np.array(tokens))
    found["heads"] = heads
    found["prediction"] = np.log(np.mean([[softmax(row) for row in logits] for logits in heads.values()], axis=0))
    return found


def in_rows_order(dropped: torch.Tensor, selected: torch.Tensor, all_logits: torch.Tensor) -> list[Array]:
    """Check that dropped (N, S - k, K) are the rows of `all_logits` that were not selected; give them row by row."""
    found = []
    for n in range(len(dropped)):
        rest = sorted(set(range(all_logits.shape[1])) - set(selected[n].tolist()))
        rows = all_logits[n, rest]
        assert sorted(map(tuple, dropped[n].tolist())) == sorted(map(tuple, rows.tolist()))
        found.append(rows.numpy())
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "args",
    [
        {},
        {"num_selects": [7, 0.25, 1.0, 1]},
        {"use_fpn": False},
        {"use_selection": False},
        {"use_combiner": False},
        {"use_fpn": False, "use_selection": False, "use_combiner": False},
    ],
    ids=str,
)
def test_selection_and_all_outputs_against_a_plain_loop(args: dict[str, Any], training: bool) -> None:
    net = build(dropout=0.0, **args)
    images = torch.randn(4, 3, 64, 64)
    settle(net, images + 0.1 * torch.randn(images.shape))
    net = net.double().train(training)
    net.backbone.eval()  # its batch norms are torchvision's matter
    counts = [57, 14, 4, 1]  # 2/9 of 16 * 16, 8 * 8, 4 * 4 and 2 * 2 positions
    if not args.get("use_selection", True):
        counts = [256, 64, 16, 4]
    elif "num_selects" in args:
        counts = [7, 16, 16, 1]
    assert net.counts == counts
    switches = {key: value for key, value in args.items() if key.startswith("use_")}
    expected = plain_outputs(net, images.double(), counts, **switches)
    with torch.no_grad():
        got = net.outputs(images.double())
    for stage in range(4):
        close(got.stage_logits[stage], expected["stages"][stage])
        assert got.selected[stage].tolist() == expected["selected"][stage]
        close(got.selected_logits[stage], np.array(expected["kept"][stage]))
        if training:
            dropped = in_rows_order(got.dropped_logits[stage], got.selected[stage], got.stage_logits[stage])
            close(torch.from_numpy(np.array(dropped)), np.array(expected["dropped"][stage]))
        else:
            assert got.dropped_logits[stage].shape == (4, 0, 5)  # nobody asks for them
    assert list(net.head_logits(got)) == list(expected["heads"])
    for name, logits in expected["heads"].items():
        close(net.logits(got, name), logits)
    close(net.logits(got).double(), expected["prediction"], tolerance=1e-5)  # the scores' mean is float32
    if got.combiner_logits is not None:
        assert got.combiner_logits.std() > 1e-2


def close(got: torch.Tensor, expected: Array, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("training", [True, False])
def test_combiner_against_its_formula_in_loops(training: bool) -> None:
    combiner = Combiner(positions=100, fpn_size=12, num_classes=4, dropout=0.0).double().train(training)
    assert combiner.adjacency.shape == (3, 3)  # 100 // 32 nodes
    torch.testing.assert_close(combiner.adjacency.detach(), (torch.eye(3) / 100 + 0.01).double())
    assert combiner.alpha.item() == 0
    tokens = torch.randn(5, 100, 12).double() * 3
    for alpha in (0.0, 0.6):
        nn.init.constant_(combiner.alpha, alpha)
        close(combiner(tokens.transpose(1, 2)).detach(), plain_combiner(combiner, tokens.numpy()))


def test_one_images_prediction_does_not_depend_on_the_others() -> None:
    net = build().eval()
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        together, alone = net(images), torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert together.std(0).min() > 1e-2


@pytest.mark.parametrize("head", HEADS)
def test_the_head_that_is_named_predicts(head: str) -> None:
    net = build(head=head).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = plain_outputs(net.double(), images.double(), net.counts)
    logits = expected["prediction"] if head == "all" else expected["heads"][head]
    with torch.no_grad():
        close(net(images.double()).double(), logits, tolerance=1e-5)


def test_a_class_that_no_head_believes_in_has_a_finite_logit() -> None:
    logits = torch.tensor([[0.0, 200.0, -300.0]])
    net = build(use_combiner=False)
    logits = net.logits(PimOutputs((logits[None],) * 4, (), (), (), None))
    assert logits.isfinite().all() and logits[0, 2] < -60


# --- the switches


def operators(net: PIM) -> Counter[str]:
    example = torch.randn(2, 3, 64, 64)
    program = torch.export.export(net.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    return Counter(str(node.target).split(".")[1] for node in program.graph.nodes if "aten" in str(node.target))


def test_each_switch_changes_the_graph_and_its_parameters() -> None:
    whole = build()
    names = set(whole.state_dict())
    ops = operators(whole)
    assert (ops["upsample_bilinear2d"], ops["topk"], ops["tanh"]) == (3, 4, 1) and ops["gather"]
    without = operators(build(use_fpn=False))
    assert (without["upsample_bilinear2d"], without["topk"], without["tanh"]) == (0, 4, 1)
    unselected = build(use_selection=False)
    without = operators(unselected)
    assert (without["upsample_bilinear2d"], without["topk"], without["tanh"]) == (3, 0, 1) and not without["gather"]
    assert set(unselected.state_dict()) == names
    assert unselected.combiner.pool.in_features == 256 + 64 + 16 + 4
    assert whole.combiner.pool.in_features == 57 + 14 + 4 + 1
    uncombined = build(use_combiner=False)
    without = operators(uncombined)
    assert (without["upsample_bilinear2d"], without["tanh"]) == (3, 0)
    assert set(uncombined.state_dict()) == {name for name in names if not name.startswith("combiner.")}
    assert any(name.startswith("combiner.") for name in names)
    assert uncombined.head_names == tuple(f"heads.{stage}.3" for stage in range(4))
    assert whole.head_names == (*uncombined.head_names, "combiner.classifier")


def test_a_copy_of_a_net_in_eval_mode_is_in_eval_mode() -> None:
    net = build()
    settle(net, torch.randn(4, 3, 64, 64))
    images = torch.randn(3, 3, 64, 64)
    for training in (False, True):
        net.train(training)
        assert {module.training for module in copy.deepcopy(net).modules()} == {training}
    net.eval()
    duplicate = copy.deepcopy(net)
    with torch.no_grad():
        torch.testing.assert_close(duplicate(images), net(images), rtol=0, atol=0)
        nn.init.zeros_(duplicate.backbone.conv1.weight)
        assert not torch.equal(duplicate(images), net(images))  # nothing is shared


# --- mistakes


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            {"model_type": "resnet19"},
            "model_type must be one of torchvision's nets, such as resnet50 or swin_t, or one of efficientnet_lite0, ",
        ),
        (
            {"num_selects": [257, 1, 1, 1]},
            "num_selects: stage 1 has 256 positions at this input size, 257 cannot be selected; "
            "fractions such as 0.22 fit any size",
        ),
        (
            {"num_selects": [2048, 512, 128, 32]},
            "num_selects: stage 1 has 256 positions at this input size, 2048 cannot be selected; "
            "fractions such as 0.22 fit any size",
        ),
        ({"num_selects": [1, 1, 17, 1]}, "num_selects: stage 3 has 16 positions at this input size, 17 cannot"),
        ({"num_selects": [0, 1, 1, 1]}, "num_selects: stage 1 has 256 positions at this input size, 0 cannot"),
        ({"num_selects": [1, -0.5, 1, 1]}, "num_selects: stage 2 has 64 positions at this input size, -0.5 cannot"),
        ({"num_selects": [2.0, 1, 1, 1]}, "num_selects: stage 1 has 256 positions at this input size, 2.0 cannot"),
        ({"num_selects": [1, 1, 1, math.inf]}, "num_selects: stage 4 has 4 positions at this input size, inf cannot"),
        ({"num_selects": [math.nan, 1, 1, 1]}, "num_selects: stage 1 has 256 positions at this input size, nan cannot"),
        ({"num_selects": [1, 1, 1]}, "num_selects needs 4 entries, one a stage, got [1, 1, 1]"),
        (
            {"head": "stage5"},
            'head must be one of all, stage1, stage2, stage3, stage4, combiner, got "stage5"',
        ),
        (
            {"head": "combiner", "use_combiner": False},
            'head must be one of all, stage1, stage2, stage3, stage4, got "combiner"',
        ),
        ({"fpn_size": 0}, "fpn_size must be from 1 to 8192, got 0"),
        ({"fpn_size": 10**9}, "fpn_size must be from 1 to 8192, got 1000000000"),
        ({"stages": ["", "layer2", "layer3", "layer4"]}, '"resnet18" has no module ""; it has conv1, bn1, '),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        (
            {"model_type": "densenet121"},
            'name four different modules of "densenet121" in model_args.stages, from stride 4 to 32, got []',
        ),
        (
            {"stages": ["layer1", "layer1", "layer2", "layer3"]},
            'name four different modules of "resnet18" in model_args.stages, from stride 4 to 32, '
            "got ['layer1', 'layer1', 'layer2', 'layer3']",
        ),
        (
            {"stages": ["layer1", "layer2", "layer3", "layer9"]},
            '"resnet18" has no module "layer9"; it has conv1, bn1, relu, maxpool, layer1, ',
        ),
        (
            {"stages": ["layer1", "layer2", "layer3", "fc"]},
            "stage 4 of the backbone gives (1, 2), no feature map (N, C, H, W)",
        ),
        (
            {"model_type": "vgg11", "stages": ["features.5", "features.10", "features.15", "features.20"], "side": 8},
            "the backbone does not take images of 8x8 px: ",
        ),
    ],
    ids=str,
)
def test_mistakes_are_reported(args: dict[str, Any], sentence: str) -> None:
    side = args.get("side", 64)
    model_args = {"model_type": "resnet18", "fpn_size": 16, **args}
    model_args.pop("side", None)
    with pytest.raises(NetError) as caught:
        build_net("pim_module", "PIM", num_classes=5, img_height=side, img_width=side, model_args=model_args)
    assert str(caught.value).startswith(sentence)


def test_images_of_bands_are_taken_up_to_the_backbones_limit() -> None:
    assert PIM("resnet18", 5, 4, 64, 64).eval()(torch.zeros(1, 4, 64, 64)).shape == (1, 5)
    with pytest.raises(NetError, match="resnet18: num_channels must be from 1 to 64, got 65"):
        PIM("resnet18", 5, 65, 64, 64)


def test_gradient_checkpointing_is_refused_rather_than_ignored() -> None:
    with pytest.raises(NetError, match="PIM has no sequential stages for gradient checkpointing"):
        enable_gradient_checkpointing(build())
