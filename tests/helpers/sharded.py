"""A small classifier with a folder of images, and inference.py on parts of it."""

from __future__ import annotations

from pathlib import Path

import torch

import inference
from deploy.batch import merge
from tests.helpers.exported import TinyNet, build_metadata, export_onnx, paint

BROKEN = "b/broken.png"  # of `folder_of_images`, by its name the last but two


def folder_of_images(folder: Path, count: int = 12) -> Path:
    """Write `count` images, those of a folder within among them, one of them broken; return their folder."""
    for number in range(count - 4):
        paint(folder / f"images/img{number}.png", number % 3, number)
    for number, name in enumerate(("a/猫.png", 'b/say "hi", you.png', "b/=1+1.png")):
        paint(folder / "images" / name, number, 100 + number)
    (folder / "images" / BROKEN).write_bytes(b"no image")
    return folder / "images"


def write_net(path: Path, seed: int = 0) -> Path:
    """Write a classifier of three classes as ONNX."""
    torch.manual_seed(seed)
    export_onnx(TinyNet().eval(), torch.randn(2, 3, 16, 16), path, build_metadata(16))
    return path


def infer(weights: Path, images: Path, output: Path, *more: object) -> int:
    """Run inference.py on a folder; return its exit code."""
    flags = ("--weights", weights, "--image_dir", images, "--output", output, "--quiet", "--batch_size", 3)
    machine = ("--runtime", "onnxruntime", "--workers", 1, "--device", "cpu")
    return inference.main([str(flag) for flag in (*flags, *machine, *more)])


def infer_shards(weights: Path, images: Path, output: Path, count: int, *more: object) -> None:
    """Run inference.py for each part; it succeeds but for broken images."""
    for number in range(1, count + 1):
        assert infer(weights, images, output, "--shard", f"{number}/{count}", *more) in (0, 1)


def merged(output: Path) -> int:
    """Run the merge; return its exit code."""
    return merge.main(["--output", str(output)])
