"""The engine: a network description becomes a TensorRT engine, and an engine answers on a CUDA GPU.

`python -m pytorch2json.engine --description D/model.json --output D/model.engine` builds with the package `tensorrt`
where it is installed, else with `tensorrt_rtx`, which builds on a machine without a GPU. Beside the engine stands
`model.engine.facts.json`: the description's facts, and under "engine" what built it and its sha256.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch2json import network as described
from pytorch2json.network import DescriptionError, Layer, Network, Tensor, find_problems, read_description, whole

if TYPE_CHECKING:
    import torch

LIBRARIES = ("tensorrt", "tensorrt_rtx")  # the first that is installed builds and runs
DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
    "bool": "BOOL",
}
MAX_RANK = 8  # trt.Dims.MAX_DIMS
ALIGNMENT = 256  # bytes: what an engine asks of its tensors' addresses
# What TensorRT's Python raises where it refuses something; the last is for what an older version lacks.
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, OverflowError, AttributeError)
RTX_DEFAULT = "compute capability 8.0, 8.6, 8.9, 12.0 and later"  # NVIDIA, "CPU-Only AOT and TensorRT-RTX Engines"
PROGRAM = "python -m pytorch2json.engine"


def main(argv: Sequence[str] | None = None) -> int:
    """Build an engine, and give the exit code: 0 built, 2 a mistake of the user or a refusal of the builder."""
    args = _parser().parse_args(argv)
    try:
        if not args.device_info and not (args.description and args.output):
            raise DescriptionError("name the description with --description and the engine with --output")
        if args.check and not (args.description and args.output):
            raise DescriptionError("--check needs --description and --output")
        if args.device_info:
            print(device_info())
        if args.description and args.output:
            capabilities = tuple(filter(None, args.compute_capabilities.split(",")))
            info = write_engine(args.description, args.output, args.tf32, capabilities, log=_print_warning)
            print(f"{args.output}: {info['bytes']} bytes, built by {info['library']} {info['version']}")
        if args.check:
            error = hold_to_parity(args.output, args.description)
            print(f"{args.output}: the parity sample's relative error is {error:.2e}")
    except DescriptionError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


def write_engine(
    description: str | Path,
    output: str | Path,
    tf32: bool = False,
    compute_capabilities: Sequence[str] = (),
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Build NAME.engine and NAME.engine.facts.json, each whole or not at all; give what the facts say of the engine.

    What is interrupted between the two is told by the sha256 when the engine is loaded. Raises DescriptionError.
    """
    path, target = Path(description), Path(output)
    if target.suffix != ".engine":
        raise DescriptionError(f'{target}: the name of an engine must end in ".engine"')
    network, weights = read_description(path)
    description_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        plan = build_engine(network, weights, tf32=tf32, compute_capabilities=compute_capabilities, log=log)
    except DescriptionError as error:
        raise DescriptionError(f"{path}: {error}") from error
    library = load_library()
    info = {
        "library": library.__name__,
        "version": library.__version__,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "bytes": len(plan),
        "description_sha256": description_sha256,
        "tf32": tf32,
        "compute_capabilities": list(compute_capabilities),
    }
    with whole(target) as temporary:
        temporary.write_bytes(plan)
    with whole(facts_file(target)) as temporary:
        facts = {**network.facts, "engine": info}
        temporary.write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return info


def build_engine(
    network: Network,
    weights: Mapping[str, torch.Tensor],
    *,
    tf32: bool = False,
    compute_capabilities: Sequence[str] = (),
    log: Callable[[str], None] | None = None,
) -> bytes:
    """Build the engine of a description; fp32 is computed in fp32 unless `tf32` allows 10 bits of mantissa.

    `compute_capabilities` ("8.9") names the GPUs to build for, and is TensorRT for RTX's alone. `log` gets TensorRT's
    warnings. Raises DescriptionError with TensorRT's own words where it refuses the network.
    """
    if problem := next(find_problems(network, weights), ""):
        raise DescriptionError(problem)
    trt = load_library()
    with _listen(trt) as heard:
        builder = _builder(trt, heard)
        definition = _Definition(trt, builder.create_network(_typing(trt)), weights)
        _define(definition, network, heard)
        with _refusals("the builder's settings", trt, heard):
            config = _config(trt, builder, network, tf32, compute_capabilities)
        with _refusals("the network", trt, heard):
            plan = builder.build_serialized_network(definition.target, config)
        if plan is None:
            raise DescriptionError(f"{_culprit(network, heard)}: {_name(trt)} refuses it: {_words(heard)}")
        for is_error, text in heard:
            if log is not None and not is_error:
                log(text)
        return bytes(plan)


def hold_to_parity(engine: str | Path, description: str | Path, device: str = "cuda") -> float:
    """Run the description's parity sample through the engine on a GPU, and give the relative error.

    Raises DescriptionError where it is over the sample's tolerance or the engine is of another description.
    """
    import torch

    from pytorch2json.interpreter import relative_error

    network, weights = read_description(description)
    runner = EngineRunner(engine, device)
    if runner.info.get("description_sha256") != hashlib.sha256(Path(description).read_bytes()).hexdigest():
        raise DescriptionError(f"{engine}: it was not built from {description}; build it again")
    images = weights[network.parity.input]
    got = [runner(part).cpu() for part in images.split(runner.max_batch)]
    error = relative_error(torch.cat(got), weights[network.parity.output])
    if not error <= network.parity.tolerance:  # a NaN is refused too
        tolerance = network.parity.tolerance
        raise DescriptionError(f"{engine}: relative error {error:.2e} on the parity sample, allowed is {tolerance:.0e}")
    return error


class EngineRunner:
    """An engine that answers on a CUDA GPU. With `cuda_graph` each batch size is captured once and then replayed.

    Raises DescriptionError where the file was changed, no GPU is there, or TensorRT cannot load it.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cuda", *, cuda_graph: bool = False) -> None:
        plan, facts = read_engine(path)
        self.path = Path(path)
        self.info: dict[str, Any] = facts["engine"]
        self._trt = trt = load_library()
        self.device = _cuda_device(self.path, device)
        self._cuda_graph = cuda_graph
        self._captured: dict[int, _Captured] = {}
        with _on(self.device), _listen(trt) as heard:
            self._runtime = trt.Runtime(_logger(trt))
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                made = f"{self.info.get('library')} {self.info.get('version')}"
                raise DescriptionError(f"{path}: built by {made}, and {_name(trt)} cannot load it: {_words(heard)}")
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise DescriptionError(f"{path}: {_name(trt)} cannot run it: {_words(heard)}")
        self._input, self._output = self._io_names()
        self.shape = tuple(self._engine.get_tensor_shape(self._input))
        least, _, most = self._engine.get_tensor_profile_shape(self._input, 0)
        self.min_batch, self.max_batch = least[0], most[0]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Give the logits, float32 (N, K) on the GPU, of images with the input's shape and dtype.

        Raises DescriptionError where they do not fit, also for a batch size outside the engine's profile.
        """
        import torch

        self._check(images)
        with _on(self.device), torch.inference_mode(), _listen(self._trt) as heard:
            images = images.to(self.device).contiguous()
            if images.data_ptr() % ALIGNMENT:  # a slice of a larger tensor
                images = images.clone()
            logits = self._replay(images, heard) if self._cuda_graph else self._run(self._context, images, heard)
            return logits.float()

    def _check(self, images: torch.Tensor) -> None:
        batch = len(images) if images.ndim else 0
        dtype = str(images.dtype).removeprefix("torch.")
        expected = self._dtype(self._input)
        if tuple(images.shape[1:]) != self.shape[1:] or images.ndim != len(self.shape) or dtype != expected:
            wanted = ", ".join(["N", *map(str, self.shape[1:])])
            raise DescriptionError(
                f"{self.path}: its input is {expected} ({wanted}), got {dtype} {tuple(images.shape)}"
            )
        if not self.min_batch <= batch <= self.max_batch:
            raise DescriptionError(
                f"{self.path}: built for batches of {self.min_batch} to {self.max_batch} pictures, got {batch}"
            )

    def _run(self, context: Any, images: torch.Tensor, heard: _Heard) -> torch.Tensor:
        logits = self._bind(context, images, heard)
        self._execute(context, heard)
        return logits

    def _bind(self, context: Any, images: torch.Tensor, heard: _Heard) -> torch.Tensor:
        """Tell the context where its input is and where its output, which is made here, goes."""
        import torch

        fits = context.set_input_shape(self._input, tuple(images.shape))
        if not fits or not context.set_tensor_address(self._input, images.data_ptr()):
            raise DescriptionError(f"{self.path}: it does not take {tuple(images.shape)}: {_words(heard)}")
        shape = tuple(context.get_tensor_shape(self._output))
        logits = torch.empty(shape, dtype=getattr(torch, self._dtype(self._output)), device=self.device)
        context.set_tensor_address(self._output, logits.data_ptr())
        return logits

    def _execute(self, context: Any, heard: _Heard) -> None:
        import torch

        if not context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise DescriptionError(f"{self.path}: it failed on {self.device}: {_words(heard)}")

    def _replay(self, images: torch.Tensor, heard: _Heard) -> torch.Tensor:
        batch = len(images)
        if batch not in self._captured:
            self._captured[batch] = self._capture(images, heard)
        captured = self._captured[batch]
        captured.images.copy_(images)
        captured.graph.replay()
        return captured.logits.clone()

    def _capture(self, images: torch.Tensor, heard: _Heard) -> _Captured:
        """Record one batch size on a context of its own: a context holds the shapes of its last call."""
        import torch

        context, place = self._context_to_capture(), images.clone()
        logits = self._bind(context, place, heard)
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._execute(context, heard)  # the first call allocates and compiles, which a capture must not see
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._execute(context, heard)
        return _Captured(graph, context, place, logits)

    def _context_to_capture(self) -> Any:
        """Give a context that has its kernels before its first call: what is captured stays."""
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
    """Read an engine's bytes and the facts beside it, and check that they belong together. Raises DescriptionError."""
    path = Path(path)
    file = facts_file(path)
    try:
        plan, text = path.read_bytes(), file.read_bytes()
    except OSError as error:
        raise DescriptionError(f"{error.filename}: cannot read it: {error.strerror}") from error
    try:
        facts = json.loads(text)
        expected = str(facts["engine"]["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DescriptionError(f"{file}: it does not hold the facts of an engine") from error
    if (sha256 := hashlib.sha256(plan).hexdigest()) != expected:
        raise DescriptionError(
            f"{path}: not the engine of {file.name}: sha256 {sha256[:12]}..., not {expected[:12]}..."
        )
    return plan, facts


def facts_file(path: str | Path) -> Path:
    """Name the file beside an engine that holds its facts."""
    return Path(path).with_name(f"{Path(path).name}.facts.json")


def device_info() -> str:
    """Tell the library, the CUDA device, for which GPUs an engine is built, and whether one can run here."""
    import torch

    trt = load_library()
    device = "none"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        device = f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
    known = _known_capabilities(trt)
    targets = "GPUs like this one alone"
    if known:
        targets = f"GPUs of {RTX_DEFAULT}; --compute_capabilities chooses among {', '.join(known)}"
    problem = gpu_problem()
    rows = {
        "library": _name(trt),
        "CUDA device": device,
        "builds for": targets,
        "runs here": f"no: {problem}" if problem else "yes",
    }
    return "\n".join(f"{key:<12} {value}" for key, value in rows.items())


def gpu_problem() -> str:
    """Say why no engine can run here, in the library's own terms; "" where one can. Raises DescriptionError."""
    import torch

    trt = load_library()
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA GPU"
    if not hasattr(trt.Runtime, "get_engine_validity"):
        return ""
    with _listen(trt) as heard:
        builder = _builder(trt, heard)
        network = builder.create_network(_typing(trt))
        x = network.add_input("x", trt.DataType.FLOAT, (1, 1))
        network.mark_output(network.add_activation(x, trt.ActivationType.RELU).get_output(0))
        plan = builder.build_serialized_network(network, builder.create_builder_config())
        validity, bits = trt.Runtime(_logger(trt)).get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return ""
    reasons = [name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if bits & int(bit)]
    return f"{_name(trt)} says {', '.join(reasons) or 'INVALID'} of {torch.cuda.get_device_name()}"


def load_library() -> Any:
    """Import tensorrt, else tensorrt_rtx. Raises DescriptionError where neither is there."""
    broken = []
    for name in LIBRARIES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            if getattr(error, "name", None) != name:  # installed, but something that it needs is not
                broken.append(f"{name} fails with: {str(error).splitlines()[0]}")
    raise DescriptionError(
        "neither tensorrt nor tensorrt_rtx can be imported; install tensorrt-rtx-cu13, which builds engines without a "
        f"GPU, or tensorrt{''.join(f' ({reason})' for reason in broken)}"
    )


_Heard = list[tuple[bool, str]]  # TensorRT's messages: whether an error (else a warning), and the text


@dataclass(frozen=True)
class _Captured:
    """A CUDA graph with all that it reads and writes, which must live as long as it does."""

    graph: Any
    context: Any
    images: torch.Tensor
    logits: torch.Tensor


class _Definition:
    """A TensorRT network in the making, its tensors by our names, and the weights that it points into."""

    def __init__(self, trt: Any, target: Any, weights: Mapping[str, torch.Tensor]) -> None:
        self.trt = trt
        self.target = target
        self.tensors: dict[str, Any] = {}
        self._weights = weights
        self._alive: list[torch.Tensor] = []

    def member(self, kind: str, name: str) -> Any:
        """Give a member of one of TensorRT's enumerations by our name for it."""
        found = getattr(getattr(self.trt, kind), name.upper(), None)
        if found is None:
            raise ValueError(f"it has no {kind}.{name.upper()}")
        return found

    def dtype(self, name: str) -> Any:
        """Give TensorRT's dtype for ours."""
        return self.member("DataType", DTYPES[name])

    def weights(self, layer: Layer, role: str) -> Any:
        """Point to a weight of a layer, or give empty weights where it has none. TensorRT copies nothing."""
        if role not in layer.weights:
            return self.trt.Weights(self.dtype(layer.outputs[0].dtype))
        tensor = self._weights[layer.weights[role]].detach().cpu().contiguous()
        self._alive.append(tensor)
        dtype = self.dtype(str(tensor.dtype).removeprefix("torch."))
        return self.trt.Weights(dtype, tensor.data_ptr(), tensor.numel())  # numpy has no bfloat16


def _define(definition: _Definition, network: Network, heard: _Heard) -> None:
    """Add input, layers and outputs. Raises DescriptionError naming the layer that TensorRT does not take as it is."""
    trt, target = definition.trt, definition.target
    for tensor in network.inputs:
        with _refusals(f'input "{tensor.name}"', trt, heard):
            shape = _dims(tensor)
            definition.tensors[tensor.name] = _made(
                target.add_input(tensor.name, definition.dtype(tensor.dtype), shape)
            )
    for layer in network.layers:
        where = f'layer "{layer.name}" ({layer.type})'
        with _refusals(where, trt, heard):
            added = ADD[layer.type](definition, layer, [definition.tensors[name] for name in layer.inputs])
            added.name = layer.name
        for number, tensor in enumerate(layer.outputs):
            made = added.get_output(number)
            made.name = tensor.name
            definition.tensors[tensor.name] = made
            with _refusals(where, trt, heard):
                shape = tuple(made.shape)  # here TensorRT checks the layer's inputs
            _compare(where, tensor, shape, made.dtype, definition)
    for tensor in network.outputs:
        with _refusals(f'output "{tensor.name}"', trt, heard):
            target.mark_output(definition.tensors[tensor.name])


def _compare(where: str, tensor: Tensor, shape: tuple[int, ...], dtype: Any, definition: _Definition) -> None:
    """Hold what TensorRT makes of a tensor to the description. Where TensorRT does not know a size it says -1."""
    expected = _dims(tensor)
    fits = len(shape) == len(expected) and all(
        got == size or (got == -1 and size >= 0) for got, size in zip(shape, expected, strict=True)
    )
    if not fits or dtype != definition.dtype(tensor.dtype):
        raise DescriptionError(
            f'{where}: tensor "{tensor.name}" is {tensor.dtype} {_sizes(expected)} in the description, and '
            f"{dtype.name} {_sizes(shape)} in {_name(definition.trt)}"
        )


def _config(trt: Any, builder: Any, network: Network, tf32: bool, compute_capabilities: Sequence[str]) -> Any:
    config = builder.create_builder_config()
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # it is set by default
    if compute_capabilities:
        known = _known_capabilities(trt)
        wrong = [capability for capability in compute_capabilities if capability not in known]
        if wrong or not known:
            offered = f"it knows {', '.join(known)}" if known else "it builds for the GPU of this machine alone"
            raise ValueError(f"compute capability {', '.join(wrong)}: {offered}")
        config.num_compute_capabilities = len(compute_capabilities)
        for number, capability in enumerate(compute_capabilities):
            config.set_compute_capability(known[capability], number)
    for tensor in network.inputs:
        profile, batches = builder.create_optimization_profile(), network.profile
        shapes = [tensor.shape_at(batch) for batch in (batches.min, batches.best, batches.max)]
        profile.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise ValueError(f"the profile {shapes} is not valid")
    return config


def _convolution(d: _Definition, layer: described.Convolution, inputs: list[Any]) -> Any:
    weights = d.weights(layer, "kernel"), d.weights(layer, "bias")
    added = _made(d.target.add_convolution_nd(inputs[0], layer.num_output_maps, layer.kernel_shape, *weights))
    added.stride_nd, added.dilation_nd, added.num_groups = layer.stride, layer.dilation, layer.groups
    added.pre_padding, added.post_padding = layer.pre_padding, layer.post_padding
    return added


def _pooling(d: _Definition, layer: described.Pooling, inputs: list[Any]) -> Any:
    added = _made(d.target.add_pooling_nd(inputs[0], d.member("PoolingType", layer.operation), layer.window))
    added.stride_nd, added.pre_padding, added.post_padding = layer.stride, layer.pre_padding, layer.post_padding
    added.average_count_excludes_padding = layer.average_excludes_padding
    return added


def _activation(d: _Definition, layer: described.Activation, inputs: list[Any]) -> Any:
    added = _made(d.target.add_activation(inputs[0], d.member("ActivationType", layer.operation)))
    added.alpha, added.beta = layer.alpha, layer.beta
    return added


def _unary(d: _Definition, layer: described.Unary, inputs: list[Any]) -> Any:
    return _made(d.target.add_unary(inputs[0], d.member("UnaryOperation", layer.operation)))


def _elementwise(d: _Definition, layer: described.Elementwise, inputs: list[Any]) -> Any:
    return _made(d.target.add_elementwise(*inputs, d.member("ElementWiseOperation", layer.operation)))


def _reduce(d: _Definition, layer: described.Reduce, inputs: list[Any]) -> Any:
    operation = d.member("ReduceOperation", layer.operation)
    return _made(d.target.add_reduce(inputs[0], operation, _bits(*layer.axes), layer.keep_dims))


def _softmax(d: _Definition, layer: described.Softmax, inputs: list[Any]) -> Any:
    added = _made(d.target.add_softmax(inputs[0]))
    added.axes = _bits(layer.axis)
    return added


def _topk(d: _Definition, layer: described.TopK, inputs: list[Any]) -> Any:
    return _made(d.target.add_topk(inputs[0], d.member("TopKOperation", layer.operation), layer.k, _bits(layer.axis)))


def _gather(d: _Definition, layer: described.Gather, inputs: list[Any]) -> Any:
    added = _made(d.target.add_gather_v2(*inputs, d.member("GatherMode", layer.mode)))
    added.axis = layer.axis
    return added


def _shuffle(d: _Definition, layer: described.Shuffle, inputs: list[Any]) -> Any:
    added = _made(d.target.add_shuffle(inputs[0]))
    added.zero_is_placeholder = False  # a 0 is a size of 0, not a size to copy
    if layer.first_transpose is not None:
        added.first_transpose = d.trt.Permutation(layer.first_transpose)
    if layer.reshape is not None:
        added.reshape_dims = layer.reshape
    if layer.second_transpose is not None:
        added.second_transpose = d.trt.Permutation(layer.second_transpose)
    return added


def _concatenation(d: _Definition, layer: described.Concatenation, inputs: list[Any]) -> Any:
    added = _made(d.target.add_concatenation(inputs))
    added.axis = layer.axis
    return added


def _slice(d: _Definition, layer: described.Slice, inputs: list[Any]) -> Any:
    size = (0,) * len(layer.start) if layer.size is None else layer.size
    added = _made(d.target.add_slice(inputs[0], layer.start, size, layer.stride))
    added.mode = d.member("SampleMode", {"default": "strict_bounds", "fill": "fill"}[layer.mode])
    if len(inputs) == 2:
        added.set_input(2, inputs[1])
    return added


def _resize(d: _Definition, layer: described.Resize, inputs: list[Any]) -> Any:
    added = _made(d.target.add_resize(inputs[0]))
    added.resize_mode = d.member("InterpolationMode", layer.mode)
    added.coordinate_transformation = d.member("ResizeCoordinateTransformation", layer.coordinates)
    added.nearest_rounding = d.member("ResizeRoundMode", layer.nearest_rounding)
    added.cubic_coeff = layer.cubic_coefficient
    if layer.scales is not None:
        added.scales = layer.scales
    if len(inputs) == 2:
        added.set_input(1, inputs[1])
    return added


def _normalization(d: _Definition, layer: described.Normalization, inputs: list[Any]) -> Any:
    newest = getattr(d.target, "add_normalization_v2", None) or d.target.add_normalization  # v2 came with 10.15
    added = _made(newest(*inputs, _bits(*layer.axes)))
    added.epsilon = layer.epsilon
    return added


def _matrix_multiply(d: _Definition, layer: described.MatrixMultiply, inputs: list[Any]) -> Any:
    turns = [
        d.member("MatrixOperation", "transpose" if turn else "none") for turn in (layer.transpose_a, layer.transpose_b)
    ]
    return _made(d.target.add_matrix_multiply(inputs[0], turns[0], inputs[1], turns[1]))


def _constant(d: _Definition, layer: described.Constant, inputs: list[Any]) -> Any:
    return _made(d.target.add_constant(_dims(layer.outputs[0]), d.weights(layer, "value")))


def _cast(d: _Definition, layer: described.Cast, inputs: list[Any]) -> Any:
    return _made(d.target.add_cast(inputs[0], d.dtype(layer.outputs[0].dtype)))


def _scale(d: _Definition, layer: described.Scale, inputs: list[Any]) -> Any:
    weights = [d.weights(layer, role) for role in ("shift", "scale", "power")]  # power is never there: 1
    return _made(d.target.add_scale_nd(inputs[0], d.member("ScaleMode", "channel"), *weights, 1))


def _select(d: _Definition, layer: described.Select, inputs: list[Any]) -> Any:
    return _made(d.target.add_select(*inputs))


def _shape(d: _Definition, layer: described.ShapeOf, inputs: list[Any]) -> Any:
    return _made(d.target.add_shape(inputs[0]))


ADD: dict[str, Callable[[_Definition, Any, list[Any]], Any]] = {
    "convolution": _convolution,
    "pooling": _pooling,
    "activation": _activation,
    "unary": _unary,
    "elementwise": _elementwise,
    "reduce": _reduce,
    "softmax": _softmax,
    "topk": _topk,
    "gather": _gather,
    "shuffle": _shuffle,
    "concatenation": _concatenation,
    "slice": _slice,
    "resize": _resize,
    "normalization": _normalization,
    "matrix_multiply": _matrix_multiply,
    "constant": _constant,
    "cast": _cast,
    "scale": _scale,
    "select": _select,
    "shape": _shape,
}


def _made(added: Any) -> Any:
    """Give what an add_* call returned. Raises RuntimeError for None, which is TensorRT's no."""
    if added is None:
        raise RuntimeError("it gives None")
    return added


def _bits(*axes: int) -> int:
    """Give axes as TensorRT's bit mask."""
    if max(axes) >= MAX_RANK:
        raise ValueError(f"axis {max(axes)} is over {MAX_RANK - 1}")
    return sum(1 << axis for axis in set(axes))


def _dims(tensor: Tensor) -> tuple[int, ...]:
    """Give a shape as TensorRT has it: -1 for what depends on the batch size."""
    return tuple(size if isinstance(size, int) else -1 for size in tensor.shape)


def _sizes(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _builder(trt: Any, heard: _Heard) -> Any:
    try:
        return trt.Builder(_logger(trt))
    except REFUSALS as error:
        advice = "" if trt.__name__ == "tensorrt_rtx" else "; tensorrt-rtx-cu13 builds without a GPU"
        raise DescriptionError(f"{_name(trt)} cannot build on this machine: {_words(heard, error)}{advice}") from error


def _typing(trt: Any) -> int:
    """Give the flag that makes a network strongly typed, which it always is from TensorRT 11 on."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _known_capabilities(trt: Any) -> dict[str, Any]:
    """Give by name ("8.9") the compute capabilities that the library can be told to build for."""
    members = getattr(trt, "ComputeCapability", None)
    names = members.__members__ if members is not None else {}
    numbers = {name.removeprefix("SM"): member for name, member in names.items() if re.fullmatch(r"SM\d+", name)}
    return {f"{number[:-1]}.{number[-1]}": numbers[number] for number in sorted(numbers, key=int)}


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


@functools.cache
def _logger(trt: Any) -> Any:
    """Give the one logger of this process: TensorRT keeps the first that it is handed."""

    class Logger(trt.ILogger):  # its base is known only now
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.heard: _Heard = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.heard.append((severity <= trt.ILogger.ERROR, " ".join(text.split())))

    return Logger()


@contextmanager
def _listen(trt: Any) -> Iterator[_Heard]:
    """Collect TensorRT's errors and warnings in a list of their own."""
    logger = _logger(trt)
    before, logger.heard = logger.heard, []
    try:
        yield logger.heard
    finally:
        logger.heard = before


@contextmanager
def _refusals(where: str, trt: Any, heard: _Heard) -> Iterator[None]:
    """Turn what TensorRT raises into a DescriptionError that says where and in its own words why."""
    try:
        yield
    except DescriptionError:
        raise
    except REFUSALS as error:
        raise DescriptionError(f"{where}: {_name(trt)} refuses it: {_words(heard, error)}") from error


def _words(heard: _Heard, error: BaseException | None = None) -> str:
    """Give TensorRT's errors, else what Python raised; without a GPU each failure complains of that too."""
    errors = list(dict.fromkeys(text for is_error, text in heard if is_error))
    about_network = [text for text in errors if "cudaError" not in text]
    raised = str(error).splitlines()[0] if error is not None and str(error) else ""
    return "; ".join(about_network or errors) or raised or "it gives no reason"


def _culprit(network: Network, heard: _Heard) -> str:
    """Name the layer that TensorRT's errors speak of."""
    text = _words(heard)
    named = [layer for layer in network.layers if re.search(rf"(?<![\w.]){re.escape(layer.name)}(?![\w.])", text)]
    layer = max(named, key=lambda layer: len(layer.name), default=None)
    return "the network" if layer is None else f'layer "{layer.name}" ({layer.type})'


def _name(trt: Any) -> str:
    return f"{trt.__name__} {trt.__version__}"


def _print_warning(text: str) -> None:
    print(f"{PROGRAM}: warning: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Build a TensorRT engine from a network description; no GPU is needed with tensorrt_rtx.",
        epilog="exit codes: 0 built, 2 a mistake in what was asked or a network that TensorRT refuses",
    )
    parser.add_argument("--description", metavar="JSON", help="the description, its weights beside it")
    parser.add_argument("--output", metavar="ENGINE", help="the engine to write; its facts go to ENGINE.facts.json")
    parser.add_argument("--device_info", action="store_true", help="tell the library, the GPU, and what is built for")
    parser.add_argument("--tf32", action="store_true", help="let float32 products be rounded to TF32 (10 bits)")
    parser.add_argument(
        "--compute_capabilities",
        metavar="LIST",
        default="",
        help='GPUs to build for, as "8.9,12.0" (tensorrt_rtx alone; default: all from 8.0 on)',
    )
    parser.add_argument("--check", action="store_true", help="run the parity sample on this machine's CUDA GPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
