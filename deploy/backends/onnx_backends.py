"""ONNX files on ONNX Runtime and OpenVINO."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.outputs import Shape
from deploy.backends.base import BackendError, failure, reason
from deploy.backends.declared_sizes import sizes_of
from deploy.backends.devices import choose_provider

MOST_PROGRAMS = 32  # that OpenVINO keeps of one file
OPENVINO_PRECISIONS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}


class OnnxRuntimeBackend:
    """An ONNX file on onnxruntime, on the CPU or through its CUDA provider."""

    name = "onnxruntime"

    def __init__(self, path: Path, device: str = "auto") -> None:
        import onnxruntime

        available, version = onnxruntime.get_available_providers(), onnxruntime.__version__
        provider, self.device = choose_provider(device, available, version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone; each is raised as well
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=[provider], enable_fallback=0)
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise BackendError(f"{path}: onnxruntime cannot load it: {reason(error)}") from error
        if self.device != "cpu" and self._session.get_providers()[0] != provider[0]:  # it falls back silently
            raise BackendError(f"onnxruntime cannot use {self.device}: CUDA libraries are missing; use --device cpu")
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        # An unknown rank is an empty shape to onnxruntime.
        self.declared = [sizes_of(value.shape) or None for value in (*inputs, *outputs[:1])]
        self._input = inputs[0].name if inputs else ""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs, float32 (N, ...), for a batch. Raises BackendError."""
        try:
            outputs = self._session.run(None, {self._input: images})[0]
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise failure(self, len(images), error) from error
        return np.asarray(outputs, np.float32)


class OpenVinoBackend:
    """An ONNX file on OpenVINO's CPU plugin.

    `precision` fp32 or bf16 is what floating point is computed in: by default OpenVINO takes bf16 for a float32 net
    wherever the CPU has it. What an int8 file has quantized (`is_int8`) runs in int8 either way, and only in programs
    for one batch size each, powers of two that batches are padded to: what OpenVINO 2026.4 compiles for any size gave
    wrong logits for a swin_t (docs/deployment.md).
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
        self._of_shape: dict[tuple[int, ...], Any] = {}
        self._last_shape: tuple[int, ...] = ()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs, float32 (N, ...), for a batch. Raises BackendError."""
        try:
            outputs = self._one_size(images) if self._any_size is None else self._compiled_for(images)(images)[0]
        except (RuntimeError, MemoryError) as error:
            raise failure(self, len(images), error) from error
        return np.asarray(outputs, np.float32)

    def _compiled_for(self, images: np.ndarray) -> Any:
        """Return the program for a batch: the first shape that comes twice in a row gets its own, which is faster."""
        if not self._of_shape and images.shape == self._last_shape:
            self._of_shape[images.shape] = self._program(images.shape)
        self._last_shape = images.shape
        return self._of_shape.get(images.shape, self._any_size)

    def _one_size(self, images: np.ndarray) -> Any:
        """Return the outputs from the program for the next power of two, compiled at its first use."""
        count = len(images)
        size = 1 << (count - 1).bit_length()
        filled = images if size == count else np.concatenate([images, np.repeat(images[:1], size - count, axis=0)])
        if len(self._of_shape) >= MOST_PROGRAMS:  # of images of many sizes
            self._of_shape.clear()
        if filled.shape not in self._of_shape:
            self._of_shape[filled.shape] = self._program(filled.shape)
        return self._of_shape[filled.shape](filled)[0][:count]

    def _program(self, shape: Sequence[int]) -> Any:
        model = self._model.clone()
        model.reshape(list(shape))
        return self._compile(model)


@functools.cache
def openvino_core() -> Any:
    """Return this process's only openvino.Core, which is never freed.

    OpenVINO 2026.4 installs a stack for signal handlers in the thread that first compiles with a core, and frees it
    with the core, though another core may have saved it as the one to restore: the next signal then ends the process.
    """
    import openvino

    return openvino.Core()


def _partial_sizes(value: Any) -> Shape | None:
    shape = value.get_partial_shape()
    return sizes_of(size.get_length() if size.is_static else -1 for size in shape) if shape.rank.is_static else None
