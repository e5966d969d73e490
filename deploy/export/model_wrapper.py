"""The net as it is deployed: in the requested precision, and with its preprocessing in the graph if requested."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from artifacts.metadata import ModelMetadata
from common.formatting import first_line
from data_loader.preprocess import Preprocess
from deploy.export.errors import ExportError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def deployed_net(net: nn.Module, preprocess: Preprocess, net_input: str, precision: str) -> nn.Module:
    """Return a copy of a net in eval mode from `net_input` (of metadata.INPUTS) to float32 outputs (N, ...).

    Parts that the net names in `training_only` are left out of it. Every module and weight keeps its name: the copy is
    of a class derived from the net's own.
    """
    made = copy.deepcopy(net).eval().to(DTYPES[precision]).to(memory_format=torch.contiguous_format)
    for part in getattr(net, "training_only", ()):
        delattr(made, part)
    if net_input == "float32 NCHW" and precision == "fp32":
        return made
    adapters: tuple[type, ...] = (_HalfPrecision,) if net_input == "float32 NCHW" else (_Uint8Input, _HalfPrecision)
    if net_input != "float32 NCHW":
        scale, shift = (torch.from_numpy(values).view(1, -1, 1, 1) for values in preprocess.scale_and_shift())
        made.register_buffer("input_scale", scale)
        made.register_buffer("input_shift", shift)
    made.is_bgr = net_input.endswith("BGR")  # type: ignore[assignment]  # a plain value, not a module
    made.num_images = preprocess.images  # type: ignore[assignment]
    name = type(net).__name__
    made.__class__ = type(name, (*adapters, type(net)), {"__module__": type(net).__module__})
    return made


def free_sizes(metadata: ModelMetadata) -> dict[int, str]:
    """Return the names of the input's axes whose size is free."""
    first = 2 if metadata.input == "float32 NCHW" else 1
    return {0: "batch"} | ({first: "height", first + 1: "width"} if metadata.size_step else {})


def export_program(net: nn.Module, images: torch.Tensor, metadata: ModelMetadata) -> torch.export.ExportedProgram:
    """Return torch.export's program of a net for the `free_sizes`, from two or more images. Raises ExportError."""
    steps = {axis: metadata.size_step if axis else 1 for axis in free_sizes(metadata)}
    sizes = {axis: torch.export.Dim(name, min=1) for axis, name in free_sizes(metadata).items()}
    shapes = {axis: size if steps[axis] == 1 else steps[axis] * size for axis, size in sizes.items()}
    try:
        # What they log in pages is raised as well.
        with torch.no_grad(), quiet("torch.export", "torch._export", "torch._guards", level=logging.CRITICAL):
            return torch.export.export(net, (images,), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # torch.export's errors have no common kind
        free = " and ".join(free_sizes(metadata).values())
        raise ExportError(f"torch.export cannot take the net with a free {free} size: {first_line(error)}") from error


@contextmanager
def quiet(*loggers: str, level: int = logging.ERROR) -> Iterator[None]:
    """Silence Python's warnings (of deprecations inside torch and torchvision) and loggers below a level."""
    before = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(level)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, old in before.items():
            logging.getLogger(name).setLevel(old)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 as float32: by default torch rounds to TF32 (10 bits) in cuDNN on GPUs, on the CPU never."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class _HalfPrecision(nn.Module):
    """Casts before and after a net whose weights may be half precision: float32 in, float32 out."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dtype = next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())
        outputs: torch.Tensor = super().forward(images.to(dtype))  # the net's own, by class order
        return outputs.float()


class _Uint8Input(nn.Module):
    """Preprocess's scale and shift, in float32, before a net that takes the image itself."""

    input_scale: torch.Tensor
    input_shift: torch.Tensor
    is_bgr: bool
    num_images: int  # of a pair 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Cast first: TensorRT takes uint8 at its inputs alone. Then the steps of Preprocess.normalize, in its order.
        pixels = images.float().permute(0, 3, 1, 2)  # (N, C, H, W)
        if self.is_bgr:
            parts = pixels.chunk(self.num_images, 1)
            pixels = torch.cat([part.flip(1) for part in parts], dim=1) if len(parts) > 1 else pixels.flip(1)
        normalised = pixels * self.input_scale.float() + self.input_shift.float()
        outputs: torch.Tensor = super().forward(normalised)  # the net's own, by class order
        return outputs
