"""Heat maps against formulas written out, on the right place of the image, and without a trace on the net."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import nn
from torchvision.models import VisionTransformer

import inference
import train
from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, weights_sha256
from artifacts.metadata import ModelMetadata
from common.placement import Placement, placement
from data_loader.preprocess import ImageError, Preprocess, as_array
from deploy.backends.base import HeatMap
from deploy.inference import heatmap_writer
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.heatmap_writer import HeatMapCopies, HeatMapError, label_of
from nets.net_interface import build_net
from nets.pim_module import PIM
from nets.support.saliency import GradCam, NoHeatMapError, PimMapper, heat_mapper
from tests.helpers.nets import SMALLEST
from trainers.reporting import heatmaps as training_maps
from trainers.reporting.report import TrainingReport, write_report
from visualization import heatmap_overlay
from visualization.heatmap_overlay import Marks, heat_map_image, overlay

NAMES = ("猫/cat", "dog", "bird")
GOOD = ["a/same.png", "b/same.png", "b/苹果 1.jpg", 'b/say "hi".png', "wide.png"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def small_pim(**changes: Any) -> PIM:
    values = {"model_type": "resnet18", "num_classes": 3, "fpn_size": 8, "img_height": 64, "img_width": 96}
    return PIM(**{**values, **changes}).eval()


def upsampled(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Upsample (h, w) bilinearly: interpolation between the middles of the cells, one axis after the other."""
    rows, columns = coarse.shape
    y, x = (np.arange(height) + 0.5) * rows / height - 0.5, (np.arange(width) + 0.5) * columns / width - 0.5
    wide = np.stack([np.interp(x, np.arange(columns), row) for row in coarse])
    return np.stack([np.interp(y, np.arange(rows), column) for column in wide.T]).T


# --- Grad-CAM


class Squares(nn.Module):
    """y = V m^2, m the means over positions of a strided 1x1 convolution: dy_c / dA_k = 2 V[c, k] m_k / (h w)."""

    def __init__(self, channels_last: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, stride=4, bias=False)
        self.turn: nn.Module = Turn() if channels_last else nn.Identity()
        self.votes = nn.Parameter(torch.randn(5, 4))
        self.channels_last = channels_last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.turn(self.conv(images))
        means = x.mean(dim=(1, 2) if self.channels_last else (2, 3))
        return means.square() @ self.votes.T


class Turn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("channels_last", [False, True])
def test_grad_cam_against_the_gradient_written_out(channels_last: bool) -> None:
    net = Squares(channels_last)
    images = torch.randn(3, 3, 16, 24)
    labels = [4, 0, 2]
    found = heat_mapper(net, 3, 16, 24)(images, torch.tensor(labels))
    assert found.selected == ()
    kernel, votes = net.conv.weight.detach().numpy()[:, :, 0, 0], net.votes.detach().numpy()
    for image, label, got in zip(images.numpy(), labels, found.maps.numpy(), strict=True):
        features = np.einsum("kc,chw->khw", kernel, image[:, ::4, ::4])  # (4, h, w)
        alpha = 2 * votes[label] * features.mean(axis=(1, 2)) / features[0].size
        expected = upsampled(np.maximum(np.einsum("k,khw->hw", alpha, features), 0), 16, 24)
        np.testing.assert_allclose(got, expected / expected.max(), atol=1e-5)


def test_nothing_speaks_for_the_class() -> None:
    net = Squares()
    net.votes.data.fill_(-1)
    net.conv.weight.data.fill_(1)
    maps = heat_mapper(net, 3, 16, 16)(torch.rand(2, 3, 16, 16), torch.tensor([0, 1])).maps
    assert maps.shape == (2, 16, 16)
    assert not maps.any()


class Branches(nn.Module):
    """A side branch that runs last, a module that runs twice and in place, a block that ends in one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.block = Shrinking()
        self.side = nn.Conv2d(4, 2, 1)
        self.head = nn.Linear(4, 3)
        self.aside = torch.empty(0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.first(images))
        logits: torch.Tensor = self.head(self.relu(self.block(x)).flatten(1))
        self.aside = self.side(x)
        return logits


class Shrinking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.inner(x) + x).mean(dim=(2, 3), keepdim=True)


def test_the_last_map_that_the_whole_prediction_depends_on() -> None:
    net = Branches()
    mapper = heat_mapper(net, 3, 16, 16)
    assert isinstance(mapper, GradCam)
    assert mapper._layer is net.first


LAYERS = {  # each family's last map at the size of SMALLEST, from the modules' order in torchvision's forward methods
    "GeM_ResNet_AVP": "layer4",
    "alexnet": "features.11",  # the pooling behind it leaves one pixel of 63
    "convnext_tiny": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "efficientnet_lite0": "relu1",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "regnet_x_400mf": "trunk_output",
    "resnet18": "layer4",
    "resnext50_32x4d": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_1": "classifier.2",
    "swin_t": "permute",
    "vgg11": "features.19",  # as alexnet; the pooling to 7x7 behind that is no map of its own
    "vit_b_32": "encoder.layers.encoder_layer_11.ln_1",
}


@pytest.mark.parametrize("module", SMALLEST)
def test_every_family_has_a_map(module: str) -> None:
    name, size_px = SMALLEST[module]
    net = build_net(module, name, num_classes=3, img_height=size_px, img_width=size_px, model_args={})
    if module == "vit_module":
        nn.init.normal_(net.get_submodule("heads.head").weight)  # torchvision's zeros would leave no gradient
    mapper = heat_mapper(net, 3, size_px, size_px)
    assert isinstance(mapper, GradCam)
    assert mapper._layer is net.get_submodule(LAYERS[name])
    images, labels = torch.randn(2, 3, size_px, size_px), torch.tensor([0, 2])
    maps = mapper(images, labels).maps
    assert maps.shape == (2, size_px, size_px)
    assert all(float(heat.max()) in (0.0, 1.0) and float(heat.min()) >= 0 for heat in maps)
    net.eval()
    with torch.no_grad():
        features, gradient = mapper.features_and_gradient(images, labels)
    assert mapper.as_map(features).shape[2:] == (math.sqrt(mapper.as_map(features)[0, 0].numel()),) * 2
    assert mapper.as_map(gradient).abs().amax(dim=(1, 2, 3)).min() > 0


def test_swin_at_one_last_position_is_read_channels_last() -> None:
    net = build_net("swin_module", "swin_t", num_classes=3, img_height=32, img_width=64, model_args={})
    mapper = heat_mapper(net, 3, 32, 64)
    assert isinstance(mapper, GradCam)
    assert mapper._layer is net.get_submodule("features.5")  # (N, 2, 4, 384); the last stage has one row
    assert mapper(torch.randn(1, 3, 32, 64), torch.tensor([1])).maps.shape == (1, 32, 64)


def small_vit(image_size: int) -> nn.Module:
    return VisionTransformer(image_size, 32, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=3)


def test_patches_of_a_vit_lie_row_by_row_behind_the_class_token() -> None:
    mapper = heat_mapper(small_vit(96), 3, 96, 96)
    assert isinstance(mapper, GradCam)
    tokens = torch.arange(10.0).view(1, 10, 1)
    assert mapper.as_map(tokens).tolist() == [[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]]


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)), "Sequential"),
        (small_vit(32), "VisionTransformer"),
    ],
    ids=["linear", "vit of one patch"],
)
def test_a_net_without_positions_has_a_sentence(net: nn.Module, name: str) -> None:
    with pytest.raises(NoHeatMapError, match=rf"^{name} has no feature map with positions at this input size, so no"):
        heat_mapper(net, 3, 32, 32)


# --- PIM


def test_pim_against_a_loop_over_positions() -> None:
    net = small_pim(num_selects=[5, 4, 3, 2])
    images = torch.randn(2, 3, 64, 96)
    labels = [2, 0]
    found = heat_mapper(net, 3, 64, 96)(images, torch.tensor(labels))
    with torch.no_grad():
        outputs = net.outputs(images)
    for index, label in enumerate(labels):
        total = np.zeros((64, 96))
        for stage, logits in enumerate(outputs.stage_logits):
            rows, columns = 16 >> stage, 24 >> stage  # strides 4 to 32
            coarse = np.zeros((rows, columns))
            for position, values in enumerate(logits[index].double().numpy()):
                share = math.exp(values[label]) / sum(math.exp(value) for value in values)
                coarse[position // columns, position % columns] = max(share - 1 / 3, 0)
            total += upsampled(coarse, 64, 96)
        np.testing.assert_allclose(found.maps[index].numpy(), total / total.max(), atol=1e-5)
    assert [(s.rows, s.columns) for s in found.selected] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for selected, expected in zip(found.selected, outputs.selected, strict=True):
        assert torch.equal(selected.positions, expected)


def test_pim_without_selection_marks_nothing() -> None:
    net = small_pim(use_selection=False)
    assert heat_mapper(net, 3, 64, 96)(torch.randn(1, 3, 64, 96), torch.tensor([0])).selected == ()


def test_every_backbone_of_pim_has_a_map() -> None:
    for model_type in ("efficientnet_b0", "swin_t"):
        net = small_pim(model_type=model_type)
        found = heat_mapper(net, 3, 64, 96)(torch.randn(1, 3, 64, 96).expand(3, -1, -1, -1), torch.arange(3))
        assert found.maps.max() == 1  # somewhere some class is above chance
        assert [(s.rows, s.columns) for s in found.selected] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("kind", ["pim", "grad-cam"])
def test_the_map_differs_between_two_classes_of_one_image(kind: str) -> None:
    net = small_pim() if kind == "pim" else Squares()
    image = torch.randn(1, 3, 64, 96)
    maps = heat_mapper(net, 3, 64, 96)(image.expand(3, -1, -1, -1), torch.arange(3)).maps.flatten(1)
    shown = maps[maps.any(dim=1)]
    assert len(shown) > 1
    likeness = torch.corrcoef(shown)
    assert likeness[~torch.eye(len(shown), dtype=torch.bool)].max() < 0.9


# --- no trace


def state_of(net: nn.Module) -> dict[str, Any]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules()]
    return {
        "tensors": {name: tensor.clone() for name, tensor in net.state_dict().items()},
        "gradients": [p.grad if p.grad is None else p.grad.clone() for p in net.parameters()],
        "modes": [module.training for module in net.modules()],
        "needs": [p.requires_grad for p in net.parameters()],
        "hooks": sum(hooks),
        "random": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(*pair) for pair in zip(a, b, strict=True))
    return bool(a == b)


def dropout_net() -> nn.Module:
    args = {"model_type": "resnet18", "dropout": 0.5}
    return build_net("GeM_ResNet_module", "GeM_ResNet_AVP", num_classes=3, img_height=64, img_width=96, model_args=args)


@pytest.mark.parametrize("make", [small_pim, dropout_net])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_no_trace_on_the_net(make: Callable[[], nn.Module], context: Callable[[], Any]) -> None:
    net = make().train()
    net(torch.randn(2, 3, 64, 96)).sum().backward()
    next(net.modules()).training = False  # modes of their own: here not even alike in parent and child
    list(net.modules())[5].eval()
    for parameter in list(net.parameters())[:3]:
        parameter.requires_grad_(False)
    images = torch.randn(2, 3, 64, 96)
    with context():
        before = state_of(net)
        maps = heat_mapper(net, 3, 64, 96)(images, torch.tensor([0, 1])).maps
        assert equal(state_of(net), before)
    assert not maps.requires_grad
    again = copy.deepcopy(net).requires_grad_(False)  # as an averaged net is
    assert torch.equal(heat_mapper(again, 3, 64, 96)(images, torch.tensor([0, 1])).maps, maps)


def test_a_failing_net_is_left_as_it_was_too() -> None:
    net = dropout_net().train()
    mapper = heat_mapper(net, 3, 64, 96)
    wrong = torch.randn(1, 2, 64, 96)
    before = state_of(net)
    with pytest.raises(RuntimeError):
        mapper(wrong, torch.tensor([0]))
    assert equal(state_of(net), before)


def test_a_compiled_net_has_the_same_map() -> None:
    net = dropout_net()
    images, labels = torch.randn(1, 3, 64, 96), torch.tensor([1])
    expected = heat_mapper(net, 3, 64, 96)(images, labels).maps
    net.compile()
    assert torch.equal(heat_mapper(net, 3, 64, 96)(images, labels).maps, expected)


# --- on the image


class Brightness(nn.Module):
    """A net whose map is known: the feature map is how bright the image is, and both classes follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        light = self.conv(images).relu().mean(dim=(2, 3))  # (N, 1)
        return torch.cat([light, light], dim=1)


SIZES = [(100, 60), (60, 100), (97, 31), (31, 97), (64, 48), (48, 48), (300, 17)]


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("size", SIZES)
def test_the_map_lies_where_the_net_looked(resize: str, size: tuple[int, int]) -> None:
    preprocess = Preprocess(48, 64, resize=resize, mean=(0.0,) * 3, std=(1.0,) * 3)
    x, y = size[0] // 2 + min(size) // 4, size[1] // 2 - min(size) // 4  # seen by a crop as well
    side = max(3, min(size) // 8)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y - side // 2 : y + side // 2 + 1, x - side // 2 : x + side // 2 + 1] = 255
    image = Image.fromarray(pixels)
    images = torch.from_numpy(preprocess(pixels))[None]
    heat = heat_mapper(Brightness(), 3, 48, 64)(images, torch.tensor([1])).maps[0].numpy()
    assert heat.max() == 1
    placed = placement(resize, image.size, (64, 48))
    grey = Image.new("RGB", image.size, (128, 128, 128))
    hot, cold = (np.asarray(overlay(grey, each, placed), np.float64) for each in (heat, np.zeros_like(heat)))
    difference = np.abs(hot - cold).sum(axis=2)
    middle = [(difference.sum(axis=1 - axis) @ np.arange(difference.shape[axis])) / difference.sum() for axis in (0, 1)]
    blur = max(size[0] / 64, size[1] / 48, 1.0)  # image pixels that one input pixel stands for
    assert abs(middle[1] - x) <= blur and abs(middle[0] - y) <= blur


@pytest.mark.parametrize("size", SIZES)
def test_placement_is_what_preprocess_does(size: tuple[int, int]) -> None:
    white = Image.new("L", size, 255)
    fitted = Preprocess(48, 64, channels=1, resize="letterbox").fit(white)[:, :, 0]
    rows, columns = np.flatnonzero(fitted.max(axis=1)), np.flatnonzero(fitted.max(axis=0))
    placed = placement("letterbox", size, (64, 48))
    assert placed.inside == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert placed.seen == (0, 0, *size)
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    ramps = [Image.fromarray((values * 255 / values.max()).astype(np.float32)) for values in (x, y)]
    placed = placement("crop", size, (64, 48))
    assert placed.inside == (0, 0, 64, 48)
    left, top, right, bottom = placed.seen
    for ramp, start, end, count in ((ramps[0], left, right, 64), (ramps[1], top, bottom, 48)):
        whole = size[0] if count == 64 else size[1]
        fitted = Preprocess(48, 64, channels=1, resize="crop").fit(ramp.convert("L"))[:, :, 0]
        found = fitted.mean(axis=0 if count == 64 else 1) * (whole - 1) / 255
        expected = start + (np.arange(count) + 0.5) * (end - start) / count - 0.5
        inner = slice(2, -2)  # at the border Pillow has fewer neighbours to average
        np.testing.assert_allclose(found[inner], expected[inner], atol=0.02 * whole + 0.3)
    assert placement("squash", size, (64, 48)) == Placement((0, 0, 64, 48), (0, 0, *size))


def test_what_the_net_did_not_see_is_dim_and_bars_are_cut_off() -> None:
    image = Image.effect_noise((100, 60), 60).convert("RGB")
    placed = placement("crop", image.size, (48, 48))
    made = np.asarray(overlay(image, np.ones((48, 48)), placed))
    dim = np.round(np.asarray(image) * heatmap_overlay.UNSEEN)
    assert np.array_equal(made[:, :20], dim[:, :20]) and np.array_equal(made[:, 80:], dim[:, 80:])
    assert (np.abs(made[:, 20:80] - dim[:, 20:80]).sum(axis=2) > 0).all()
    bars = np.ones((48, 48))
    placed = placement("letterbox", image.size, (48, 48))
    assert placed.inside == (0, 10, 48, 39)  # 60 of 100 pixels times 48, in the middle
    bars[10:39] = 0
    hot, cold = (overlay(image, heat, placed) for heat in (bars, np.zeros((48, 48))))
    assert ImageChops.difference(hot, cold).getbbox() is None


def test_a_hotter_place_has_more_of_the_colour() -> None:
    heat = np.tile(np.linspace(0, 1, 64), (48, 1))
    made = np.asarray(overlay(Image.new("RGB", (64, 48), (90, 90, 90)), heat, placement("squash", (64, 48), (64, 48))))
    lightness = made.astype(int) @ [299, 587, 114]
    assert (np.diff(lightness[24, 8:]) > 0).all()  # inferno rises all the way; a little cover comes before


@pytest.mark.parametrize("resize", ["letterbox", "crop"])
def test_marks_stand_on_their_positions(resize: str) -> None:
    image = Image.new("RGB", (480, 240))
    heat = np.zeros((64, 64), np.float32)
    placed = placement(resize, image.size, (64, 64))
    made = overlay(image, heat, placed)
    before = made.copy()
    # Row 1 of 8 is input pixels 8 to 16. Letterbox: a bar, the image begins at 16. Crop: 30 to 60 of the 240.
    heatmap_overlay.draw_marks(made, (64, 64), placed, [Marks("1", 8, 8, [1 * 8 + 2, 4 * 8 + 6])])
    found = ImageChops.difference(made, before).getbbox()
    half = 0.4 * 60 / 2 if resize == "letterbox" else 0.4 * 30 / 2
    line = 1
    if resize == "letterbox":  # one input pixel is 7.5 of the image's: (6.5 * 8, 4.5 * 8 - 16) * 7.5
        expected = (390 - half, 150 - half, 390 + half, 150 + half)
    else:  # 3.75, and 120 are cut off at the left: (2.5 * 8, 1.5 * 8) and (6.5 * 8, 4.5 * 8) times 3.75
        expected = (195 - half, 45 - half, 315 + half, 135 + half)
    assert found is not None
    assert np.allclose(found, expected, atol=line + 0.5)


def test_a_legend_fits_below_images_of_any_shape() -> None:
    marks = [Marks(str(number), 4, 4, [number]) for number in range(1, 5)]
    for size in ((28, 28), (30, 400), (400, 30), (1500, 1000)):
        made = heat_map_image(Image.new("RGB", size), np.ones((32, 32)), "squash", marks)
        assert made.width >= 224
        right = np.asarray(made)[-6:, -4:]
        assert (right == right[0, 0]).all()  # the line ends before the edge
        plain = heat_map_image(Image.new("RGB", size), np.ones((32, 32)), "squash")
        assert max(plain.size) >= 448
        assert made.height > plain.height


def test_a_large_image_is_made_smaller_and_its_map_with_it() -> None:
    heat = np.zeros((64, 64))
    heat[:, 40:] = 1
    found = []
    for size in ((6000, 3000), (2000, 1000)):
        made = heat_map_image(Image.new("RGB", size), heat, "crop")
        assert made.size == (min(size[0], 2048), min(size[1], 1024))
        seen = np.flatnonzero(np.asarray(made)[500].any(axis=1))
        found.append([seen[0] / made.width, seen[-1] / made.width])
    np.testing.assert_allclose(found[0], found[1], atol=0.002)
    assert heat_map_image(Image.new("RGB", (1, 5000)), heat, "squash").size == (1, 2048)


@pytest.mark.parametrize("size", [(3, 3000), (3000, 3)])
def test_a_image_of_which_letterbox_leaves_nothing_is_dark(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 100, 40))
    assert not Preprocess(32, 32, resize="letterbox").fit(image).any()  # what the net gets is bars alone
    made = heat_map_image(image, np.ones((32, 32)), "letterbox", [Marks("1", 4, 4, range(16))])
    dark = [round(value * heatmap_overlay.UNSEEN) for value in (200, 100, 40)]
    assert (np.asarray(made) == dark).all()


# --- inference


def save_net(path: Path, module: str, name: str, preprocess: Preprocess, args: dict[str, Any] | None = None) -> Path:
    net = build_net(
        module,
        name,
        num_classes=3,
        num_channels=preprocess.channels,
        img_height=preprocess.height,
        img_width=preprocess.width,
        model_args=args or {},
    )
    metadata = ModelMetadata(NAMES, preprocess, {"module": module, "name": name, "args": args or {}})
    save_checkpoint(Checkpoint({}, metadata, net.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def pim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("pim") / "pim.pth"
    preprocess = Preprocess(32, 32, resize="letterbox")
    return save_net(path, "pim_module", "PIM", preprocess, {"model_type": "resnet18", "fpn_size": 8})


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("resnet") / "net.pth"
    return save_net(path, "resnet_module", "resnet18", Preprocess(64, 64, channels=1, resize="crop"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number, name in enumerate(GOOD):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (30, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "cut.jpg").write_bytes((folder / "b/苹果 1.jpg").read_bytes()[:300])
    return folder


def main(*arguments: object) -> int:
    return inference.main([str(argument) for argument in arguments])


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.removeprefix("inference.py: ").strip()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("net", ["pim", "resnet"])
def test_heat_maps_of_a_folder(
    net: str, images: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(images)
    out = tmp_path / "out"
    flags = ("--weights", request.getfixturevalue(net), "-idir", images, "--heatmap", out, "--topk", 3)
    assert main(*flags) == 1  # one image is bad
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"; results in {out}")
    alone = snapshot(out)
    assert set(alone) == {f"{name}.heatmap.jpg" for name in GOOD}
    assert main(*flags, "--heatmap_class", "猫/cat", "--output", tmp_path / "r.json") == 1
    both = snapshot(out)
    assert set(both) == {*alone, *(f"{name}.猫_cat.heatmap.jpg" for name in GOOD)}
    assert {name: both[name] for name in alone} == alone  # the same again, to the byte
    assert snapshot(images) == before
    predictions = {item["file"]: item.get("class") for item in json.loads((tmp_path / "r.json").read_text("utf-8"))}
    for name in GOOD:
        made = [Image.open(out / f"{name}{ending}.heatmap.jpg") for ending in ("", ".猫_cat")]
        assert made[0].format == "JPEG" and made[0].mode == "RGB"
        assert made[0].width == 450  # 90 pixels five times
        maps = [np.asarray(image.crop((0, 0, 450, 150)), int) for image in made]  # above the text
        is_answer = predictions[str(images / name)] == "猫/cat"
        assert (np.abs(maps[0] - maps[1]).mean() < 1) == is_answer


def test_one_image_beside_copies_and_results(
    resnet: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ("--weights", resnet, "-image", images / "wide.png", "--save_images", out, "--save_as", "annotated")
    assert main(*flags, "--heatmap", out, "--output", out / "r.csv") == 0
    assert set(snapshot(out)) == {"wide.png.answer.jpg", "wide.png.heatmap.jpg", "r.csv"}
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"; results in {out}")


def test_heat_maps_below_the_image_folder_are_not_classified_again(resnet: Path, images: Path) -> None:
    (images / "cut.jpg").unlink()
    for _ in range(2):
        assert main("--weights", resnet, "-idir", images, "--heatmap", images / "b" / "maps", "--quiet") == 0
        assert len(snapshot(images)) == 2 * len(GOOD)


def test_names_too_long_for_a_file_system_are_cut_and_stay_apart(resnet: Path, images: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "long", tmp_path / "out"
    folder.mkdir()
    for ending in "ab":
        (folder / f"{'名' * 82}{ending}.png").write_bytes((images / "wide.png").read_bytes())  # 251 bytes
    for _ in range(2):
        assert main("--weights", resnet, "-idir", folder, "--heatmap", out, "--heatmap_class", "dog", "--quiet") == 0
        names = [path.name for path in out.iterdir()]
        assert len(names) == 4 and all(name.startswith("名" * 70) for name in names)
        assert all(name.endswith(".heatmap.jpg") and len(name.encode()) <= 255 for name in names)


@pytest.mark.parametrize("head", ["", "stage2"])
def test_the_text_names_the_predicting_head(head: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[list[str]] = []

    def note(drawn: Image.Image, lines: list[str]) -> Image.Image:
        captured.append(lines)
        return drawn

    monkeypatch.setattr(heatmap_writer, "annotated", note)
    metadata = ModelMetadata(
        NAMES, Preprocess(8, 8), {"module": "pim_module", "name": "PIM", "args": {"head": head} if head else {}}
    )
    copies = HeatMapCopies(images / "maps", lambda image, label: HeatMap(np.zeros((8, 8))), metadata, 2)
    prediction = ClassPrediction(str(images / "wide.png"), 1, "dog", 0.5, (("dog", 0.5), ("bird", 0.3)))
    copies.add(prediction, "wide.png")
    last = f"predicting head: {head or 'all'}"
    assert captured == [
        ["dog  0.5000", "no evidence for dog", "bird  0.3000", last],
        ["map of bird  0.3000", "no evidence for bird", "prediction: dog  0.5000", last],
    ]
    (images / "wide.png").unlink()
    with pytest.raises(ImageError, match=r"^no such file$"):
        copies.add(prediction, "wide.png")


def test_mistakes_with_heat_maps(
    pim: Path, resnet: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speck = save_net(tmp_path / "speck.pth", "mobilenet_v3_module", "mobilenet_v3_small", Preprocess(2, 2))
    folder = ("-idir", images)
    maps = ("--heatmap", tmp_path / "maps")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((pim, *folder, "--heatmap_class", "dog"), r"^--heatmap_class goes with --heatmap DIR, the folder"),
        ((pim, *folder, *maps, "--heatmap_class", "Bog"), '^--heatmap_class: the net has no class "Bog"; .*"dog"'),
        ((pim, *folder, *maps, "--heatmap_class", "x"), 'has no class "x"; its classes are 猫/cat, dog, bird$'),
        ((pim, *folder, "--heatmap", images), f"^{images}: it lies inside {images}, where the heat maps go; choose an"),
        ((pim, *folder, "--heatmap", images / "wide.png"), "wide.png is a file, not a folder"),
        ((pim, *maps, "--pytorch2onnx"), "^a conversion makes no heat maps: leave out --heatmap and --heatmap_class$"),
        ((speck, *folder, *maps), "^MobileNetV3 has no feature map with positions at this input size, so no heat map$"),
    ]
    before = snapshot(images)
    for arguments, text in cases:
        sentence = mistake(capsys, "--weights", *arguments)
        assert re.search(text, sentence), (arguments, sentence)
    assert snapshot(images) == before
    assert not (tmp_path / "maps").exists()


def test_another_format_names_the_checkpoint(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"not looked into")
    flags = ("--weights", model, "-idir", images, "--heatmap", tmp_path / "maps")
    start = f"{model}: a heat map needs gradients, and this ONNX file has none; name "
    assert mistake(capsys, *flags) == start + "the checkpoint (.pth) that it was made from, with --weights"
    (tmp_path / "export_report.json").write_text(json.dumps({"weights": "logs/weights/digits.pth"}))
    assert mistake(capsys, *flags) == start + "logs/weights/digits.pth, which this one was made from, with --weights"


def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(
    resnet: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(image: Image.Image, path: Path, *arguments: object, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    out = tmp_path / "maps"
    assert main("--weights", resnet, "-image", images / "wide.png", "--heatmap", out) == 2
    error = capsys.readouterr().err
    assert error == f"inference.py: {out}/wide.png.heatmap.jpg: cannot write it: No space left on device\n"
    assert snapshot(out) == {}


def test_a_class_is_found_by_its_name() -> None:
    many = ModelMetadata(tuple(f"kind {number}" for number in range(12)), Preprocess(8, 8), {})
    assert label_of("kind 3", many) == 3
    with pytest.raises(HeatMapError, match=r"and 2 more$"):
        label_of("quux", many)
    with pytest.raises(HeatMapError, match=r'did you mean "kind 11", "kind 1", "kind 10"\?'):
        label_of("KIND 111", many)


# --- training


@pytest.fixture
def tiny_training(make_config: Callable[..., Path]) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        return make_config(**{"num_epochs": 1, "learning_rate": 0.001, "is_tensorboard": True, **changes})

    return make


PIM_CONFIG = {
    "model_module_name": "pim_module",
    "model_net_name": "PIM",
    "model_args": {"model_type": "resnet18", "fpn_size": 8},
}


def tensorboard(dataset: Path) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for folder in (dataset / "logs/tensorboard").iterdir():
        yield EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


@pytest.mark.parametrize("changes", [{"ema_decay": 0.5, "freeze": ["stage2"]}, PIM_CONFIG])
def test_heat_maps_are_shown_and_change_no_number(
    tiny_training: Callable[..., Path], dataset: Path, changes: dict[str, Any]
) -> None:
    changes = {**changes, "evaluate_before_train": True}
    digests = []
    for is_tensorboard in (False, True):
        assert train.main(["--config", str(tiny_training(is_tensorboard=is_tensorboard, **changes))]) == 0
        digests.append(weights_sha256(load_checkpoint(dataset / "weights/net_last.pth").net))
    assert digests[0] == digests[1]
    (events,) = tensorboard(dataset)
    assert [event.step for event in events.Images("val/worst_heatmaps")] == [0, 5]
    page = (dataset / "weights/report.html").read_text(encoding="utf-8")
    worst = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))["worst"]
    assert page.count('alt="heat map of ') == len(worst) > 0


def test_a_failing_heat_map_stops_no_training(
    tiny_training: Callable[..., Path], dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("device lost")

    caplog.set_level("INFO", logger="trainers.reporting.heatmaps")
    monkeypatch.setattr(training_maps, "heat_mapper", fail)
    assert train.main(["--config", str(tiny_training())]) == 0
    (events,) = tensorboard(dataset)
    assert set(events.Tags()["images"]) == {"train/pictures", "val/confusion_matrix", "val/worst"}
    assert "heat map of" not in (dataset / "weights/report.html").read_text(encoding="utf-8")
    assert "heat maps of the worst images: device lost" in caplog.text


def test_the_report_shows_the_best_checkpoints_maps(resnet: Path, images: Path) -> None:
    asked = [(str(images / name), 1) for name in (*GOOD, "gone.png")]
    made = training_maps.best_heat_maps(resnet, asked, torch.device("cpu"))
    assert set(made) == {path for path, _ in asked[:-1]}
    net = build_net(
        "resnet_module", "resnet18", num_classes=3, num_channels=1, img_height=64, img_width=64, model_args={}
    )
    preprocess = load_checkpoint(resnet).metadata.preprocess
    other = training_maps.worst_heat_maps(net, preprocess, asked, torch.device("cpu"))
    net.load_state_dict(load_checkpoint(resnet).net)
    same = training_maps.worst_heat_maps(net, preprocess, asked, torch.device("cpu"))
    for path, image in made.items():
        assert image.dtype == np.uint8 and image.shape == (90, 270, 3)
        assert np.array_equal(image, same[path])
    assert any(not np.array_equal(made[path], other[path]) for path in made)
    assert training_maps.best_heat_maps(images / "absent.pth", asked, torch.device("cpu")) == {}


def test_the_page_shows_a_map_beside_its_image_alone(tmp_path: Path) -> None:
    rows = [{"path": name, "label": 0, "answer": 1, "score": 0.5, "loss": 1.0} for name in ("a.png", "b.png")]
    report = TrainingReport(title="t", net="n", status="finished", class_names=["猫", "<b>"], worst=rows).to_dict()
    maps = {"b.png": np.zeros((200, 200, 3), np.uint8)}
    html = write_report(report, tmp_path, heat_maps=maps).read_text(encoding="utf-8")
    assert html.count('alt="heat map of &lt;b&gt;"') == 1
    assert "beside an image, the heat map of its prediction" in html
    assert "beside an image" not in write_report(report, tmp_path).read_text(encoding="utf-8")


def test_pim_mapper_is_for_pim() -> None:
    assert isinstance(heat_mapper(small_pim(), 3, 64, 96), PimMapper)
    assert as_array(Image.new("L", (2, 2))).shape == (2, 2, 1)
