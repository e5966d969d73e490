"""Small nets in every format that a backend reads, written here with the libraries alone, and one that was trained."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from common.paths import ROOT
from configs.schema import Config
from data_loader.preprocess import Preprocess
from deploy.backends.devices import has_int8_dot_product
from deploy.export.__main__ import main as export_main
from deploy.export.exporter import export_formats
from deploy.export.onnx_writer import onnx_model, write_model
from deploy.export.request import ExportRequest
from deploy.export.sample_images import find_calibration, net_input
from nets.net_interface import build_net
from tests.conftest import CLASSES

NAMES = ("猫", "dog", "bird/s")
NET = {"module": "GeM_ResNet_module", "name": "GeM_ResNet_AVP", "args": {"model_type": "resnet18"}}


class TinyNet(nn.Module):
    """A convolution, a mean and a linear layer: float32 (N, 3, 16, 16) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.conv(images).relu().mean((2, 3)))
        return logits


class FromBytes(nn.Module):
    """A net with its preprocessing in the graph: uint8 (N, H, W, C) -> logits."""

    def __init__(self, net: nn.Module, preprocess: Preprocess, *, bgr: bool) -> None:
        super().__init__()
        self.net, self.bgr = net, bgr
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, -1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, -1, 1, 1) * 255)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).float()  # (N, C, H, W)
        pixels = pixels.flip(1) if self.bgr else pixels
        logits: torch.Tensor = self.net((pixels - self.mean) / self.std)
        return logits


def write_two_in_one(path: Path, for_python: Mapping[str, bytes], for_torch: Mapping[str, bytes]) -> None:
    """Write a file in which `zipfile` finds some records and torch's reader others.

    A record of ZIP64 holds where a directory lies: `zipfile` takes the one just before its locator, torch's reader the
    one that the locator points to.
    """
    file, directories = io.BytesIO(), []
    for records in (for_python, for_torch):
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in records.items():
                archive.writestr(name, content)
            start = archive.start_dir
        file.seek(start)
        directories.append(file.read()[:-22])  # without the end
        file.seek(start)
        file.truncate()
    ends = []
    for directory, count in zip(reversed(directories), (len(for_torch), len(for_python)), strict=True):
        start = file.tell()
        file.write(directory)
        ends.append(file.tell())
        sizes = (count, count, len(directory), start)
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, *sizes))
    file.write(struct.pack("<4sIQI", b"PK\6\7", 0, ends[0], 1))
    file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0))
    path.write_bytes(file.getvalue())


def records_of(path: Path) -> dict[str, bytes]:
    """Read an archive."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def build_metadata(size_px: int = 16, **changes: Any) -> ModelMetadata:
    """Return the metadata of a net of three classes."""
    return ModelMetadata(NAMES, Preprocess(size_px, size_px), NET, **changes)


def example_of(metadata: ModelMetadata, count: int = 4) -> torch.Tensor:
    """Return a batch as the net takes it."""
    size = metadata.preprocess.height
    if metadata.input == "float32 NCHW":
        return torch.randn(count, 3, size, size)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


def write_jit(net: nn.Module, path: Path, metadata: ModelMetadata | None, example: torch.Tensor) -> Path:
    """Trace and save as TorchScript."""
    extra = {"facts.json": metadata.to_json().encode()} if metadata else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # deprecated
        torch.jit.save(torch.jit.trace(net, example), path, _extra_files=extra)
    return path


def write_pt2(net: nn.Module, path: Path, metadata: ModelMetadata | None, example: torch.Tensor) -> Path:
    """Export and save with torch.export."""
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(program, path, extra_files={"facts.json": metadata.to_json()} if metadata else {})
    return path


def export_onnx(
    net: nn.Module, images: torch.Tensor, path: Path, metadata: ModelMetadata, opset: int | None = None
) -> None:
    """Write a net as `deploy.export` writes model.onnx."""
    write_model(onnx_model(net, images, metadata, opset), path, metadata)


def write_onnx(net: nn.Module, path: Path, metadata: ModelMetadata | None, example: torch.Tensor) -> Path:
    """Export to ONNX."""
    program = torch.onnx.export(
        net,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    assert program is not None
    if metadata:
        program.model.metadata_props["facts"] = metadata.to_json()
    program.save(path)
    return path


def write_engine_metadata(path: Path, metadata: ModelMetadata) -> Path:
    """Write an engine's metadata; the engine itself is a few bytes that nothing runs."""
    path.write_bytes(b"engine")
    path.with_name(f"{path.name}.facts.json").write_text(json.dumps(metadata.to_dict()), encoding="utf-8")
    return path


def paint(path: Path, label: int, seed: int, brighter: int = 60) -> None:
    """Write noise that is brightest in red, green or blue (class 0, 1, 2)."""
    pixels = np.random.default_rng(seed).integers(0, 160, (24, 28, 3))
    pixels[..., label] += brighter
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_list(folder: Path, split: str, count: int, seed: int) -> str:
    lines = []
    for number in range(count):
        name = f"{split}/{number:02d}.png"
        paint(folder / "images" / name, number % 3, seed + number)
        lines.append(f"{name}----{number % 3}\n")
    (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return str(folder / f"{split}.txt")


def train_net(folder: Path, net: Mapping[str, Any] = NET, side: int = 32, counts: tuple[int, int] = (30, 40)) -> Path:
    """Train a net for a few steps on images of three colours; return its checkpoint, whose config names its data.

    Its batch norms know the images. `counts` are those of training and validation.
    """
    sizes = {"img_height": side, "img_width": side}
    values = {
        "model_module_name": net["module"],
        "model_net_name": net["name"],
        "model_args": net["args"],
        **sizes,
        "num_classes": 3,
        "train_data_root_dir": str(folder / "images"),
        "val_data_root_dir": str(folder / "images"),
        "train_data_file": write_list(folder, "train", counts[0], 0),
        "val_data_file": write_list(folder, "val", counts[1], 100),
    }
    config = Config.model_validate(values)
    torch.manual_seed(0)
    built = build_net(net["module"], net["name"], num_classes=3, model_args=net["args"], **sizes)
    metadata = ModelMetadata(CLASSES, Preprocess(side, side), dict(net))
    samples = find_calibration(config, metadata, counts[0])
    assert samples is not None and samples.labels is not None
    images = torch.from_numpy(net_input(samples.pixels, metadata.preprocess, metadata.input))
    labels = torch.from_numpy(samples.labels)
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-3)
    built.train()
    for _ in range(8):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(built(images), labels).backward()
        optimizer.step()
    for module in built.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # the statistics of the next batch, which is all of the data
    with torch.no_grad():
        built(images)
    path = folder / "net.pth"
    save_checkpoint(Checkpoint(config.model_dump(), metadata, built.state_dict()), path)
    return path


def export(weights: Path, formats: Sequence[str], output_dir: Path, **options: Any) -> int:
    """Export, and return the exit code; `options` are those of ExportRequest."""
    return export_formats(ExportRequest(weights=weights, formats=formats, output_dir=output_dir, **options))


def report_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "export_report.json").read_text(encoding="utf-8"))
    return values


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def metadata_and_config(trained: Path) -> tuple[ModelMetadata, Config]:
    checkpoint = load_checkpoint(trained)
    return checkpoint.metadata, Config.model_validate(checkpoint.config)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run with a mistake in it, and return the message."""
    assert export_main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("python -m deploy.export: ").rstrip()


LARGEST_WEIGHT = 127 if has_int8_dot_product() else 64  # of 8 bits, and of 7; onnxruntime spreads them so far
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
WRITERS = {"pt": write_jit, "pt2": write_pt2, "onnx": write_onnx}
