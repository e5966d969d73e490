"""Images that their colours tell apart, for judging labels, and the doctor's list of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from nets.net_interface import build_net
from tests.helpers.doctor import Planted, soft_image

COLOURS = ((220, 60, 60), (60, 200, 60), (60, 60, 220))


def coloured(label: int, seed: int) -> Image.Image:
    return Image.blend(Image.new("RGB", (60, 48), COLOURS[label]), soft_image(seed), 0.3)


def planted(folder: Path, counts: tuple[int, int, int] = (12, 12, 12)) -> Planted:
    """Return lists of images that their colours tell apart."""
    data = Planted(folder, clean=0)
    data.lines = {"train": [], "val": []}
    for label, count in enumerate(counts):
        for number in range(count):
            split = "val" if number % 4 == 3 else "train"
            data.add(split, f"{label}_{number}.png", label, coloured(label, 100 * label + number))
    return data


def start_weights(data: Planted, **changes: Any) -> Path:
    """Write random weights, and a config that starts from them."""
    torch.manual_seed(0)
    arguments = {"model_args": {"model_type": "resnet18"}, "img_height": 32, "img_width": 32}
    net = build_net("GeM_ResNet_module", "GeM_ResNet_AVP", num_classes=3, **arguments)
    torch.save(net.state_dict(), data.folder / "start.pth")
    start = {"train_mode": "finetune", "pretrained_path": str(data.folder), "pretrained_file": "start.pth"}
    return data.config(**start, **changes)


def ranked(config: Path) -> list[dict[str, str]]:
    with (config.parent / "out" / "wrong_labels.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))
