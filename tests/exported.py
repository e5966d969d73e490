"""Small nets in every format that a backend reads, written here with the libraries alone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from artifacts.facts import Facts
from data_loader.preprocess import Preprocess

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


def facts_of(size_px: int = 16, **changes: Any) -> Facts:
    """Give the facts of a net of three classes."""
    return Facts(NAMES, Preprocess(size_px, size_px), NET, **changes)


def example_of(facts: Facts, count: int = 4) -> torch.Tensor:
    """Give a batch as the net takes it."""
    size = facts.preprocess.height
    if facts.input == "float32 NCHW":
        return torch.randn(count, 3, size, size)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


def write_jit(net: nn.Module, path: Path, facts: Facts | None, example: torch.Tensor) -> Path:
    """Trace and save as TorchScript."""
    extra = {"facts.json": facts.to_json().encode()} if facts else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # deprecated
        torch.jit.save(torch.jit.trace(net, example), path, _extra_files=extra)
    return path


def write_pt2(net: nn.Module, path: Path, facts: Facts | None, example: torch.Tensor) -> Path:
    """Export and save with torch.export."""
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(program, path, extra_files={"facts.json": facts.to_json()} if facts else {})
    return path


def write_onnx(net: nn.Module, path: Path, facts: Facts | None, example: torch.Tensor) -> Path:
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
    if facts:
        program.model.metadata_props["facts"] = facts.to_json()
    program.save(path)
    return path


def write_engine_facts(path: Path, facts: Facts) -> Path:
    """Write what stands beside an engine; the engine itself is a few bytes that nothing runs."""
    path.write_bytes(b"engine")
    path.with_name(f"{path.name}.facts.json").write_text(json.dumps(facts.to_dict()), encoding="utf-8")
    return path


WRITERS = {"pt": write_jit, "pt2": write_pt2, "onnx": write_onnx}
