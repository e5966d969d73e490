"""Loading a weights file of any format as a backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.archive import verify_entries
from artifacts.formats import TITLES, artifact_kind
from artifacts.metadata import ModelMetadata, build_metadata, class_names_of
from artifacts.metadata_reader import read_metadata
from common.formatting import short_json
from configs.schema import Config
from deploy.backends.base import PRECISIONS, Backend, BackendError, is_out_of_memory, within_profile
from deploy.backends.declared_sizes import check_declared, sizes_of
from deploy.backends.devices import choose_device, choose_runtime, has_int8_dot_product, parse_device
from deploy.backends.onnx_backends import OnnxRuntimeBackend, OpenVinoBackend
from deploy.backends.torch_backend import CheckpointBackend, TorchBackend

if TYPE_CHECKING:
    import torch
    from torch import nn

LARGEST_7_BITS = 64  # of a weight's absolute value, where products are added in pairs in 16 bits


def load_backend(
    weights: str | Path,
    *,
    device: str = "auto",
    config: Config | None = None,
    runtime: str = "auto",
    precision: str = "auto",
    accept_changed: bool = False,
) -> tuple[Backend, ModelMetadata]:
    """Load a file by its ending or its content, with its metadata.

    `device` is auto (CUDA where there is one), cpu, cuda or cuda:N. `config` describes weights that carry no metadata.
    `runtime` is what runs an ONNX file, auto: see `choose_runtime`. `precision` fp32 or bf16 is what a checkpoint, or
    an ONNX file on OpenVINO, computes floating point in, auto: the file's own. `accept_changed`: see `read_metadata`.
    Raises BackendError, ArtifactError, CheckpointError, DescriptionError, NetError, ListError.
    """
    path = Path(weights)
    kind = artifact_kind(path)
    if kind != "onnx" and runtime != "auto":
        raise BackendError(f"{path}: a runtime is chosen for ONNX files; this is a {TITLES[kind]}")
    if kind not in ("onnx", "checkpoint") and precision != "auto":
        raise BackendError(f"{path}: a precision is chosen for checkpoints and ONNX files; this is a {TITLES[kind]}")
    if precision not in PRECISIONS:
        raise BackendError(f'precision must be one of {", ".join(PRECISIONS)}, got "{precision}"')
    if kind == "checkpoint":
        return load_torch(path, device, config, precision)
    metadata = read_metadata(path, accept_changed=accept_changed)
    if kind == "onnx":
        return load_onnx(path, device, metadata, runtime, precision), metadata
    return LOADERS[kind](path, device, metadata), metadata


def load_torch(
    path: Path, device: str, config: Config | None, precision: str = "auto"
) -> tuple[CheckpointBackend, ModelMetadata]:
    """Load a checkpoint, or bare weights with the config that describes them; bf16 is computed as in validation.

    Raises BackendError, CheckpointError, NetError, ListError.
    """
    import torch

    from artifacts.checkpoint import load_weights_file
    from artifacts.errors import CheckpointError

    target = choose_device(device)
    file = load_weights_file(path)
    if file.metadata is not None:
        metadata = file.metadata
    elif config is not None:
        names = class_names_of(config) or tuple(map(str, range(config.num_classes)))
        metadata = build_metadata(config, names)
        if "icc_profiles" not in config.model_fields_set:  # no other trainer converts them
            metadata = replace(metadata, preprocess=replace(metadata.preprocess, icc_profiles="ignore"))
    else:
        programs = "inference.py, inference_uncertain.py, deploy.export and tools.embed"
        raise CheckpointError(f"{path}: bare weights do not name their net; {programs} take their config with --config")
    net = _net_of(path, metadata, file.weights).eval().to(target).to(memory_format=torch.channels_last)
    if not metadata.weights_sha256:  # bare weights: the config does not name the net's output
        metadata = replace(metadata, output=getattr(net, "output", "logits"))
    return CheckpointBackend(net, target, is_bf16=precision == "bf16"), metadata


def load_jit(path: Path, device: str, metadata: ModelMetadata) -> Backend:
    """Load TorchScript. Raises BackendError."""
    import torch

    from deploy.backends.safe_torchscript import read_script

    target = choose_device(device)
    verify_entries(path)
    net = read_script(path, target)
    channels_last = metadata.input == "float32 NCHW"
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    return TorchBackend(net, target, "jit", channels_last=channels_last)


def load_pt2(path: Path, device: str, metadata: ModelMetadata) -> Backend:
    """Load a torch.export file. Raises BackendError."""
    from torch.export.passes import move_to_device_pass

    from deploy.backends.safe_torch_export import read_program

    target = choose_device(device)
    verify_entries(path)
    program = move_to_device_pass(read_program(path), target)
    return TorchBackend(program.module(), target, "pt2")


def load_json(path: Path, device: str, metadata: ModelMetadata) -> Backend:
    """Load a network description and the weights beside it. Raises BackendError, DescriptionError."""
    from pytorch2json.interpreter import Interpreter

    target = choose_device(device)
    interpreter = Interpreter.load(path, target)
    network = interpreter.network
    check_declared(path, metadata, [sizes_of(end.shape) for end in (network.inputs[0], network.outputs[0])])
    return TorchBackend(interpreter, target, "json")


def load_engine(path: Path, device: str, metadata: ModelMetadata) -> Backend:
    """Load a TensorRT engine; batches of other sizes than its profile's are cut or padded.

    Raises BackendError, DescriptionError.
    """
    from pytorch2json.engine_runner import EngineRunner

    target = choose_device(device)
    if target.type != "cuda":
        raise BackendError(f"{path}: a TensorRT engine runs on a CUDA GPU, not on {target}; use another of the formats")
    runner = EngineRunner(path, target)
    check_declared(path, metadata, [sizes_of(runner.shape), None])  # the runner does not declare its output's
    return TorchBackend(within_profile(runner, runner.min_batch, runner.max_batch), target, "engine")


def load_onnx(
    path: Path, device: str, metadata: ModelMetadata, runtime: str = "auto", precision: str = "auto"
) -> Backend:
    """Load an ONNX file, whose metadata was read from it, into onnxruntime or OpenVINO. Raises BackendError."""
    chosen = choose_runtime(runtime, device)
    if precision != "auto" and chosen != "openvino":
        raise BackendError(f"{chosen} computes in the file's own precision; {precision} needs the runtime openvino")
    if chosen == "openvino":
        if parse_device(device)[0] == "cuda":
            raise BackendError("openvino has no CUDA; use --device cpu, or --runtime onnxruntime")
        computed_in = metadata.precision if precision == "auto" else precision
        backend: OpenVinoBackend | OnnxRuntimeBackend
        backend = OpenVinoBackend(path, computed_in, is_int8=metadata.precision == "int8")
    else:
        backend = OnnxRuntimeBackend(path, device)
    check_declared(path, metadata, backend.declared)
    if metadata.precision == "int8" and backend.device == "cpu":
        _check_int8(path)
    return backend


def _check_int8(path: Path) -> None:
    """Raise BackendError for weights of 8 bits on a CPU that adds their products in 16 bits, which overflow silently.

    See "reduce-range" in https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
    """
    if has_int8_dot_product():
        return
    from onnx import TensorProto, load, numpy_helper

    kernels = [tensor for tensor in load(path).graph.initializer if tensor.data_type == TensorProto.INT8]
    if any(abs(numpy_helper.to_array(kernel).astype(int)).max(initial=0) > LARGEST_7_BITS for kernel in kernels):
        raise BackendError(
            f"{path}: written on a CPU with VNNI or AMX, which this one lacks: its sums would overflow "
            "here; export int8 on this machine (its weights then have 7 bits), or use another of the formats"
        )


def _net_of(path: Path, metadata: ModelMetadata, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Build the net that the metadata names, with its weights. Raises BackendError."""
    from nets.net_interface import build_net
    from nets.support.errors import NetError
    from nets.support.pretrained import adopt_weights
    from nets.support.undrawn import WithoutDrawing

    try:
        with WithoutDrawing():
            net = build_net(**metadata.net_arguments())
        adopt_weights(net, weights)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        named = f"{metadata.net['name']} with {short_json(metadata.net['args'])}"
        raise BackendError(f"{path}: there is too little memory for its net, {named}") from error
    except NetError as error:
        sentence = str(error).partition('. train_mode "update"')[0]  # what follows is advice for training
        raise BackendError(f"{path}: {sentence}") from error
    return net


LOADERS = {"jit": load_jit, "pt2": load_pt2, "json": load_json, "engine": load_engine}
