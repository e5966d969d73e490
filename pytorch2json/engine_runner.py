"""Running an engine: NAME.engine and the metadata beside it are read, checked, and run on a CUDA GPU."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch2json.network import DescriptionError, dtype_of
from pytorch2json.tensorrt_library import (
    DTYPES,
    Messages,
    collect_messages,
    library_name,
    load_library,
    logger,
    reason,
)

if TYPE_CHECKING:
    import torch

ALIGNMENT = 256  # bytes: of the addresses of an engine's tensors


class EngineRunner:
    """An engine on a CUDA GPU. With `cuda_graph` each batch size is captured once and then replayed.

    Raises DescriptionError where the file was changed, there is no GPU, or TensorRT cannot load it.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cuda", *, cuda_graph: bool = False) -> None:
        plan, metadata = read_engine(path)
        self.path = Path(path)
        self.info: dict[str, Any] = metadata["engine"]
        self._trt = trt = load_library()
        self.device = _cuda_device(self.path, device)
        self._cuda_graph = cuda_graph
        self._captured: dict[int, _Captured] = {}
        with _on(self.device), collect_messages(trt) as messages:
            self._runtime = trt.Runtime(logger(trt))
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                made = f"{self.info.get('library')} {self.info.get('version')}"
                raise DescriptionError(
                    f"{path}: built by {made}, and {library_name(trt)} cannot load it: {reason(messages)}"
                )
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise DescriptionError(f"{path}: {library_name(trt)} cannot run it: {reason(messages)}")
        self._input, self._output = self._io_names()
        self.shape = tuple(self._engine.get_tensor_shape(self._input))
        least, _, most = self._engine.get_tensor_profile_shape(self._input, 0)
        self.min_batch, self.max_batch = least[0], most[0]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the outputs, float32 (N, ...) on the GPU, for images of the input's shape and dtype.

        Raises DescriptionError where they do not fit, also for a batch size outside the engine's profile.
        """
        import torch

        self._check(images)
        with _on(self.device), torch.inference_mode(), collect_messages(self._trt) as messages:
            images = images.to(self.device).contiguous()
            if images.data_ptr() % ALIGNMENT:  # a slice of a larger tensor
                images = images.clone()
            outputs = self._replay(images, messages) if self._cuda_graph else self._run(self._context, images, messages)
            return outputs.float()

    def _check(self, images: torch.Tensor) -> None:
        batch = len(images) if images.ndim else 0
        expected = self._dtype(self._input)
        is_shape = tuple(images.shape[1:]) == self.shape[1:] and images.ndim == len(self.shape)
        if not is_shape or dtype_of(images) != expected:
            wanted = ", ".join(["N", *map(str, self.shape[1:])])
            got = f"{dtype_of(images)} {tuple(images.shape)}"
            raise DescriptionError(f"{self.path}: its input is {expected} ({wanted}), got {got}")
        if not self.min_batch <= batch <= self.max_batch:
            raise DescriptionError(
                f"{self.path}: built for batches of {self.min_batch} to {self.max_batch} images, got {batch}"
            )

    def _run(self, context: Any, images: torch.Tensor, messages: Messages) -> torch.Tensor:
        outputs = self._bind(context, images, messages)
        self._execute(context, messages)
        return outputs

    def _bind(self, context: Any, images: torch.Tensor, messages: Messages) -> torch.Tensor:
        """Set the addresses of a context's input and of its output, which is allocated here and returned."""
        import torch

        fits = context.set_input_shape(self._input, tuple(images.shape))
        if not fits or not context.set_tensor_address(self._input, images.data_ptr()):
            raise DescriptionError(f"{self.path}: it does not take {tuple(images.shape)}: {reason(messages)}")
        shape = tuple(context.get_tensor_shape(self._output))
        outputs = torch.empty(shape, dtype=getattr(torch, self._dtype(self._output)), device=self.device)
        context.set_tensor_address(self._output, outputs.data_ptr())
        return outputs

    def _execute(self, context: Any, messages: Messages) -> None:
        import torch

        if not context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise DescriptionError(f"{self.path}: it failed on {self.device}: {reason(messages)}")

    def _replay(self, images: torch.Tensor, messages: Messages) -> torch.Tensor:
        batch = len(images)
        if batch not in self._captured:
            self._captured[batch] = self._capture(images, messages)
        captured = self._captured[batch]
        captured.images.copy_(images)
        captured.graph.replay()
        return captured.outputs.clone()

    def _capture(self, images: torch.Tensor, messages: Messages) -> _Captured:
        """Capture one batch size on a context of its own: a context keeps the shapes of its last call."""
        import torch

        context, inputs = self._context_to_capture(), images.clone()
        outputs = self._bind(context, inputs, messages)
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._execute(context, messages)  # the first call allocates and compiles, which a capture must not see
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._execute(context, messages)
        return _Captured(graph, context, inputs, outputs)

    def _context_to_capture(self) -> Any:
        """Return a context that has its final kernels before its first call: a capture keeps those that it saw."""
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:  # tensorrt chose them when it built the engine
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return self._engine.create_execution_context(config)

    def _io_names(self) -> tuple[str, str]:
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        is_input = [self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT for name in names]
        return names[is_input.index(True)], names[is_input.index(False)]

    def _dtype(self, name: str) -> str:
        found = self._engine.get_tensor_dtype(name)
        return next(ours for ours, theirs in DTYPES.items() if getattr(self._trt.DataType, theirs) == found)


def read_engine(path: str | Path) -> tuple[bytes, dict[str, Any]]:
    """Read an engine's bytes and the metadata beside it, and check that they match. Raises DescriptionError."""
    path = Path(path)
    file = metadata_file(path)
    try:
        plan, text = path.read_bytes(), file.read_bytes()
    except OSError as error:
        raise DescriptionError(f"{error.filename}: cannot read it: {error.strerror}") from error
    try:
        metadata = json.loads(text)
        expected = str(metadata["engine"]["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DescriptionError(f"{file}: it does not hold the metadata of an engine") from error
    if (sha256 := hashlib.sha256(plan).hexdigest()) != expected:
        raise DescriptionError(
            f"{path}: not the engine of {file.name}: sha256 {sha256[:12]}..., not {expected[:12]}..."
        )
    return plan, metadata


def metadata_file(path: str | Path) -> Path:
    """Return the path of an engine's metadata, beside it."""
    return Path(path).with_name(f"{Path(path).name}.facts.json")


@dataclass(frozen=True)
class _Captured:
    """A CUDA graph with the memory that it reads and writes, which must live as long as it does."""

    graph: Any
    context: Any
    images: torch.Tensor
    outputs: torch.Tensor


def _cuda_device(path: Path, device: str | torch.device) -> torch.device:
    import torch

    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise DescriptionError(f'{path}: "{device}" is not a device; name cuda or cuda:N') from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if target.type != "cuda" or not count:
        found = f'"{device}" is none' if target.type != "cuda" else f"torch {torch.__version__} sees none"
        raise DescriptionError(
            f"{path}: an engine runs only on a CUDA GPU, and {found}; model.onnx and model.json run on the CPU"
        )
    index = torch.cuda.current_device() if target.index is None else target.index
    if index >= count:
        raise DescriptionError(f'{path}: device "{device}" is not there; torch sees cuda:0 to cuda:{count - 1}')
    return torch.device("cuda", index)


def _on(device: torch.device) -> Any:
    import torch

    return torch.cuda.device(device)
