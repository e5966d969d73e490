"""Exports of nets that give masks: every format of a net that has learnt a little, verified pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from artifacts.metadata_reader import read_metadata
from configs.schema import Config
from data_loader.preprocess import Preprocess
from deploy.backends.loading import load_backend
from deploy.export.sample_images import net_input
from nets.net_interface import build_net
from tests.conftest import slow_but
from tests.helpers.exported import export, report_of

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64
NETS = {
    "lraspp": ("lraspp_module", {"model_type": "mobilenet_v3_small"}),
    "linknet18": ("linknet_module", {}),
    "deeplabv3plus": ("deeplab_module", {"model_type": "efficientnet_lite0", "dropout": 0.0}),
    "unet": ("unet_module", {"width": 8}),
    "backbone_unet": ("unet_module", {"model_type": "resnet18"}),
    "fc_siam_diff": ("change_module", {}),
}
PAIRS = ("fc_siam_diff",)
QUICK = ("lraspp",)
FORMATS = {"jit": "model.pt", "pt2": "model.pt2", "onnx": "model.onnx", "int8": "model.int8.onnx", "json": "model.json"}


def draw(count: int, *, pairs: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return noise with a red and a blue rectangle, uint8 (count, H, W, 3), and their masks (count, H, W).

    Of pairs the images are (count, H, W, 6): other noise first.
    """
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 120, (count, SIDE, SIDE, 3)).astype(np.uint8)
    masks = np.zeros((count, SIDE, SIDE), np.int64)
    for image, mask in zip(pixels, masks, strict=True):
        for label, channel in ((1, 0), (2, 2)):
            top, left = generator.integers(0, SIDE // 2, 2)
            image[top : top + 24, left : left + 24, channel] += 120
            mask[top : top + 24, left : left + 24] = label
    before = generator.integers(0, 120, pixels.shape).astype(np.uint8)
    return np.concatenate([before, pixels], axis=3) if pairs else pixels, masks


def preprocess_of(*, pairs: bool) -> Preprocess:
    return Preprocess(SIDE, SIDE, channels=6, images=2) if pairs else Preprocess(SIDE, SIDE)


def build(name: str) -> nn.Module:
    module, args = NETS[name]
    channels = 6 if name in PAIRS else 3
    size = {"num_classes": 3, "num_channels": channels, "img_height": SIDE, "img_width": SIDE}
    return build_net(module, name, **size, model_args=args)


def train(name: str, folder: Path) -> Path:
    """Train a net for a few steps; return its checkpoint, beside which images/ holds what it has learnt from."""
    module, args = NETS[name]
    is_pair = name in PAIRS
    pixels, masks = draw(16, pairs=is_pair)
    for which, place in enumerate(("A", "B") if is_pair else ("images",)):
        (folder / place).mkdir()
        for number, image in enumerate(pixels[..., 3 * which : 3 * which + 3]):
            Image.fromarray(image).save(folder / place / f"{number:02d}.png")
    torch.manual_seed(0)
    net = build(name)
    net_name = {"module": module, "name": name, "args": args}
    metadata = ModelMetadata(
        ("none", "red", "blue"), preprocess_of(pairs=is_pair), net_name, output="mask_logits", task="segmentation"
    )
    images = torch.from_numpy(net_input(pixels, metadata.preprocess, metadata.input))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), torch.from_numpy(masks)).backward()
        optimizer.step()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0  # the statistics of the next batch, which is all of the data
    with torch.no_grad():
        net(images)
    values = {"model_module_name": module, "model_net_name": name, "model_args": args, "num_classes": 3}
    folders = {"train_data_root_dir": str(folder), "val_data_root_dir": str(folder)}
    config = Config.model_validate({**values, **folders, "img_height": SIDE, "img_width": SIDE})
    save_checkpoint(Checkpoint(config.model_dump(), metadata, net.state_dict()), folder / "net.pth")
    return folder / "net.pth"


@pytest.mark.parametrize("name", slow_but(QUICK, NETS))
def test_every_format_gives_the_nets_masks(name: str, tmp_path: Path) -> None:
    weights = train(name, tmp_path)
    assert export(weights, list(FORMATS), tmp_path / "out", device="cpu", samples=tmp_path) == 0
    runs = {row["format"]: row["runs"][0] for row in report_of(tmp_path / "out")["formats"]}
    assert set(runs) == set(FORMATS)
    for format_name, run in runs.items():
        assert 1 - run["top1_agreement"] <= (2e-2 if format_name == "int8" else 1e-4)

    net = build(name).eval()
    net.load_state_dict(load_checkpoint(weights).net)
    is_pair = name in PAIRS
    pixels, masks = draw(16, pairs=is_pair)
    images = net_input(pixels, preprocess_of(pairs=is_pair), "float32 NCHW")
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    assert (expected.argmax(1) == masks).mean() > 0.6  # it has learnt something
    for format_name, file in FORMATS.items():
        backend, metadata = load_backend(tmp_path / "out" / file, device="cpu")
        assert read_metadata(tmp_path / "out" / file).output == metadata.output == "mask_logits"
        for count in (1, 5):
            outputs = backend(images[:count])
            assert (outputs.dtype, outputs.shape) == (np.float32, (count, 3, SIDE, SIDE))
            disagreeing = (outputs.argmax(1) != expected[:count].argmax(1)).mean()
            assert disagreeing <= (3e-2 if format_name == "int8" else 1e-4)


def test_pairs_with_their_preprocessing(tmp_path: Path) -> None:
    """BGR is the order within each image: the earlier one comes first in every file."""
    weights = train("fc_siam_diff", tmp_path)
    pixels, _ = draw(4, pairs=True)
    net = build("fc_siam_diff").eval()
    net.load_state_dict(load_checkpoint(weights).net)
    with torch.no_grad():
        expected = net(torch.from_numpy(net_input(pixels, preprocess_of(pairs=True), "float32 NCHW"))).numpy()
    for order, given in (("rgb", pixels), ("bgr", pixels[..., [2, 1, 0, 5, 4, 3]])):
        out = tmp_path / order
        assert export(weights, ["onnx", "json"], out, device="cpu", samples=tmp_path, with_preprocess=order) == 0
        for file in ("model.onnx", "model.json"):
            outputs = load_backend(out / file, device="cpu")[0](np.ascontiguousarray(given))
            assert np.abs(outputs - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_list_of_pairs_and_a_missing_image(tmp_path: Path) -> None:
    weights = train("fc_siam_diff", tmp_path)
    names = [f"{number:02d}.png" for number in range(6)]
    lines = [f"A/{name}----B/{name}----labels/{name}" for name in names]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "B/03.png").unlink()
    assert export(weights, ["onnx"], tmp_path / "out", device="cpu", samples=tmp_path / "list.txt") == 0
    report = report_of(tmp_path / "out")
    assert report["samples"]["used"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_files_of_any_size(name: str, tmp_path: Path) -> None:
    """Files with --any_size give the net's logits at another size, too; json keeps one."""
    formats = ("jit", "onnx", "json", *(("pt2",) if name in QUICK else ()))
    files = {format_name: FORMATS[format_name] for format_name in formats}
    weights = train(name, tmp_path)
    assert export(weights, list(files), tmp_path / "out", device="cpu", samples=tmp_path, any_size=True) == 0
    net = build(name).eval()
    net.load_state_dict(load_checkpoint(weights).net)
    step: Any = net.size_step
    rows = {row["format"]: row["runs"][0] for row in report_of(tmp_path / "out")["formats"]}
    assert rows.pop("json")["other_size"] is None and read_metadata(tmp_path / "out/model.json").size_step == 0
    images = np.random.default_rng(1).random((2, 6 if name in PAIRS else 3, 3 * step, 96), np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    for format_name, row in rows.items():
        assert row["other_size"] == [64 + step, 64 + 2 * step]
        backend, metadata = load_backend(tmp_path / "out" / files[format_name], device="cpu")
        assert metadata.size_step == step
        assert np.abs(backend(images) - expected).max() < 1e-4 * np.abs(expected).max()
