"""Small scenes with masks, and nets that learn them fast."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nets
import train
from nets import net_interface

NET = '''
"""Nets that give masks."""

from torch import Tensor, nn


class TinyMasks(nn.Module):
    """Images (N, C, H, W) to logits (N, K, H, W)."""

    task = "segmentation"
    output = "mask_logits"
    size_step = 4

    def __init__(self, num_classes: int, num_channels: int = 3, norm: bool = True) -> None:
        super().__init__()
        middle = [nn.BatchNorm2d(12)] if norm else []
        self.layers = nn.Sequential(
            nn.Conv2d(num_channels, 12, 3, padding=1), *middle, nn.ReLU(), nn.Conv2d(12, num_classes, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class TinyChange(TinyMasks):
    """Pairs (N, 2C, H, W) to logits (N, K, H, W)."""

    task = "change_detection"


def tiny(num_classes: int) -> TinyMasks:
    """Return a net by a function."""
    return TinyMasks(num_classes)
'''
CLASSES = [
    {"name": "ground", "value": 0, "color": "155,155,155", "title": "地面"},
    {"name": "road", "value": 3, "color": "110,193,228", "title": "道路"},
    {"name": "water", "value": 7, "color": "0,0,255", "title": "水体"},
]
VALUES = np.array([0, 3, 7], np.uint8)
SIZE = (28, 24)  # width, height


@contextmanager
def mask_nets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let nets/ hold tiny_masks_module, too."""
    (folder / "nets").mkdir()
    (folder / "nets/tiny_masks_module.py").write_text(NET, encoding="utf-8")
    monkeypatch.setattr(nets, "__path__", [*nets.__path__, str(folder / "nets")])
    monkeypatch.setattr(net_interface, "NETS_DIR", folder / "nets")
    yield
    sys.modules.pop("nets.tiny_masks_module", None)


def scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return an image uint8 (H, W, 3) and its class indices (H, W): red roads and blue water on dark ground."""
    generator = np.random.default_rng(seed)
    width, height = size
    indices = np.zeros((height, width), np.uint8)
    for label in (1, 2):
        top, left = generator.integers(0, height - 8), generator.integers(0, width - 8)
        indices[top : top + 9, left : left + 8] = label
    colours = np.array([[40, 40, 40], [220, 60, 50], [40, 70, 220]])
    noisy = colours[indices] + generator.integers(-20, 20, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8), indices


def write_scenes(folder: Path, *, train: int = 10, valid: int = 5, has_pairs: bool = False) -> Path:
    """Write classes.json, and train/ and valid/ with images/ and labels/, or A/, B/ and labels/ of 0 and 255."""
    if not has_pairs:
        (folder / "classes.json").write_text(json.dumps(CLASSES), encoding="utf-8")
    for split, count, first in (("train", train, 0), ("valid", valid, 100)):
        for number in range(count):
            pixels, indices = scene(first + number)
            images = {"images": pixels}
            mask = VALUES[indices]
            if has_pairs:
                before, _ = scene(500 + first + number)
                changed = indices == 1
                images = {"A": before, "B": np.where(changed[:, :, None], pixels, before)}
                mask = changed.astype(np.uint8) * 255
            for name, content in {**images, "labels": mask}.items():
                place = folder / split / name / f"{number:02d}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(place)
    return folder


def write_config(folder: Path, **changes: Any) -> Path:
    """Write a small config on `write_scenes`, of a net of `mask_nets`, with any keys changed; return its path."""
    values = {
        "model_module_name": "tiny_masks_module",
        "model_net_name": "TinyMasks",
        "img_height": 24,
        "img_width": 24,
        "num_classes": 3,
        "train_data_root_dir": str(folder / "train"),
        "val_data_root_dir": str(folder / "valid"),
        "dataloader_workers": 0,
        "num_epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.1,
        "gpu_id": "cpu",
        "precision": "fp32",
        "is_tensorboard": False,
        "save_path": str(folder / "weights"),
        "log_path": str(folder / "logs"),
    }
    file = folder / "config.json"
    file.write_text(json.dumps(values | changes), encoding="utf-8")
    return file


def trained_masks(folder: Path, **changes: Any) -> Path:
    """Train a net of `mask_nets` on scenes, or on pairs for TinyChange, until it knows them; return its checkpoint."""
    write_scenes(folder, has_pairs=changes.get("model_net_name") == "TinyChange")
    assert train.main(["--config", str(write_config(folder, num_epochs=12, **changes))]) == 0
    return folder / "weights/net.pth"
