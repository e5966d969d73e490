"""Images seen whole: one tile of their size, continued with border pixels to what the net takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from artifacts.checkpoint import Checkpoint, save_checkpoint, weights_sha256
from artifacts.metadata import ModelMetadata
from artifacts.outputs import output_shape
from data_loader.preprocess import ImageError, Preprocess
from deploy.backends.base import BackendError
from deploy.backends.declared_sizes import check_declared
from deploy.backends.loading import load_backend
from deploy.inference.mask_prediction import MaskPrediction
from deploy.inference.tiles import DecodedImage
from deploy.inference.whole_images import WholePredictor
from nets.net_interface import build_net
from tests.helpers.exported import export, report_of
from tests.helpers.masks import mask_nets

NET = {"module": "m", "name": "n", "args": {}}
METADATA = ModelMetadata(("a", "b"), Preprocess(8, 8, max_pixels=500), NET, output="mask_logits", size_step=8)


class Brightness:
    """Class b where a pixel is bright; keeps the shapes that it was given."""

    name, device = "fake", "cpu"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.shapes.append(images.shape)
        bright = images.mean(axis=1, keepdims=True)  # (N, 1, H, W)
        return np.concatenate([np.zeros_like(bright), bright], axis=1)


def test_an_image_is_one_tile_of_its_own_size() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 30, 3), dtype=np.uint8)
    net = Brightness()
    prediction = WholePredictor(net, METADATA).predict_rows([DecodedImage(pixels)], 4)
    assert net.shapes == [(1, 3, 16, 32)] and isinstance(prediction, MaskPrediction)
    preprocess = METADATA.preprocess
    scale, shift = preprocess.scale_and_shift()
    bright = (pixels * scale + shift).mean(axis=2) > 0
    assert (prediction.indices == bright).mean() > 0.99 and prediction.indices.shape == (13, 30)


def test_what_cannot_be_seen_whole_is_refused() -> None:
    with pytest.raises(BackendError, match="--whole is for checkpoints of nets of masks"):
        WholePredictor(Brightness(), replace(METADATA, size_step=0))
    large = DecodedImage(np.zeros((30, 30, 3), np.uint8))
    with pytest.raises(ImageError, match=r"30x30 is more than max_pixels \(500\) allows to be seen whole; use --tiles"):
        WholePredictor(Brightness(), METADATA).predict_rows([large], 1)


def test_sizes_are_free_in_the_metadata(tmp_path: Path) -> None:
    assert ModelMetadata.from_dict(METADATA.to_dict()) == METADATA
    assert "size_step" not in replace(METADATA, size_step=0).to_dict()
    assert output_shape(METADATA) == (None, 2, None, None)
    check_declared(tmp_path, METADATA, [(None, 3, None, None), (None, 2, None, None)])
    with pytest.raises(BackendError, match="its metadata says"):
        check_declared(tmp_path, METADATA, [(None, 1, None, None), None])
    with pytest.raises(ValueError, match="size_step cannot be -1"):
        ModelMetadata.from_dict({**METADATA.to_dict(), "size_step": -1})


def test_a_file_of_any_size_and_its_checkpoint_see_images_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their masks are those of the net on the image with its border continued; a file of one size is refused."""
    torch.manual_seed(0)
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    large = np.random.default_rng(9).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    weights, out = tmp_path / "net.pth", tmp_path / "out"
    with mask_nets(tmp_path, monkeypatch):
        sizes = {"num_classes": 3, "img_height": 16, "img_width": 24}
        net = build_net("tiny_masks_module", "TinyMasks", **sizes, model_args={}).eval()
        described = {"module": "tiny_masks_module", "name": "TinyMasks", "args": {}}
        preprocess, names = Preprocess(16, 24), ("ground", "road", "water")
        metadata = ModelMetadata(names, preprocess, described, task="segmentation", output="mask_logits")
        metadata = replace(metadata, weights_sha256=weights_sha256(net.state_dict()))
        save_checkpoint(Checkpoint({}, metadata, net.state_dict()), weights)
        options = {"device": "cpu", "samples": tmp_path / "images"}
        assert export(weights, ["jit", "onnx", "json"], out, any_size=True, **options) == 0
        captured = " ".join(capsys.readouterr().out.split())
        assert "jit, onnx: any width and height that are multiples of 4, verified at 24x16 and 32x20" in captured
        other = {row["format"]: row["runs"][0]["other_size"] for row in report_of(out)["formats"]}
        assert other == {"jit": [20, 32], "onnx": [20, 32], "json": None}
        padded = np.pad(large, ((0, 2), (0, 3), (0, 0)), mode="edge")
        with torch.no_grad():
            logits = net(torch.from_numpy(preprocess.net_input(padded))[None])[0].numpy()  # (3, 32, 48)
        for file in (weights, out / "model.pt", out / "model.onnx"):
            assert load_backend(file, device="cpu")[1].size_step == (0 if file == weights else 4)
            flags = ["--weights", str(file), "--image", str(tmp_path / "large.png"), "--device", "cpu", "--quiet"]
            assert inference.main([*flags, "--whole", "--save_images", str(tmp_path / f"of_{file.name}")]) == 0
            mask = np.asarray(Image.open(tmp_path / f"of_{file.name}/large.png.mask.png"))
            assert (mask == logits.argmax(0)[:30, :45]).mean() > 0.999
        flags[1] = str(out / "model.json")
        assert inference.main([*flags, "--whole", "--output", str(tmp_path / "a.csv")]) == 2
        assert "this net takes images of one size: use --tiles" in capsys.readouterr().err
