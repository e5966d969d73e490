"""What pydantic cannot check of a description: names, order, numbers of inputs, weights and their shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pytorch2json.network import (
    ARITY,
    MAX_AXES,
    ROLES,
    Constant,
    Convolution,
    Deconvolution,
    Dequantize,
    Layer,
    Network,
    Quantize,
    Shape,
    Tensor,
    dtype_of,
)

if TYPE_CHECKING:
    import torch

MAX_ELEMENTS = 2**31  # of one tensor at batch 1: what TensorRT takes


def find_problems(network: Network, weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yield the contradictions within a description, and between it and its weights."""
    known = {tensor.name: tensor for tensor in network.inputs}
    constants: dict[str, str] = {}  # by tensor its name in the weights file
    names: set[str] = set()
    for layer in network.layers:
        where = f'layer "{layer.name}" ({layer.type})'
        if layer.name in names:
            yield f"{where}: a layer of this name came before"
        names.add(layer.name)
        yield from (f"{where}: {problem}" for problem in _connection_problems(layer, known))
        known |= {tensor.name: tensor for tensor in layer.outputs}
        yield from (f"{where}: {problem}" for problem in _weight_problems(layer, known, weights))
        if isinstance(layer, Constant):
            constants |= {layer.outputs[0].name: layer.weights.get("value", "")}
        if isinstance(layer, (Quantize, Dequantize)):
            if network.format_version == 1:
                yield f"{where}: format_version 1 has no such layers; it must be 2"
            scale = weights.get(constants.get(layer.inputs[-1] if layer.inputs else "", ""))
            yield from (f"{where}: {problem}" for problem in _scale_problems(layer, known, scale))
    for tensor in network.outputs:
        if known.get(tensor.name) != tensor:
            yield f'output "{tensor.name}" {tensor.shape} {tensor.dtype} is not what a layer makes'
    if not network.profile.min <= network.profile.best <= network.profile.max:
        yield f"profile: min {network.profile.min}, best {network.profile.best}, max {network.profile.max}"
    yield from _parity_problems(network, weights)


def _connection_problems(layer: Layer, known: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield what is wrong with a layer's inputs and outputs; `known` are the tensors before it."""
    least, most = ARITY[layer.type]
    if not least <= len(layer.inputs) <= most:
        yield f"{len(layer.inputs)} inputs, needs {least if least == most else f'{least} to {most}'}"
    if len(layer.outputs) != (2 if layer.type == "topk" else 1):
        yield f"{len(layer.outputs)} outputs"
    for name in layer.inputs:
        if name not in known:
            yield f'its input "{name}" is made by no layer before it'
    for position, tensor in enumerate(layer.outputs):
        if tensor.name in known or tensor.name in [other.name for other in layer.outputs[:position]]:
            yield f'a tensor "{tensor.name}" is there already'
        if len(tensor.shape) > MAX_AXES:
            yield f'tensor "{tensor.name}" has {len(tensor.shape)} axes, more than {MAX_AXES}'
        elif math.prod(tensor.shape_at(1)) > MAX_ELEMENTS:
            yield f'tensor "{tensor.name}" is too large: {tensor.shape}'


def _weight_problems(layer: Layer, known: Mapping[str, Tensor], weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    required, allowed = ROLES.get(layer.type, (set(), set()))
    if isinstance(layer, Convolution) and len(layer.inputs) == 2:
        required, allowed = set(), {"bias"}  # the kernel is an input
    roles = set(layer.weights)
    if not required <= roles <= allowed:
        yield f"its weights are {sorted(roles)}, needs {sorted(required)}"
        return
    output = layer.outputs[0]
    shapes: dict[str, Shape] = {"value": output.shape}
    if layer.type in ("convolution", "deconvolution", "scale"):
        data = known.get(layer.inputs[0]) if layer.inputs else None
        if data is None or len(data.shape) != 4 or not isinstance(data.shape[1], int):
            yield f"its input must have 4 axes, got {data.shape if data else 'none'}"
            return
        shapes = {"scale": (data.shape[1],), "shift": (data.shape[1],)}
        if isinstance(layer, Convolution):
            maps = layer.num_output_maps
            shapes = {"kernel": (maps, data.shape[1] // layer.groups, *layer.kernel_shape), "bias": (maps,)}
            kernel = known.get(layer.inputs[1]) if len(layer.inputs) == 2 else None
            if kernel is not None and (kernel.shape, kernel.dtype) != (shapes["kernel"], output.dtype):
                yield f"its kernel is {kernel.dtype} {kernel.shape}, must be {output.dtype} {shapes['kernel']}"
        elif isinstance(layer, Deconvolution):
            maps = layer.num_output_maps
            shapes = {"kernel": (data.shape[1], maps // layer.groups, *layer.kernel_shape), "bias": (maps,)}
    for role, name in layer.weights.items():
        if name not in weights:
            yield f'its {role} "{name}" is not in the weights file'
        elif tuple(weights[name].shape) != shapes[role] or dtype_of(weights[name]) != output.dtype:
            got = f"{dtype_of(weights[name])} {tuple(weights[name].shape)}"
            yield f'its {role} "{name}" is {got}, must be {output.dtype} {shapes[role]}'


def _scale_problems(
    layer: Quantize | Dequantize, known: Mapping[str, Tensor], values: torch.Tensor | None
) -> Iterator[str]:
    """Yield what is wrong with a layer between float and int8, and with the values of its scale."""
    if len(layer.inputs) != 2 or not set(layer.inputs) <= known.keys():
        return
    (data, scale), output = (known[name] for name in layer.inputs), layer.outputs[0]
    real, rounded = (data, output) if isinstance(layer, Quantize) else (output, data)
    if rounded.dtype != "int8" or real.dtype not in ("float32", "float16", "bfloat16") or data.shape != output.shape:
        yield f"it is between float and int8 of one shape, got {data.dtype} {data.shape}, {output.dtype} {output.shape}"
    wanted = () if layer.axis is None else data.shape[layer.axis : layer.axis + 1]
    if (layer.axis is not None and not wanted) or scale.shape != wanted or scale.dtype != real.dtype:
        yield f"its scale is {scale.dtype} {scale.shape}, must be {real.dtype} {wanted}"
    if values is None:
        yield f'its scale "{scale.name}" must be a constant'
    elif not bool((values.isfinite() & (values > 0)).all()):
        yield f'its scale "{scale.name}" must be above 0'


def _parity_problems(network: Network, weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    batch = weights[network.parity.input].shape[:1] if network.parity.input in weights else ()
    for name, tensor in ((network.parity.input, network.inputs[0]), (network.parity.output, network.outputs[0])):
        if name not in weights:
            yield f'parity: no tensor "{name}" in the weights'
        elif not batch or tuple(weights[name].shape) != tensor.shape_at(batch[0]):
            yield f'parity: tensor "{name}" has the shape {tuple(weights[name].shape)}, not {tensor.shape}'
