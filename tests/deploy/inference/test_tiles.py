"""Tiled prediction: the untiled one where no tile's border reaches, in memory that does not follow the height."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import inference
from artifacts.metadata import ModelMetadata
from artifacts.tiles import blend_weights, starts
from data_loader.preprocess import Preprocess
from deploy.backends.base import BackendError
from deploy.inference.predictor import Predictor
from deploy.inference.tiles import DecodedImage, TiledPredictor, tiled_logits
from tests.helpers.masks import VALUES, mask_nets, scene, trained_masks

METADATA = ModelMetadata(
    ("a", "b", "c"),
    Preprocess(32, 48),
    {"module": "m", "name": "n", "args": {}},
    task="segmentation",
    output="mask_logits",
)
REACH = 3  # pixels that a logit of `net` depends on to each side


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)]
    return nn.Sequential(*layers).eval()


@dataclass
class TorchBackend:
    net: nn.Module
    name: str = "torch"
    device: str = "cpu"
    most: int = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.most = max(self.most, len(images))
        with torch.inference_mode():
            return self.net(torch.from_numpy(images)).numpy()


def random_image(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("length", "tile", "overlap"), [(5, 8, 0.25), (8, 8, 0.25), (9, 8, 0.25), (100, 8, 0.9)])
def test_tiles_cover_a_side_and_overlap(length: int, tile: int, overlap: float) -> None:
    found = starts(length, tile, overlap)
    assert found[0] == 0 and found[-1] == max(0, length - tile)
    steps = np.diff(found)
    assert (steps > 0).all() and (steps <= max(1, tile * (1 - overlap))).all()


def test_weights_of_neighbours_add_up() -> None:
    first, second = blend_weights(8, [0, 4])
    assert first.tolist() == [1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125]
    assert np.allclose(first[4:] + second[:4], 1) and (second[4:] == 1).all()
    assert [weights.tolist() for weights in blend_weights(3, [0, 3])] == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(("size", "overlap"), [((200, 111), 0.25), ((48, 32), 0.5), ((97, 33), 0.0), ((49, 300), 0.6)])
def test_a_tiled_prediction_is_the_untiled_one(net: nn.Module, size: tuple[int, int], overlap: float) -> None:
    """Away from the borders of the tiles by the reach of the net: a logit there has seen the same pixels."""
    pixels = random_image(*size)
    width, height = size
    backend = TorchBackend(net)
    bands = list(tiled_logits(backend, [DecodedImage(pixels)], METADATA, overlap, 4))
    tiled = np.concatenate(bands, axis=1)
    untiled = backend(METADATA.preprocess.net_input(pixels)[None])[0]
    assert tiled.shape == untiled.shape == (3, height, width) and backend.most <= 4
    near_x, near_y = (
        near_a_border(length, tile, starts(length, tile, overlap)) for length, tile in ((width, 48), (height, 32))
    )
    far = ~(near_y[:, None] | near_x[None])
    assert far.mean() > 0.1
    assert np.abs(tiled - untiled)[:, far].max() < 1e-5


def near_a_border(length: int, tile: int, begins: Sequence[int]) -> np.ndarray:
    """Return which places along a side lie within REACH of a tile's border that is not the image's."""
    near = np.zeros(length, bool)
    for begin in begins:
        if begin > 0:
            near[begin : begin + REACH] = True
        if begin + tile < length:
            near[begin + tile - REACH : begin + tile] = True
    return near


def test_seams_are_blended(net: nn.Module) -> None:
    """On a smooth image the columns of a seam differ as little as their neighbours; without an overlap they do not."""
    ramp = np.linspace(60, 200, 240).round().astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (60, 240, 3)).copy()
    most = {}
    for overlap in (0.0, 0.25):
        logits = np.concatenate(
            list(tiled_logits(TorchBackend(net), [DecodedImage(pixels)], METADATA, overlap, 8)), axis=1
        )
        inner = logits[:, 10:-10, 10:-10]
        most[overlap] = np.abs(np.diff(inner, axis=2)).max() / np.abs(np.diff(inner, axis=2)).mean()
    assert most[0.25] < 0.35 * most[0.0]


def test_the_memory_does_not_grow_with_the_height() -> None:
    @dataclass
    class Rows:
        size: tuple[int, int]

        def rows(self, first: int, end: int) -> np.ndarray:
            return np.zeros((end - first, self.size[0], 3), np.uint8)

        def valid(self, first: int, end: int) -> None:
            return None

    def peak(height: int) -> int:
        tracemalloc.start()
        rows = 0
        zeros = np.zeros((4, 3, 32, 48), np.float32)
        for band in tiled_logits(lambda tiles: zeros[: len(tiles)], [Rows((480, height))], METADATA, 0.25, 4):
            rows += band.shape[1]
        assert rows == height
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(64)
    assert peak(6400) < 1.3 * peak(640)


@pytest.fixture
def tiny_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with mask_nets(tmp_path, monkeypatch):
        yield


def test_inference_by_tiles(tiny_nets: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = trained_masks(tmp_path)
    pixels, truth = scene(3, (130, 75))
    (tmp_path / "new").mkdir()
    Image.fromarray(pixels).save(tmp_path / "new/a.png")
    Image.fromarray(pixels[:10, :10]).save(tmp_path / "new/small.png")
    (tmp_path / "new/bad.png").write_bytes(b"")
    common = ["--weights", str(weights), "--image_dir", str(tmp_path / "new"), "--device", "cpu", "--quiet"]
    flags = [*common, "--output", str(tmp_path / "out.json"), "--save_images", str(tmp_path / "out")]
    assert inference.main([*flags, "--tiles"]) == 1
    with Image.open(tmp_path / "out/a.png.mask.png") as mask:
        values = np.asarray(mask)
    assert (values == VALUES[truth]).mean() > 0.97  # no pixel is resized: finer than the 24 x 24 input
    rows = {Path(row["file"]).name: row for row in json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))}
    assert rows["bad.png"]["error"] == "it is empty (0 bytes)"
    assert (rows["a.png"]["width"], rows["small.png"]["height"]) == (130, 10)
    assert list(rows["a.png"]["shares"].values()) == pytest.approx([(values == value).mean() for value in VALUES])
    assert (tmp_path / "out/a.png.overlay.jpg").exists() and (tmp_path / "out/small.png.mask.png").exists()


def test_pairs_by_tiles(tiny_nets: None, tmp_path: Path) -> None:
    weights = trained_masks(tmp_path, model_net_name="TinyChange", num_classes=2)
    flags = ["--weights", str(weights), "--image_dir", str(tmp_path / "valid"), "--device", "cpu", "--quiet", "--tiles"]
    Image.new("RGB", (28, 30)).save(tmp_path / "valid/B/03.png")
    assert inference.main([*flags, "--output", str(tmp_path / "o.json"), "--save_images", str(tmp_path / "out")]) == 1
    rows = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    assert rows[3]["error"] == f"it is 28x24, but the second image {tmp_path}/valid/B/03.png is 28x30"
    hits = []
    for number in (0, 1, 2, 4):
        with Image.open(tmp_path / f"out/A/{number:02d}.png.mask.png") as mask:
            found = np.asarray(mask) > 0
        with Image.open(tmp_path / f"valid/labels/{number:02d}.png") as label:
            hits.append((found == (np.asarray(label) > 0)).mean())
    assert np.mean(hits) > 0.9


def test_an_output_that_is_not_finite(net: nn.Module, tmp_path: Path) -> None:
    Image.fromarray(random_image(60, 60)).save(tmp_path / "a.png")
    backend = TorchBackend(nn.Sequential(net, nn.Threshold(1e9, float("nan"))))
    (prediction,) = TiledPredictor(backend, METADATA, 0.25).predict_files([str(tmp_path / "a.png")])
    assert prediction.error == "the net's output is not finite (NaN or infinite logits)"


def test_tiles_are_for_masks(net: nn.Module) -> None:
    with pytest.raises(
        BackendError, match=r"^--tiles is for nets that give masks or boxes, and this one gives neither"
    ):
        TiledPredictor(TorchBackend(net), replace(METADATA, output="logits"), 0.25)


def test_tiles_and_whole_images_agree_on_one_of_the_input_s_size(net: nn.Module, tmp_path: Path) -> None:
    Image.fromarray(random_image(48, 32)).save(tmp_path / "a.png")
    backend = TorchBackend(net)
    found = []
    for predictor in (Predictor(backend, METADATA), TiledPredictor(backend, METADATA, 0.25)):
        for prediction in predictor.predict_files([str(tmp_path / "a.png")], workers=1):
            assert (prediction.file, prediction.error) == (str(tmp_path / "a.png"), "")
            found.append((prediction.values(), prediction.indices))
    assert np.array_equal(found[0][1], found[1][1])
    assert (
        found[0][0]["score"] == pytest.approx(found[1][0]["score"]) and found[0][0]["shares"] == found[1][0]["shares"]
    )
