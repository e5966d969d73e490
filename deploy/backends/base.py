"""Runtimes: nets in memory, whatever runs them, behind one call from a batch of pictures to logits."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deploy.inference.cli_args import RUNTIMES

if TYPE_CHECKING:
    import torch

    from artifacts.metadata import Facts

OPENVINO_PRECISIONS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}
Sizes = tuple[int | None, ...]  # of a declared tensor; None: free; empty: not declared
NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate|failed to allocate|bad_alloc", re.IGNORECASE)


class BackendError(ValueError):
    """A backend that cannot be loaded or run; the message is one sentence for the user."""


class Backend(Protocol):
    """A net that answers: float32 (N, C, H, W), or uint8 (N, H, W, C), as its facts say -> logits float32 (N, K)."""

    name: str
    device: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Give the logits of a batch. Raises BackendError."""


class TorchBackend:
    """What takes a torch tensor and gives one: an eager net, TorchScript, torch.export's, an interpreter, an engine."""

    def __init__(
        self,
        net: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
        name: str = "torch",
        *,
        channels_last: bool = False,
    ) -> None:
        self.name, self.device = name, str(device)
        self._net, self._device, self._channels_last = net, device, channels_last

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Give the logits, float32 (N, K), of a batch. Raises BackendError."""
        import torch

        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(images).to(self._device, memory_format=layout)
                return self._net(batch).float().cpu().numpy()
        except (RuntimeError, AssertionError, MemoryError, torch.jit.Error) as error:  # all that torch has for a device
            raise failure(self, len(images), error) from error


class OnnxRuntimeBackend:
    """An ONNX file on onnxruntime, on the CPU or through its CUDA provider."""

    name = "onnxruntime"

    def __init__(self, path: Path, device: str = "auto") -> None:
        import onnxruntime

        provider, self.device = _provider(device, onnxruntime.get_available_providers(), onnxruntime.__version__)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone; each is raised as well
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=[provider], enable_fallback=0)
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise BackendError(f"{path}: onnxruntime cannot load it: {reason(error)}") from error
        if self.device != "cpu" and self._session.get_providers()[0] != provider[0]:  # it falls back without a word
            raise BackendError(f"onnxruntime cannot use {self.device}: CUDA libraries are missing; use --device cpu")
        given, made = self._session.get_inputs(), self._session.get_outputs()
        self.declared = [sizes_of(value.shape) for value in (*given, *made[:1])]
        self._input = given[0].name if given else ""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Give the logits, float32 (N, K), of a batch. Raises BackendError."""
        try:
            logits = self._session.run(None, {self._input: images})[0]
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise failure(self, len(images), error) from error
        return np.asarray(logits, np.float32)


class OpenVinoBackend:
    """An ONNX file on OpenVINO's CPU plugin.

    `precision` fp32 or bf16 is what floating point is computed in: left to itself, OpenVINO takes bf16 for a float32
    net wherever the CPU has it. What an int8 file has quantized (`is_int8`) runs in int8 either way, and only in
    programs for one batch size each, powers of two that batches are filled up to: what OpenVINO 2026.4 compiles for any
    size answered wrongly for a swin_t (docs/deployment.md).
    """

    name, device = "openvino", "cpu"

    def __init__(self, path: Path, precision: str = "fp32", *, is_int8: bool = False) -> None:
        # LATENCY: all cores on the batch at hand. THROUGHPUT cuts them into streams, of which one call fills one.
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[precision]}
        try:
            core = openvino_core()
            self._model = core.read_model(path)
            self.declared = [_partial_sizes(value) for value in (*self._model.inputs, *self._model.outputs[:1])]
            self._compile: Callable[[Any], Any] = lambda model: core.compile_model(model, "CPU", hints)
            self._any_size = None if is_int8 else self._compile(self._model)
        except RuntimeError as error:
            raise BackendError(f"{path}: openvino cannot load it: {reason(error)}") from error
        self._of_size: dict[int, Any] = {}
        self._last_size = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Give the logits, float32 (N, K), of a batch. Raises BackendError."""
        try:
            logits = self._one_size(images) if self._any_size is None else self._compiled_for(images)(images)[0]
        except (RuntimeError, MemoryError) as error:
            raise failure(self, len(images), error) from error
        return np.asarray(logits, np.float32)

    def _compiled_for(self, images: np.ndarray) -> Any:
        """Compile the first batch size that comes twice running for itself: it runs faster than what takes any size."""
        size = len(images)
        if not self._of_size and size == self._last_size:
            self._of_size[size] = self._program(images.shape)
        self._last_size = size
        return self._of_size.get(size, self._any_size)

    def _one_size(self, images: np.ndarray) -> Any:
        """Answer from the program of the next power of two, compiled when it is first wanted."""
        count = len(images)
        size = 1 << (count - 1).bit_length()
        filled = images if size == count else np.concatenate([images, np.repeat(images[:1], size - count, axis=0)])
        if size not in self._of_size:
            self._of_size[size] = self._program(filled.shape)
        return self._of_size[size](filled)[0][:count]

    def _program(self, shape: Sequence[int]) -> Any:
        model = self._model.clone()
        model.reshape(list(shape))
        return self._compile(model)


def check_declared(path: Path, facts: Facts, declared: Sequence[Sizes]) -> None:
    """Hold the sizes that a file declares for its input and then its output against its facts. Raises BackendError."""
    shape = facts.preprocess
    pixels = (shape.height, shape.width)
    image = (shape.channels, *pixels) if facts.input == "float32 NCHW" else (*pixels, shape.channels)
    outputs = facts.num_classes if facts.output == "logits" else None
    expected = {f"takes pictures ({facts.input})": (None, *image), f"gives {facts.output}": (None, outputs)}
    if len(declared) != len(expected):
        raise BackendError(f"{path}: its net must take one input and give one output")
    for (what, wanted), sizes in zip(expected.items(), declared, strict=True):
        pairs = zip(sizes, wanted, strict=False)
        if sizes and (len(sizes) != len(wanted) or any(None not in pair and pair[0] != pair[1] for pair in pairs)):
            own, told = (", ".join("N" if size is None else str(size) for size in part) for part in (sizes, wanted))
            raise BackendError(f"{path}: its net {what} ({own}), its facts say ({told}): they are not of one net")


def sizes_of(shape: Iterable[object]) -> Sizes:
    """Give the sizes of a declared shape: what is no number from 0 is free."""
    return tuple(size if isinstance(size, int) and size >= 0 else None for size in shape)


def choose_runtime(name: str, device: str) -> str:
    """Give what runs an ONNX file where `name` is auto; any other name stands.

    The rule: onnxruntime where a GPU is asked for, or where its CUDA provider is installed and the device is auto;
    else OpenVINO where it is installed; else onnxruntime.
    """
    if name not in RUNTIMES:
        raise BackendError(f'runtime must be {", ".join(RUNTIMES)}, got "{name}"')
    if name != "auto":
        if find_spec(name) is None:
            raise BackendError(f"{name} is not installed: pip install {name}")
        return name
    if device != "cpu" and (device != "auto" or _has_cuda_provider()):
        return "onnxruntime"
    return "openvino" if find_spec("openvino") else "onnxruntime"


def choose_device(name: str) -> torch.device:
    """Give the torch device that auto, cpu, cuda or cuda:N names. Raises BackendError where it is not there."""
    import torch

    kind, index = parse_device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        return torch.device("cuda" if count else "cpu")
    if kind == "cpu":
        return torch.device("cpu")
    if count == 0:
        raise BackendError(f'device "{name}" asks for a CUDA GPU, and torch {torch.__version__} sees none; use cpu')
    if index is not None and index >= count:
        raise BackendError(f'device "{name}" is not there; torch sees cuda:0 to cuda:{count - 1}')
    return torch.device(name)


def parse_device(name: str) -> tuple[str, int | None]:
    """Give auto, cpu or cuda, and N of cuda:N. Raises BackendError for any other name."""
    kind, _, index = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise BackendError(f'device must be auto, cpu, cuda or cuda:N, got "{name}"')
    return kind, int(index) if index else None


def within_profile(
    net: Callable[[torch.Tensor], torch.Tensor], least: int, most: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Let a net that takes `least` to `most` pictures at once take any number: by parts, a small one padded.

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
    """Say in a sentence why a batch of `count` pictures failed."""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or NO_MEMORY.search(str(error)):
        batch = "a single picture" if count == 1 else f"{count} pictures at once; lower --batch_size"
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


@functools.cache
def openvino_core() -> Any:
    """Give the one openvino.Core of this process, which lives as long as it.

    OpenVINO 2026.4 gives the thread that first compiles with a core a stack for its signal handlers, and frees it with
    the core, though another core may have taken it for the one to go back to: the next signal then ends the process.
    """
    import openvino

    return openvino.Core()


def _partial_sizes(value: Any) -> Sizes:
    shape = value.get_partial_shape()
    return sizes_of(size.get_length() if size.is_static else -1 for size in shape) if shape.rank.is_static else ()


def _provider(device: str, available: list[str], version: str) -> tuple[tuple[str, dict[str, str]], str]:
    """Give onnxruntime's provider with its options, and the device's name. Raises BackendError."""
    kind, index = parse_device(device)
    if kind == "cpu" or (kind == "auto" and not _has_cuda_provider()):
        return ("CPUExecutionProvider", {}), "cpu"
    if "CUDAExecutionProvider" not in available:
        mend = "pip install onnxruntime-gpu, or use --device cpu"
        raise BackendError(f'device "{device}" asks for CUDA, and this onnxruntime {version} has none; {mend}')
    return ("CUDAExecutionProvider", {"device_id": str(index or 0)}), "cuda" if index is None else f"cuda:{index}"


def _has_cuda_provider() -> bool:
    """Say whether onnxruntime can use CUDA, and there is a GPU for it."""
    if find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    import torch  # only here: a CPU answers from an ONNX file without it

    return torch.cuda.is_available()
