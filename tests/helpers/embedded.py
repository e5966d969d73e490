"""Nets that embed, and the features that they return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from artifacts.checkpoint import Checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from data_loader.decoding import decode
from data_loader.preprocess import Preprocess, as_array
from nets.net_interface import build_net
from tests.conftest import write_image

SIZE_PX = 32
NAMES = ("circle", "方块", "stripes")
SIMSIAM = {"module": "simsiam_module", "name": "SimSiam", "args": {"model_type": "resnet18", "projector_size": 8}}


def made(folder: Path, net_metadata: dict[str, Any], output: str = "logits", size_px: int = SIZE_PX) -> nn.Module:
    """Write a fresh net as FOLDER/net.pth, and return it."""
    torch.manual_seed(0)
    net = build_net(
        net_metadata["module"],
        net_metadata["name"],
        num_classes=3,
        img_height=size_px,
        img_width=size_px,
        model_args=net_metadata["args"],
    ).eval()
    metadata = ModelMetadata(NAMES, Preprocess(size_px, size_px), net_metadata, output=output)
    save_checkpoint(Checkpoint({}, metadata, net.state_dict()), folder / "net.pth")
    return net


def write_images(folder: Path, count: int = 7) -> list[Path]:
    paths = [folder / ("花" if number % 2 else "b") / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        write_image(path, number % 3, seed=number, size=20 + number)
    return sorted(paths, key=lambda path: (path.parent.name != "b", path.name))


def input_of(paths: list[Path], size_px: int = SIZE_PX) -> torch.Tensor:
    preprocess = Preprocess(size_px, size_px)
    return torch.from_numpy(np.stack([preprocess(as_array(decode(path))) for path in paths]))
