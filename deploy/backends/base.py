"""Runtimes: nets in memory, whatever runs them, behind one call from a batch of images to logits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from common.errors import UserError
from visualization.heatmap_overlay import Marks

if TYPE_CHECKING:
    import torch

    from artifacts.metadata import ModelMetadata

RUNTIMES = ("auto", "onnxruntime", "openvino")  # what may run an ONNX file
PRECISIONS = ("auto", "fp32", "bf16")  # what a checkpoint, or an ONNX file on OpenVINO, may be computed in
PRECISION_HELP = (
    "what a checkpoint, or an ONNX file on OpenVINO, computes in (default auto: what the file is in); bf16 is faster "
    "where the hardware multiplies it, and its scores are a little off"
)

Sizes = tuple[int | None, ...]  # of a declared tensor; None: free; empty: not declared
NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate|failed to allocate|bad_alloc", re.IGNORECASE)


class BackendError(UserError):
    """A backend that cannot be loaded or run; the message is one sentence for the user."""


class Backend(Protocol):
    """A net: float32 (N, C, H, W), or uint8 (N, H, W, C), as its metadata says -> logits float32 (N, K)."""

    name: str
    device: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Give the logits of a batch. Raises BackendError."""


def check_declared(path: Path, metadata: ModelMetadata, declared: Sequence[Sizes]) -> None:
    """Check the sizes that a file declares, of its input and its output, against its metadata. Raises BackendError."""
    shape = metadata.preprocess
    pixels = (shape.height, shape.width)
    image = (shape.channels, *pixels) if metadata.input == "float32 NCHW" else (*pixels, shape.channels)
    outputs = metadata.num_classes if metadata.output == "logits" else None
    expected = {f"takes images ({metadata.input})": (None, *image), f"gives {metadata.output}": (None, outputs)}
    if len(declared) != len(expected):
        raise BackendError(f"{path}: its net must take one input and give one output")
    for (what, wanted), sizes in zip(expected.items(), declared, strict=True):
        pairs = zip(sizes, wanted, strict=False)
        if sizes and (len(sizes) != len(wanted) or any(None not in pair and pair[0] != pair[1] for pair in pairs)):
            own, told = (", ".join("N" if size is None else str(size) for size in part) for part in (sizes, wanted))
            raise BackendError(f"{path}: its net {what} ({own}), its metadata says ({told}): they are not of one net")


def sizes_of(shape: Iterable[object]) -> Sizes:
    """Give the sizes of a declared shape: what is no number from 0 is free."""
    return tuple(size if isinstance(size, int) and size >= 0 else None for size in shape)


def within_profile(
    net: Callable[[torch.Tensor], torch.Tensor], least: int, most: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Let a net that takes `least` to `most` images at once take any number: by parts, a small one padded.

    The net may write each answer into the same memory.
    """

    def run(images: torch.Tensor) -> torch.Tensor:
        import torch

        logits = []
        for part in images.split(most):
            padding = part[-1:].expand(max(least - len(part), 0), *part.shape[1:])
            logits.append(net(torch.cat([part, padding]))[: len(part)].clone())
        return torch.cat(logits)

    return run


def failure(backend: Backend, count: int, error: BaseException) -> BackendError:
    """Say in a sentence why a batch of `count` images failed."""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or NO_MEMORY.search(str(error)):
        batch = "a single image" if count == 1 else f"{count} images at once; lower --batch_size"
        return BackendError(f"{backend.device} has too little memory for {batch}")
    return BackendError(f"the net failed on {backend.name} {backend.device}: {reason(error)}")


def reason(error: BaseException) -> str:
    """Give the line of an error's text that says what was wrong, without the runtime's own places and codes."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = text.rpartition("\nRuntimeError: ")[2]  # TorchScript's own traceback stands before it
    text = text.rpartition("\nSummary:\n")[2]  # of what OpenVINO could not convert
    noise = re.compile(r"Exception from src|Check '.*' failed at|FrontEnd API failed")
    lines = [line.strip(" -") for line in text.splitlines() if line.strip() and not noise.match(line)]
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True)
class HeatMap:
    """One image's map of one class, float32 (H, W) from 0 to 1 at the net's input size, and PIM's positions."""

    heat: np.ndarray
    marks: tuple[Marks, ...] = ()


HeatMapper = Callable[[np.ndarray, int], HeatMap]  # an image (C, H, W) as the net takes it, and a label
