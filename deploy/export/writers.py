"""The writers of an export: each writes one format of the net to a path."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from artifacts.metadata import ModelMetadata, library_versions
from artifacts.outputs import output_name
from deploy.export.errors import ExportError
from deploy.export.formats import EXPORT_FORMATS, FLOAT_ONNX
from deploy.export.model_wrapper import deployed_net, export_program
from deploy.export.onnx_writer import onnx_model, write_model
from deploy.export.quantization import integer_kernels, quantize
from deploy.export.reference import jitter_movement
from deploy.export.sample_images import NetInputs, SampleImages, net_input
from deploy.export.staging import KEPT
from pytorch2json import engine
from pytorch2json.converter import convert
from pytorch2json.description_file import write_description
from pytorch2json.quantization import quantized

if TYPE_CHECKING:
    from onnx_ir import Model

TRACED = 4  # images that a net is traced with, and that a description keeps as its parity sample


@dataclass(frozen=True)
class Source:
    """The net that is exported (float32, on the CPU), its metadata, and real images."""

    net: nn.Module
    metadata: ModelMetadata
    images: SampleImages
    calibration: SampleImages | None
    precision: str
    net_input: str  # one of metadata.INPUTS
    opset: int | None = None  # of ONNX; None: the default of the precision
    int8_symmetric: bool = False  # int8 as TensorRT takes it
    _onnx_models: dict[str, Model] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def float_precision(self) -> str:
        """The precision that an int8 file is made from, or the precision itself."""
        return "fp32" if self.precision == "int8" else self.precision

    def metadata_in(self, precision: str, *, has_any_size: bool = True) -> ModelMetadata:
        """Return the metadata of a file of this precision, and of free heights and widths where it may have them."""
        step = self.metadata.size_step if has_any_size else 0
        made = replace(self.metadata, input=self.net_input, precision=precision, versions=library_versions())
        return replace(made, size_step=step)

    def pixels(self, count: int) -> np.ndarray:
        """Return images, uint8 (count, H, W, C), evenly spread, so that their classes differ."""
        pixels = self.images.pixels
        return pixels[[index * len(pixels) // count for index in range(count)]]

    @cached_property
    def sample(self) -> np.ndarray:
        """TRACED images, uint8 (TRACED, H, W, C): of some more, those whose outputs a rounding moves least."""
        candidates = self.pixels(4 * TRACED)
        moved = jitter_movement(self._run, candidates, self.metadata, self.float_precision, draws=8)
        return candidates[np.sort(np.argsort(moved, kind="stable")[:TRACED])]

    def example(self) -> torch.Tensor:
        """Return the sample as the deployed net takes it."""
        return torch.from_numpy(net_input(self.sample, self.metadata.preprocess, self.net_input))

    def onnx_model(self, precision: str) -> Model:
        """Return the deployed net as an ONNX model, made once for the file itself and int8. Raises ExportError."""
        if precision not in self._onnx_models:
            net, metadata = self.deployed(precision), self.metadata_in(precision)
            self._onnx_models[precision] = onnx_model(net, self.example(), metadata, self.opset)
        return self._onnx_models[precision]

    def deployed(self, precision: str) -> nn.Module:
        """Return the net as it is deployed."""
        return deployed_net(self.net, self.metadata.preprocess, self.net_input, precision)

    def _run(self, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            outputs: np.ndarray = self.net(torch.from_numpy(images)).float().numpy()
        return outputs


def write_jit(source: Source, path: Path) -> None:
    """Write TorchScript by tracing: deprecated by torch, and still what some deployments load."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")  # known, and why there is model.pt2
        # It warns of Python conditions on the input; the comparison at other batch sizes shows whether one mattered.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        with torch.no_grad():
            traced = torch.jit.trace(source.deployed(source.precision), source.example(), check_trace=False)
        metadata = source.metadata_in(source.precision).to_json().encode()
        with path.open("wb") as file:  # torch's own writer reports a full disk as an unclear error
            torch.jit.save(traced, file, _extra_files={"facts.json": metadata})


def write_pt2(source: Source, path: Path) -> None:
    """Write a torch.export file. Raises ExportError."""
    metadata = source.metadata_in(source.precision)
    program = export_program(source.deployed(source.precision), source.example(), metadata)
    buffer = io.BytesIO()  # on a full disk torch's writer of archives aborts the whole process
    torch.export.save(program, buffer, extra_files={"facts.json": metadata.to_json()})
    path.write_bytes(buffer.getbuffer())


def write_onnx(source: Source, path: Path) -> None:
    """Write ONNX. Raises ExportError."""
    write_model(source.onnx_model(source.precision), path, source.metadata_in(source.precision))


def write_int8(source: Source, path: Path) -> None:
    """Write ONNX in int8, from a float32 file that stays beside it. Raises ExportError."""
    assert source.calibration is not None
    float_file = path.with_name(FLOAT_ONNX)
    write_model(source.onnx_model("fp32"), float_file, source.metadata_in("fp32"))
    images: Any = NetInputs(source.calibration.pixels, source.metadata.preprocess, source.net_input)  # it takes slices
    symmetric = source.int8_symmetric or source.precision == "int8"
    quantize(float_file, path, source.metadata_in("int8"), images, symmetric=symmetric)


def write_json(source: Source, path: Path) -> None:
    """Write the network description and its weights; in int8 with the scales of the ONNX file, made again for it.

    Raises DescriptionError, ExportError.
    """
    metadata = source.metadata_in(source.precision, has_any_size=False)
    network, weights = convert(
        source.deployed("fp32"),  # the converter rounds from the net's own float32 weights
        source.example(),
        precision=source.float_precision,
        profile=metadata.batch_profile,
        metadata=metadata.to_dict(),
        output_name=output_name(metadata),
    )
    if source.precision == "int8":
        quantized_onnx = path.with_name("scales.int8.onnx")
        write_int8(source, quantized_onnx)
        network, weights = quantized(network, weights, integer_kernels(quantized_onnx))
    write_description(path, network, weights)


def write_engine(source: Source, path: Path) -> None:
    """Write an engine from the description that this export has made. Raises ExportError, DescriptionError."""
    description = path.parent / KEPT / EXPORT_FORMATS["json"].files[0]
    if not description.exists():
        raise ExportError("it is built from model.json, which was refused")
    engine.write_engine(description, path)
