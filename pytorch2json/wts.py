"""tensorrtx's text weights: one line a tensor, `name count hex hex ...`, by the names of the state dict."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import torch

from pytorch2json.description_file import atomic_file


def write_wts(path: str | Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write a state dict: the number of tensors, then each as its big-endian float32 values in hex, in C order.

    Shapes are not in the format, and a 0-d tensor counts 1. Source: tensorrtx, getting_started/.
    Raises DescriptionError where the file cannot be written.
    """
    with atomic_file(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f"{len(state)}\n")
        for name, tensor in state.items():
            values = tensor.detach().cpu().float().flatten()  # (count,)
            packed = struct.pack(f">{len(values)}f", *values.tolist())
            file.write(f"{name} {len(values)} {packed.hex(' ', 4)}\n")
