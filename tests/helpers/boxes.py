"""Small scenes of red and blue rectangles, with their boxes in VOC XML, COCO's JSON and YOLO's txt."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import nets
from nets import net_interface

NAMES = ("blue", "red")  # in natural order
COLOURS = np.array([(40, 70, 220), (220, 60, 50)])
SIZE = (72, 64)  # width, height

Object = tuple[str, int, int, int, int]  # class, left, top, right, bottom


def scene(seed: int, size: tuple[int, int] = SIZE, most: int = 3) -> tuple[np.ndarray, list[Object]]:
    """Return an image uint8 (H, W, 3) and its objects, which do not touch: rectangles on dark noise."""
    generator = np.random.default_rng(seed)
    width, height = size
    pixels = generator.integers(0, 60, (height, width, 3))
    objects: list[Object] = []
    for _ in range(int(generator.integers(1, most + 1))):
        wide, high = generator.integers(16, 31, 2)
        left, top = generator.integers(0, width - wide), generator.integers(0, height - high)
        box = (int(left), int(top), int(left + wide), int(top + high))
        if any(_touch(box, other[1:]) for other in objects):
            continue
        label = int(generator.integers(2))
        noise = generator.integers(-20, 20, (high, wide, 3))
        pixels[box[1] : box[3], box[0] : box[2]] = COLOURS[label] + noise
        objects.append((NAMES[label], *box))
    return pixels.clip(0, 255).astype(np.uint8), objects


def _touch(box: Sequence[int], other: Sequence[int]) -> bool:
    return all(box[i] <= other[i + 2] and other[i] <= box[i + 2] for i in (0, 1))


def voc(objects: Sequence[Object | tuple[Any, ...]], size: tuple[int, int] | None = SIZE, difficult: int = 0) -> str:
    """Return a VOC XML."""
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    rows = [
        f"<object><difficult>{difficult}</difficult><bndbox><xmax>{right}</xmax><xmin>{left}</xmin>"
        f"<ymin>{top}</ymin><ymax>{bottom}</ymax></bndbox><name>{name}</name></object>"
        for name, left, top, right, bottom in objects
    ]
    return f"<annotation><filename>other.jpg</filename>{sides}{''.join(rows)}</annotation>"


def yolo(objects: Sequence[Object], size: tuple[int, int] = SIZE) -> str:
    """Return a YOLO txt."""
    width, height = size
    return "".join(
        f"{NAMES.index(name)} {(left + right) / 2 / width} {(top + bottom) / 2 / height} "
        f"{(right - left) / width} {(bottom - top) / height}\n"
        for name, left, top, right, bottom in objects
    )


def coco(scenes: Sequence[tuple[str, Sequence[Object]]], size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Return COCO's JSON of (file name, objects), with ids 3 and 7, and Roboflow's id 0 above them."""
    categories = [
        {"id": 0, "name": "shapes", "supercategory": "none"},
        *({"id": number, "name": name, "supercategory": "shapes"} for number, name in ((3, "blue"), (7, "red"))),
    ]
    images = [
        {"id": 10 + number, "file_name": name, "width": size[0], "height": size[1]}
        for number, (name, _) in enumerate(scenes)
    ]
    annotations = [
        {
            **{"id": 100 * number + place, "image_id": 10 + number, "category_id": {"blue": 3, "red": 7}[name]},
            **{"bbox": [left, top, right - left, bottom - top], "iscrowd": 0, "area": (right - left) * (bottom - top)},
        }
        for number, (_, objects) in enumerate(scenes)
        for place, (name, left, top, right, bottom) in enumerate(objects)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_boxes(folder: Path, *, train: int = 12, valid: int = 6, size: tuple[int, int] = SIZE) -> Path:
    """Write train/ and valid/ with images/ and labels/ of VOC XML; the last image of each has no objects."""
    for split, count, first in (("train", train, 0), ("valid", valid, 100)):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels, objects = scene(first + number, size)
            if number == count - 1:
                pixels, objects = pixels // 8, []
            Image.fromarray(pixels).save(folder / split / f"images/{number:02d}.png")
            (folder / split / f"labels/{number:02d}.xml").write_text(voc(objects, size), encoding="utf-8")
    return folder


def write_coco(folder: Path) -> Path:
    """Write the splits of `write_boxes` as Roboflow's COCO folders: coco/train, coco/valid."""
    for split, first in (("train", 0), ("valid", 100)):
        goal = folder / "coco" / split
        goal.mkdir(parents=True)
        paths = sorted((folder / split / "images").iterdir())
        for path in paths:
            (goal / path.name).write_bytes(path.read_bytes())
        scenes = [(path.name, scene(first + number)[1]) for number, path in enumerate(paths)]
        scenes[-1] = (scenes[-1][0], [])
        (goal / "_annotations.coco.json").write_text(json.dumps(coco(scenes)), encoding="utf-8")
    return folder / "coco"


NET = '''
"""A net that gives boxes."""

import torch
from torch import Tensor, nn

from nets.detector_module import anchor_points


class TinyBoxes(nn.Module):
    """Images (N, C, H, W) to (N, H/8 * W/8, 4 + K)."""

    task = "detection"
    output = "boxes"
    strides = (8,)

    def __init__(
        self, num_classes: int, num_channels: int = 3, img_height: int = 64, img_width: int = 64, norm: bool = True
    ) -> None:
        super().__init__()
        widths, layers = [num_channels, 16, 32, 48], []
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after) if norm else nn.Identity(), nn.ReLU()]
        for _ in range(2):
            layers += [nn.Conv2d(48, 48, 3, 1, 1), nn.BatchNorm2d(48) if norm else nn.Identity(), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(48, 4 + num_classes, 1)
        nn.init.constant_(self.head.bias, -3.0)
        points = anchor_points(img_height, img_width, self.strides)
        self.register_buffer("points", points, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        raw = self.head(self.layers(images)).flatten(2).transpose(1, 2).float()
        distances = (raw[:, :, :4] + 3.5).clamp(max=4).exp() * 8
        middles = self.points[:, :2]
        return torch.cat([middles - distances[..., :2], middles + distances[..., 2:], raw[..., 4:]], dim=2)
'''


@contextmanager
def box_nets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let nets/ hold tiny_boxes_module, too."""
    (folder / "nets").mkdir()
    (folder / "nets/tiny_boxes_module.py").write_text(NET, encoding="utf-8")
    monkeypatch.setattr(nets, "__path__", [*nets.__path__, str(folder / "nets")])
    monkeypatch.setattr(net_interface, "NETS_DIR", folder / "nets")
    yield
    sys.modules.pop("nets.tiny_boxes_module", None)


def write_config(folder: Path, **changes: Any) -> Path:
    """Write a small config on `write_boxes`, of a net of `box_nets`, with any keys changed; return its path."""
    values = {
        "model_module_name": "tiny_boxes_module",
        "model_net_name": "TinyBoxes",
        "img_height": 64,
        "img_width": 72,
        "num_classes": 2,
        "train_data_root_dir": str(folder / "train"),
        "val_data_root_dir": str(folder / "valid"),
        "dataloader_workers": 0,
        "random_crop_scale": [1.0, 1.0],
        "random_crop_ratio": [1.0, 1.0],
        "num_epochs": 2,
        "batch_size": 4,
        "optimizer": "adamw",
        "learning_rate": 0.005,
        "gpu_id": "cpu",
        "precision": "fp32",
        "is_tensorboard": False,
        "save_path": str(folder / "weights"),
        "log_path": str(folder / "logs"),
    }
    file = folder / "config.json"
    file.write_text(json.dumps(values | changes), encoding="utf-8")
    return file
