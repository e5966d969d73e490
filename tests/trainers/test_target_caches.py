"""Cached masks and boxes are those that are read: batches, views and whole trainings, to the bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from configs.loading import process_config
from configs.schema import Config
from data_loader.bad_images import BadImageError
from data_loader.loaders import ImageDataset, WholeBatches, validation_loader
from data_loader.samples import SampleList
from tests.helpers import boxes, masks
from trainers.data.reading import read_data
from trainers.runtime.distributed import World
from trainers.tasks.table import task_of_config

KINDS = ("masks", "pairs", "boxes")
SAME_SIZE: dict[str, dict[str, Any]] = {  # of the scenes, so that fitting changes nothing
    "masks": {"img_width": 28},
    "pairs": {"img_width": 28, "model_net_name": "TinyChange", "num_classes": 2},
    "boxes": {},
}
VIEWS: dict[str, dict[str, Any]] = {
    "masks": {"copy_paste": 0.5, "balanced_crops": 0.5, "translate": 0.1},
    "pairs": {"copy_paste": 0.5, "color_jitter": [0.2, 0.2, 0.2, 0.0]},
    "boxes": {"mosaic": 0.4, "mixup_boxes": 0.5, "balanced_crops": 0.5},
}
EVERY_VIEW = {"random_crop_scale": [0.5, 1.0], "random_crop_ratio": [0.8, 1.25], "vertical_flip": 0.5}


@contextmanager
def scenes(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write small data with masks, pairs or boxes, and let their tiny nets be found."""
    if kind == "boxes":
        boxes.write_boxes(folder)
    else:
        masks.write_scenes(folder, has_pairs=kind == "pairs")
    with (boxes.box_nets if kind == "boxes" else masks.mask_nets)(folder, monkeypatch):
        yield


def config_of(kind: str, folder: Path, **changes: Any) -> Path:
    write = boxes.write_config if kind == "boxes" else masks.write_config
    return write(folder, **{"data_cache_dir": str(folder / "kept"), **SAME_SIZE[kind], **changes})


def read(kind: str, folder: Path, **changes: Any) -> tuple[Config, SampleList, SampleList]:
    config = process_config(config_of(kind, folder, **changes))
    train_list, val_list, _ = read_data(config, World(), lambda text: None)
    return config, train_list, val_list


def batches(config: Config, samples: SampleList) -> list[dict[str, torch.Tensor]]:
    task = task_of_config(config)
    dataset = ImageDataset(samples, task.preprocess(config), target=task.target(config))
    loader = validation_loader(dataset, 2, 0)
    assert isinstance(loader, WholeBatches) == (samples.cache is not None)
    return list(loader)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_cached_batches_are_those_that_are_read(
    kind: str, resize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {"img_height": 32, "img_width": 32, "resize": resize}
    with scenes(kind, tmp_path, monkeypatch):
        config, _, plain = read(kind, tmp_path, **size)
        _, _, cached = read(kind, tmp_path, **size, data_cache="disk")
        expected = batches(config, plain)
        for folder in ("images", "labels", "A", "B"):
            shutil.rmtree(tmp_path / "valid" / folder, ignore_errors=True)  # no file is read again
        for mine, theirs in zip(batches(config, cached), expected, strict=True):
            assert torch.equal(mine["image"], theirs["image"]) and torch.equal(mine["index"], theirs["index"])
            rows = mine["target"]
            if kind == "boxes":  # padded to the most objects of all images, not of this batch
                assert (rows[:, theirs["target"].shape[1] :] == -1).all()
                rows = rows[:, : theirs["target"].shape[1]]
            assert rows.dtype == theirs["target"].dtype and torch.equal(rows, theirs["target"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augment_on", ["cpu", "device", "off"])
def test_a_training_from_the_cache_is_the_same_to_the_bit(
    kind: str, augment_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if augment_on == "device" and kind == "boxes":
        pytest.skip("boxes are augmented on the CPU alone")
    changes: dict[str, Any] = {
        "cpu": {**EVERY_VIEW, **VIEWS[kind]},
        "device": {**EVERY_VIEW, "augment_on": "device"},
    }.get(augment_on, {"data_aug": False})
    ends = []
    with scenes(kind, tmp_path, monkeypatch):
        for cache, workers in (("none", 0), ("ram", 0), ("disk", 2)):
            place = {"save_path": str(tmp_path / cache), "dataloader_workers": workers, "data_cache": cache}
            assert train.main(["--config", str(config_of(kind, tmp_path, **changes, **place))]) == 0
            ends.append(load_checkpoint(tmp_path / cache / "net_last.pth"))
    assert len({weights_sha256(end.net) for end in ends}) == 1
    assert len({str(end.progress["curves"]["val"]) for end in ends}) == 1


def test_a_larger_fitted_image_moves_its_boxes_and_mask_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("masks", "boxes"):
        folder = tmp_path / kind
        folder.mkdir()
        with scenes(kind, folder, monkeypatch):
            config, cached, _ = read(kind, folder, data_cache="ram", fitted_scale=2.0)
            target = task_of_config(config).target(config)
            assert cached.cache is not None
            fitting = cached.cache.fitting
            width, height = fitting.preprocess.width, fitting.preprocess.height
            assert (width, height) == (2 * config.img_width, 2 * config.img_height)
            row = cached.cache.row(0)
            value = target.of_cached(fitting.preprocess, cached.samples[0], row[:, :, 3:])
            if kind == "masks":
                assert value.size == (width, height) and row.shape == (height, width, 4)
                small = np.asarray(Image.open(cached.samples[0].target.path))
                indices = np.searchsorted(masks.VALUES, small)
                assert (np.asarray(value) == np.kron(indices, np.ones((2, 2), int))).all()
            else:
                assert value.size == (width, height) and row.shape == (height, width, 3)
                own = target.load(cached.samples[0])
                np.testing.assert_allclose(value.boxes, 2 * own.boxes, atol=1e-4)


def test_the_file_follows_from_masks_and_classes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> set[str]:
        read("masks", tmp_path, data_cache="disk")
        return {path.name for path in (tmp_path / "kept").iterdir()}

    with scenes("masks", tmp_path, monkeypatch):
        first = names()
        assert len(first) == 2 and names() == first
        os.utime(tmp_path / "train/labels/03.png", ns=(1, 1))
        assert len(names() - first) == 1
        classes = (tmp_path / "classes.json").read_text(encoding="utf-8")
        (tmp_path / "classes.json").write_text(classes.replace('"value": 7', '"value": 9'), encoding="utf-8")
        assert len(names()) == 5  # pixels of 7 are of no class now


def test_images_validated_at_their_own_size_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scenes("masks", tmp_path, monkeypatch):
        _, cached, plain = read("masks", tmp_path, data_cache="ram", val_tiles=0.25)
        assert cached.cache is not None and plain.cache is None
        assert train.main(["--config", str(config_of("masks", tmp_path, data_cache="ram", val_tiles=0.25))]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_is_named_or_left_out(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scenes(kind, tmp_path, monkeypatch):
        place = tmp_path / "train" / ("B" if kind == "pairs" else "images") / "01.png"
        place.write_bytes(place.read_bytes()[:-40])
        with pytest.raises(BadImageError, match=r"01\.png"):
            read(kind, tmp_path, data_cache="ram")
        _, cached, _ = read(kind, tmp_path, data_cache="ram", bad_images="skip", max_bad_share=0.2)
        assert cached.cache is not None and not cached.cache.bad
        assert all("01.png" not in sample.path for sample in cached.samples)
