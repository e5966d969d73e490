"""Backends: loaded nets on any runtime behind one call from a batch of images to outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from common.errors import UserError

if TYPE_CHECKING:  # the programs' --help needs none of them
    import numpy as np
    import torch

    from visualization.heatmap_overlay import Marks

RUNTIMES = ("auto", "onnxruntime", "openvino")  # what may run an ONNX file
DEFAULT_OVERLAP = 0.25  # of tiles, in shares of their side
PRECISIONS = ("auto", "fp32", "bf16")  # what a checkpoint, or an ONNX file on OpenVINO, may be computed in
PRECISION_HELP = (
    "what a checkpoint, or an ONNX file on OpenVINO, computes in (default auto: what the file is in); bf16 is faster "
    "where the hardware multiplies it, and its scores are a little off"
)
ACCEPT_CHANGED_HELP = "use an ONNX file that another tool changed after its export; every result says so"
CHANGED = "the weights file was changed after its export"

OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate|failed to allocate|bad_alloc", re.IGNORECASE
)


class BackendError(UserError):
    """A net that cannot be loaded or run; the message is one sentence for the user."""


class Backend(Protocol):
    """A net: float32 (N, C, H, W), or uint8 (N, H, W, C), by its metadata's `input` -> float32 (N, ...)."""

    name: str
    device: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the net's outputs for a batch, such as logits (N, K). Raises BackendError."""


def within_profile(
    net: Callable[[torch.Tensor], torch.Tensor], least: int, most: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that runs a net for `least` to `most` images on any number: in parts, a small one padded.

    The net may write each output into the same memory.
    """

    def run(images: torch.Tensor) -> torch.Tensor:
        import torch

        outputs = []
        for part in images.split(most):
            padding = part[-1:].expand(max(least - len(part), 0), *part.shape[1:])
            outputs.append(net(torch.cat([part, padding]))[: len(part)].clone())
        return torch.cat(outputs)

    return run


def failure(backend: Backend, count: int, error: BaseException) -> BackendError:
    """Return the error that states why a batch of `count` images failed."""
    if is_out_of_memory(error):
        batch = "a single image" if count == 1 else f"{count} images at once; lower the batch size"
        return BackendError(f"{backend.device} has too little memory for {batch}")
    return BackendError(f"the net failed on {backend.name} {backend.device}: {reason(error)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, of Python or of a runtime, is for too little memory."""
    is_kind = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    return is_kind or bool(OUT_OF_MEMORY.search(str(error)))


def reason(error: BaseException) -> str:
    """Return the line of an error's text that names the cause, without the runtime's own source places and codes."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = text.rpartition("\nRuntimeError: ")[2]  # TorchScript's own traceback stands before it
    text = text.rpartition("\nSummary:\n")[2]  # of what OpenVINO could not convert
    noise = re.compile(r"Exception from src|Check '.*' failed at|FrontEnd API failed")
    lines = [line.strip(" -") for line in text.splitlines() if line.strip() and not noise.match(line)]
    causes = [line for line in lines if line != "Loading input model" and not line.endswith(":")]  # without headings
    return next(iter(causes or lines), type(error).__name__)


@dataclass(frozen=True)
class HeatMap:
    """One image's map of one class, float32 (H, W) from 0 to 1 at the net's input size, and PIM's positions."""

    heat: np.ndarray
    marks: tuple[Marks, ...] = ()


HeatMapper = Callable[["np.ndarray", int], HeatMap]  # an image (C, H, W) as the net takes it, and a label
