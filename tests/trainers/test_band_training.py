"""Trainings on images of bands: what is measured, what is refused, and the same values in every program."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import inference
import train
from artifacts.checkpoint import load_checkpoint
from common.paths import ROOT
from configs.loading import ConfigError, process_config
from data_loader.preprocess import Preprocess
from data_loader.samples import ListError
from deploy.export.__main__ import main as export_main
from nets import net_interface
from tests.helpers.masks import VALUES, mask_nets, scene, write_config, write_scenes
from trainers.data.band_ranges import statistics, with_measured_bands
from trainers.resuming import continued
from trainers.runtime.distributed import World
from trainers.tasks.segmentation import SegmentationTask

KEYS = {"num_channels": 4, "color_jitter": [0.1, 0.1, 0.0, 0.0]}


@pytest.fixture(autouse=True)
def tiny_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with mask_nets(tmp_path, monkeypatch):
        yield


@pytest.fixture
def rasterio() -> Any:
    return pytest.importorskip("rasterio", reason="needs requirements-geo.txt")


def with_fourth_band(folder: Path) -> None:
    """Make the images' first three bands noise, and add one of 20, 30 and 40 by class."""
    write_scenes(folder)
    for label in sorted(folder.glob("*/labels/*.png")):
        indices = np.searchsorted(VALUES, np.asarray(Image.open(label)))
        noise = np.random.default_rng(int(label.stem)).integers(0, 256, (*indices.shape, 3), dtype=np.uint8)
        bands = np.concatenate([noise, (20 + 10 * indices).astype(np.uint8)[:, :, None]], axis=2)
        path = folder / label.parent.parent.name / "images" / label.name
        Image.fromarray(bands).save(path)


def measured(file: Path) -> Any:
    return with_measured_bands(process_config(file), World(), lambda text: None)


def test_a_net_learns_from_the_fourth_band(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_fourth_band(tmp_path)
    assert train.main(["--config", str(write_config(tmp_path, num_epochs=12, **KEYS))]) == 0
    assert "4 bands of uint8; the values that become 0 and 255: " in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "weights/net.pth")
    preprocess = checkpoint.metadata.preprocess
    pixels = np.concatenate([
        np.asarray(Image.open(path)).reshape(-1, 4) for path in sorted((tmp_path / "train/images").iterdir())
    ])  # fmt: skip
    ordered = np.sort(pixels.astype(float), axis=0)
    places = np.array([0.005, 0.995]) * (len(ordered) - 1)  # between two values, linearly
    low, high = ((ordered[int(p)] * (1 - p % 1) + ordered[int(p) + 1] * (p % 1)) for p in places)
    assert np.allclose(preprocess.band_range, np.stack([low, high], axis=1))
    eight = np.rint(np.clip((pixels - low) * 255 / (high - low), 0, 255)) / 255
    assert np.allclose(preprocess.mean, eight.mean(axis=0), atol=1e-4)
    assert np.allclose(preprocess.std, eight.std(axis=0), atol=1e-4)
    assert preprocess.band_type == "uint8" and checkpoint.config["band_range"][3] == list(preprocess.band_range[3])
    assert json.loads((tmp_path / "weights/report.json").read_text(encoding="utf-8"))["best"]["mean_iou"] > 0.8
    assert (tmp_path / "weights/report.html").read_text(encoding="utf-8").count("data:image/") >= 5  # of bands, too

    arguments = ["--weights", str(tmp_path / "weights/net.pth"), "--formats", "onnx", "--with_preprocess", "bgr"]
    assert export_main([*arguments, "--output_dir", str(tmp_path / "exports")]) == 2
    assert "bands have no order like BGR; use --with_preprocess rgb" in capsys.readouterr().err

    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "valid/images/01.png", tmp_path / "new/good.png")
    Image.fromarray(scene(3)[0]).save(tmp_path / "new/rgb.png")
    flags = ["--weights", str(tmp_path / "weights/net.pth"), "--image_dir", str(tmp_path / "new"), "--workers", "1"]
    outputs = ["--device", "cpu", "--output", str(tmp_path / "a.json"), "--save_images", str(tmp_path / "out")]
    for tiles in ([], ["--tiles"]):
        assert inference.main([*flags, *outputs, *tiles]) == 1
        _, rgb = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
        assert rgb["error"] == "it has 3 bands of uint8, and 4 bands of uint8 are needed"
        mask = np.asarray(Image.open(tmp_path / "out/good.png.mask.png"))
        assert (mask == np.asarray(Image.open(tmp_path / "valid/labels/01.png"))).mean() > 0.95
        assert (tmp_path / "out/good.png.overlay.jpg").exists()


def test_a_resumed_training_keeps_its_ranges(tmp_path: Path) -> None:
    with_fourth_band(tmp_path)
    file = write_config(tmp_path, num_epochs=1, **KEYS)
    assert train.main(["--config", str(file)]) == 0
    checkpoint = load_checkpoint(tmp_path / "weights/net_last.pth")
    lines: list[str] = []
    resumed = continued(process_config(file), checkpoint, lines.append)
    for key in ("band_range", "band_type", "mean", "std"):
        assert getattr(resumed, key) == checkpoint.config[key] != getattr(process_config(file), key)
    given = write_config(tmp_path, num_epochs=1, **KEYS, band_range=[[0, 200]] * 4)
    assert continued(process_config(given), checkpoint, lines.append).band_range == [[0, 200]] * 4
    assert measured(given).band_range == [[0, 200]] * 4 and measured(given).band_type == "uint8"


def test_statistics_of_bands_that_are_the_same_everywhere() -> None:
    found = statistics(np.array([[5, 5, 5, 5], [0, 10, 20, 30]]), "uint16", ())
    assert found.ranges[0] == (5, 6) and found.ranges[1] == pytest.approx((0.15, 29.85))
    assert found.mean[0] == 0 and found.std[0] == pytest.approx(1 / 255, abs=1e-5)
    assert statistics(np.array([[0, 50, 100]]), "uint8", ((0, 100),)).mean[0] in (0.49935, 0.50065)  # 127.5 either way


@pytest.mark.parametrize(
    ("split", "content", "text"),
    [
        (
            "valid",
            np.zeros((24, 28, 3), np.uint8),
            "02.png: it has 3 bands of uint8, but num_channels is 4",
        ),
        ("train", np.zeros((24, 28), np.uint8), "train/images/02.png: it has 1 band of uint8, but num_channels is 4"),
    ],
)
def test_other_bands_are_told(tmp_path: Path, split: str, content: np.ndarray, text: str) -> None:
    with_fourth_band(tmp_path)
    Image.fromarray(content).save(tmp_path / split / "images/02.png")
    with pytest.raises(ListError) as raised:
        measured(write_config(tmp_path, **KEYS))
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_channels": 65}, "num_channels"),
        ({"band_range": [[0, 1]] * 3}, "band_range must have num_channels (4) entries, got 3"),
        ({"band_range": [[0, 1], [1, 1], [0, 1], [0, 1]]}, "low < high for each band"),
        ({"num_channels": 3, "band_type": "uint16"}, "band_type is for images of bands: set band_range"),
        ({"random_grayscale": 0.1}, "random_grayscale is for images of 3 channels, got num_channels 4"),
        ({"auto_augment": "randaugment"}, "auto_augment is a policy for colours, and num_channels 4 is for bands"),
        ({"augment_on": "device"}, 'augment_on "device" is for images of 1 or 3 channels, got num_channels 4'),
    ],
)
def test_what_bands_do_not_go_with(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    write_scenes(tmp_path)
    with pytest.raises(ConfigError) as raised:
        process_config(write_config(tmp_path, **KEYS | changes))
    assert text in str(raised.value)


def test_classes_are_learnt_from_bands_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 6), ("valid", 2)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 4), dtype=np.uint8)
                pixels[:, :, 3] = pixels[:, :, 3] // 16 + 4 * label
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.tif")
    monkeypatch.setattr(net_interface, "NETS_DIR", ROOT / "nets")
    net = {"model_module_name": "wide_resnet_module", "model_net_name": "WideResNet", "num_classes": 2}
    sizes = {"model_args": {"depth": 10, "widen_factor": 1}, "data_cache": "ram", "learning_rate": 0.05}
    file = write_config(tmp_path, **KEYS | net | sizes, num_epochs=6, random_crop_scale=[0.8, 1.0])
    assert train.main(["--config", str(file)]) == 0
    report = json.loads((tmp_path / "weights/report.json").read_text(encoding="utf-8"))
    assert report["best"]["top1"] == 1.0


def test_three_deep_bands_and_pixels_without_data(rasterio: Any, tmp_path: Path) -> None:
    write_scenes(tmp_path)
    for path in sorted(tmp_path.glob("*/images/*.png")):
        bands = np.moveaxis(np.asarray(Image.open(path)).astype(np.uint16) * 10 + 1, 2, 0)
        bands[:, :, :3] = 0
        form = {"driver": "GTiff", "dtype": "uint16", "count": 3, "nodata": 0, "crs": "EPSG:32640"}
        place = rasterio.Affine(0.5, 0, 3e5, 0, -0.5, 2.8e6)
        with rasterio.open(path.with_suffix(".tif"), "w", width=28, height=24, transform=place, **form) as file:
            file.write(bands)
        path.unlink()
    config = measured(write_config(tmp_path, band_range="measured"))
    assert config.band_type == "uint16" and config.has_bands()
    lows, highs = zip(*config.band_range, strict=True)
    assert min(lows) >= 200 and max(highs) <= 2401  # 0, where there is no data, does not count
    from data_loader.loaders import ImageDataset
    from trainers.data.sample_lists import read_lists

    target = SegmentationTask.target(config)
    samples, _ = read_lists(config, target)
    preprocess = SegmentationTask.preprocess(config)
    assert isinstance(preprocess, Preprocess)
    item = ImageDataset(samples, preprocess, target=target)[0, 0]
    truth = np.searchsorted(VALUES, np.asarray(Image.open(tmp_path / "train/labels/00.png")))
    assert (item["target"][:, 0] == 255).all() and (item["target"] == 255).mean() < 0.2
    squashed = np.asarray(Image.fromarray(truth.astype(np.uint8)).resize((24, 24), Image.Resampling.NEAREST))
    assert np.array_equal(item["target"][:, 5:], squashed[:, 5:])

    assert train.main(["--config", str(write_config(tmp_path, num_epochs=12, band_range="measured"))]) == 0
    flags = ["--weights", str(tmp_path / "weights/net.pth"), "--image_dir", str(tmp_path / "valid"), "--workers", "1"]
    outputs = ["--device", "cpu", "--output", str(tmp_path / "a.json"), "--save_images", str(tmp_path / "out")]
    for tiles in ([], ["--tiles"]):
        assert inference.main([*flags, *outputs, *tiles]) == 0
        with rasterio.open(tmp_path / "out/images/00.tif.mask.tif") as mask:
            values = mask.read(1)
        wanted = np.asarray(Image.open(tmp_path / "valid/labels/00.png"))
        assert (values[:, :3] == 255).all() and (values[:, 3:] == wanted[:, 3:]).mean() > 0.93
        row = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))[0]
        assert sum(row["shares"].values()) == pytest.approx(25 / 28)


def test_types_that_differ_are_told(rasterio: Any, tmp_path: Path) -> None:
    write_scenes(tmp_path)
    form = {"driver": "GTiff", "count": 6, "width": 28, "height": 24, "crs": "EPSG:32640"}
    place = rasterio.Affine(0.5, 0, 3e5, 0, -0.5, 2.8e6)
    for number, path in enumerate(sorted(tmp_path.glob("*/images/*.png"))):
        kind = "uint16" if number != 2 else "int16"
        with rasterio.open(path.with_suffix(".tif"), "w", dtype=kind, transform=place, **form) as file:
            file.write(np.ones((6, 24, 28), kind))
        path.unlink()
    with pytest.raises(ListError) as raised:
        measured(write_config(tmp_path, num_channels=6))
    assert f"{tmp_path}/train/images/02.tif: it has 6 bands of int16, but " in str(raised.value)
    assert "/train/images/00.tif has 6 bands of uint16; all images of a training have the same" in str(raised.value)
