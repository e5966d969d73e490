"""Proving the files of an export: each is loaded as it will be later, held against the net, and refused or let pass."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artifacts.metadata import ModelMetadata
from common.formatting import first_line
from deploy.backends.devices import choose_runtime
from deploy.backends.loading import load_backend
from deploy.export import layer_diff
from deploy.export.model_wrapper import exact_float32
from deploy.export.parity import TOLERANCES, Measured, Reference, measure
from deploy.export.sample_images import net_input
from deploy.export.writers import FLOAT_ONNX, Source

LOOKED_AT = 8  # images that the layers of a refused file are looked at with


@dataclass
class Proof:
    """How a file did on each runtime; the first is the one that answers when nothing else is said, and it decides."""

    runs: list[tuple[str, Measured]] = field(default_factory=list)
    departs: str = ""

    @property
    def problem(self) -> str:
        """Why the file is refused; empty: it is not."""
        return self.runs[0][1].problem


def prove(file_format: str, path: Path, source: Source, reference: Reference, device: str) -> Proof:
    """Hold a file against the net on each runtime that is here; where it is refused, look for the layer."""
    metadata = source.metadata_in("int8" if file_format == "int8" else source.precision)
    proof = Proof()
    for runtime in _runtimes(file_format, device):
        proof.runs.append(_run(path, metadata, reference, device, runtime))
    if proof.problem:
        proof.departs = _departing(file_format, path, source)
    return proof


def _run(path: Path, metadata: ModelMetadata, reference: Reference, device: str, runtime: str) -> tuple[str, Measured]:
    name = runtime
    try:
        backend, own_metadata = load_backend(path, device=device, runtime=runtime or "auto")
        name = backend.name
        if own_metadata != metadata:
            return name, Measured(problem="the metadata in it are not those that were written")
        with exact_float32():
            return name, measure(backend, reference, metadata)
    except ValueError as error:  # the backend's own words
        return name, Measured(problem=_without_place(str(error), path))


def _runtimes(file_format: str, device: str) -> list[str]:
    """Name what runs a format here, the default first; "" where there is one way only."""
    if file_format not in ("onnx", "int8"):
        return [""]
    first = choose_runtime("auto", device)
    others = [name for name in ("onnxruntime", "openvino") if name != first and find_spec(name)]
    return [first, *(name for name in others if name != "openvino" or not device.startswith("cuda"))]


def _departing(file_format: str, path: Path, source: Source) -> str:
    """Name the first layer of a refused file that departs from the net; "" where it shows no layers."""
    if file_format == "engine":
        return ""
    pixels, preprocess = source.pixels(LOOKED_AT), source.metadata.preprocess
    images = net_input(pixels, preprocess, source.net_input)
    try:
        calls = layer_diff.record_calls(
            source.net, torch.from_numpy(net_input(pixels, preprocess, source.metadata.input))
        )
        if file_format == "int8":
            return layer_diff.first_noisy(calls, layer_diff.int8_values(path, path.with_name(FLOAT_ONNX), images))
        values = _layer_values(file_format, path, images, calls)
        return layer_diff.first_departing(calls, values, TOLERANCES[source.precision])
    except Exception as error:  # a damaged file may fail in any way; it is refused either way
        return f"not found: {_without_place(first_line(error), path)}"


def _without_place(text: str, path: Path) -> str:
    """Take from an error's text the temporary folder that the file lies in."""
    return text.removeprefix(f"{path}: ").replace(f"{path.parent}{os.sep}", "")


def _layer_values(
    file_format: str, path: Path, images: np.ndarray, calls: Sequence[layer_diff.Call]
) -> dict[layer_diff.Key, np.ndarray]:
    readers: dict[str, Any] = {
        "jit": lambda: layer_diff.jit_values(path, calls),
        "pt2": lambda: layer_diff.pt2_values(path, images),
        "onnx": lambda: layer_diff.onnx_values(path, images),
        "json": lambda: layer_diff.json_values(path, images, [call.key[0] for call in calls]),
    }
    values: dict[layer_diff.Key, np.ndarray] = readers[file_format]()
    return values
