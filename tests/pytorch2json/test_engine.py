"""Descriptions become engines by the real TensorRT builder; on a GPU they run, and their parity is verified."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from common.paths import ROOT
from pytorch2json import engine, engine_runner
from pytorch2json import network as described
from pytorch2json.converter import convert
from pytorch2json.description_file import write_description
from pytorch2json.engine import build_engine, main, verify_parity, write_engine
from pytorch2json.engine_layers import Definition, define, dims
from pytorch2json.engine_runner import EngineRunner, read_engine
from pytorch2json.interpreter import Interpreter
from pytorch2json.network import DescriptionError, Network, Tensor
from pytorch2json.tensorrt_library import (
    DTYPES,
    collect_messages,
    create_network,
    gpu_problem,
    load_library,
    logger,
)
from tests.conftest import slow_but
from tests.helpers.nets import OPERATIONS, Wrapped, inputs_of, lively_net

try:
    trt = load_library()
except DescriptionError as error:
    pytest.skip(str(error), allow_module_level=True)
needs_gpu = pytest.mark.skipif(bool(gpu_problem()), reason=f"an engine cannot run here: {gpu_problem()}")
FAMILIES = {  # row of test_pytorch2json.FAMILIES: the precisions to build it in
    "GeM_ResNet_AVP resnet34": ("fp32", "fp16"),
    **dict.fromkeys(("resnet18", "resnext50_32x4d", "vgg11_bn", "densenet121", "mobilenet_v2"), ("fp32",)),
    "WideResNet 10-2": ("fp32",),
    **dict.fromkeys(("mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf"), ("fp32",)),
    "efficientnet_lite0": ("fp32",),
    **dict.fromkeys(("linknet18", "deeplabv3plus", "lraspp", "unet", "backbone_unet"), ("fp32",)),
    **dict.fromkeys(("siamese_linknet34", "fc_siam_diff"), ("fp32",)),
    **dict.fromkeys(("shufflenet_v2_x0_5", "squeezenet1_1", "inception_v3", "vit_b_32", "swin_t"), ("fp32",)),
}
ROWS = [(row, precision) for row, precisions in FAMILIES.items() for precision in precisions]
Case = Callable[["Sketch", Tensor], Tensor]


class Sketch:
    """A small description in the making. Layers are named after their type and number: relu_1."""

    def __init__(self, shape: Sequence[Any] = ("N", 8, 6, 6), dtype: Any = "float32") -> None:
        self.input = Tensor(name="images", shape=tuple(shape), dtype=dtype)
        self.layers: list[Any] = []
        self.weights: dict[str, torch.Tensor] = {}
        self._random = torch.Generator().manual_seed(0)

    def add(
        self, kind: Any, inputs: Sequence[Tensor], shape: Sequence[Any], dtype: Any = "float32", **parts: Any
    ) -> Tensor:
        name = f"{kind.model_fields['type'].default}_{len(self.layers) + 1}"
        roles = {}
        for role in list(parts):
            if isinstance(parts[role], torch.Tensor):
                roles[role] = f"{name}.{role}"
                self.weights[roles[role]] = parts.pop(role)
        outputs = [Tensor(name=f"{name}.out", shape=tuple(shape), dtype=dtype)]
        if kind is described.TopK:
            outputs.append(Tensor(name=f"{name}.indices", shape=tuple(shape), dtype="int32"))
        names = tuple(tensor.name for tensor in inputs)
        self.layers.append(kind(name=name, inputs=names, outputs=tuple(outputs), weights=roles, **parts))
        return outputs[0]

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=self._random).to(dtype)

    def constant(self, value: torch.Tensor) -> Tensor:
        return self.add(described.Constant, (), value.shape, str(value.dtype).removeprefix("torch."), value=value)

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        return self.add(described.Cast, (x,), x.shape, dtype)

    def sizes(self, x: Tensor, *sizes: Any, index: torch.dtype = torch.int32) -> Tensor:
        """Return sizes, "N" and "4*N" among them, as the converter does: from the shape of a tensor."""
        shape = self.add(described.ShapeOf, (x,), (len(x.shape),), "int64")
        zero = self.constant(torch.zeros(1, dtype=index))
        batch = self.add(described.Gather, (shape, zero), (1,), "int64", mode="default", axis=0)
        parts = []
        for size in sizes:
            if isinstance(size, int):
                parts.append(self.constant(torch.tensor([size])))
            elif size == "N":
                parts.append(batch)
            else:
                factor = self.constant(torch.tensor([int(size[:-2])]))
                parts.append(self.add(described.Elementwise, (batch, factor), (1,), "int64", operation="prod"))
        return self.add(described.Concatenation, parts, (len(parts),), "int64", axis=0)

    def finish(self, output: Tensor, **changes: Any) -> tuple[Network, dict[str, torch.Tensor]]:
        """Return the description with a parity sample of two images, its expected output still zeros."""
        shape = self.input.shape_at(2)
        images = self.random(*shape) if self.input.dtype == "float32" else torch.arange(216).view(shape).to(torch.uint8)
        parts: dict[str, Any] = {
            "format_version": 2 if any(layer.type == "quantize" for layer in self.layers) else 1,
            "producer": "test",
            "precision": "fp32",
            "inputs": (self.input,),
            "outputs": (output,),
            "profile": described.Profile(min=1, best=2, max=4),
            "weights": described.WeightsFile(file="model.safetensors", sha256="0" * 64),
            "parity": described.Parity(input="parity.in", output="parity.out", tolerance=1e-4),
            "facts": {"class_names": ["a", "猫"]},
            "layers": tuple(self.layers),
        }
        network = Network(**(parts | changes))
        weights = self.weights | {"parity.in": images, "parity.out": torch.zeros(output.shape_at(2))}
        return network, weights


def activation(s: Sketch, x: Tensor, operation: str = "relu", alpha: float = 0.0, beta: float = 0.0) -> Tensor:
    return s.add(described.Activation, (x,), x.shape, x.dtype, operation=operation, alpha=alpha, beta=beta)


def convolution(s: Sketch, x: Tensor, dtype: torch.dtype = torch.float32, **changes: Any) -> Tensor:
    parts: dict[str, Any] = {"stride": (1, 1), "pre_padding": (1, 1), "post_padding": (1, 1), "dilation": (1, 1)}
    parts |= {"kernel": s.random(4, 8, 3, 3, dtype=dtype), "bias": s.random(4, dtype=dtype), "groups": 1} | changes
    parts = {key: value for key, value in parts.items() if value is not None}
    shape = parts.pop("shape", ("N", 4, 6, 6))
    kernel = parts["kernel"].shape
    return s.add(
        described.Convolution, (x,), shape, x.dtype, num_output_maps=kernel[0], kernel_shape=tuple(kernel[2:]), **parts
    )


def deconvolution(s: Sketch, x: Tensor, **changes: Any) -> Tensor:
    parts: dict[str, Any] = {"stride": (2, 2), "pre_padding": (1, 1), "post_padding": (1, 1), "dilation": (1, 1)}
    parts |= {"kernel": s.random(8, 4, 4, 4), "bias": s.random(4), "groups": 1} | changes
    parts = {key: value for key, value in parts.items() if value is not None}
    shape = parts.pop("shape", ("N", 4, 12, 12))
    return s.add(described.Deconvolution, (x,), shape, x.dtype, num_output_maps=4, kernel_shape=(4, 4), **parts)


def pooling(s: Sketch, x: Tensor, operation: str, pre: int = 1, post: int = 0, excludes: bool = True) -> Tensor:
    return s.add(
        described.Pooling, (x,), ("N", 8, (6 + pre + post - 3) // 2 + 1, (6 + pre + post - 3) // 2 + 1), x.dtype,
        operation=operation, window=(3, 3), stride=(2, 2), pre_padding=(pre, pre), post_padding=(post, post),
        average_excludes_padding=excludes,
    )  # fmt: skip


def elementwise(s: Sketch, x: Tensor, y: Tensor, operation: str, dtype: str = "") -> Tensor:
    return s.add(described.Elementwise, (x, y), x.shape, dtype or x.dtype, operation=operation)


def unary(s: Sketch, x: Tensor, operation: str) -> Tensor:
    if operation == "not":
        x = s.cast(x, "bool")
    elif operation in ("log", "sqrt", "recip"):
        x = activation(s, x, "softplus", 1.0, 1.0)
    y = s.add(described.Unary, (x,), x.shape, x.dtype, operation=operation)
    return s.cast(y, "float32") if operation == "not" else y


def reduce(s: Sketch, x: Tensor, operation: str, keep_dims: bool) -> Tensor:
    shape = ("N", 8, 1, 1) if keep_dims else ("N", 8)
    return s.add(described.Reduce, (x,), shape, operation=operation, axes=(2, 3), keep_dims=keep_dims)


def top3(s: Sketch, x: Tensor, operation: str = "max") -> tuple[Tensor, Tensor]:
    values = s.add(described.TopK, (x,), ("N", 3, 6, 6), operation=operation, k=3, axis=1)
    return values, s.layers[-1].outputs[1]


def gather(s: Sketch, x: Tensor, index: torch.Tensor, axis: int, shape: Sequence[Any]) -> Tensor:
    return s.add(described.Gather, (x, s.constant(index)), shape, mode="default", axis=axis)


def gather_top(s: Sketch, x: Tensor) -> Tensor:
    _, indices = top3(s, x)
    return s.add(described.Gather, (x, indices), ("N", 3, 6, 6), mode="element", axis=1)


def shuffle(s: Sketch, x: Tensor, shape: Sequence[Any], **parts: Any) -> Tensor:
    return s.add(described.Shuffle, (x,), shape, x.dtype, **parts)


def cut(s: Sketch, x: Tensor, shape: Sequence[Any], by: Tensor | None = None, **parts: Any) -> Tensor:
    given: dict[str, Any] = {"start": (0,) * len(shape), "stride": (1,) * len(shape), "size": None} | parts
    return s.add(described.Slice, (x,) if by is None else (x, by), shape, x.dtype, **given)


def expanded(s: Sketch, x: Tensor, index: torch.dtype, batch: str = "N") -> Tensor:
    one = s.constant(s.random(1, 1, 6, 6))
    return cut(s, one, (batch, 8, 6, 6), s.sizes(x, batch, 8, 6, 6, index=index), stride=(0, 0, 1, 1))


def merged_batch(s: Sketch, x: Tensor) -> Tensor:
    """Axes 0 and 1 become one, which a slice does not cut, as windows of attention do."""
    flat = shuffle(s, x, ("8*N", 6, 6), reshape=(-1, 6, 6))
    part = cut(s, flat, ("8*N", 3, 6), s.sizes(x, "8*N", 3, 6), start=(0, 1, 0))
    return shuffle(s, part, ("N", 8, 3, 6), reshape=(-1, 8, 3, 6))


def resize(s: Sketch, x: Tensor, mode: str, coordinates: str, by_size: bool) -> Tensor:
    side = 9 if by_size else 12
    inputs = (x, s.sizes(x, "N", 8, 9, 9)) if by_size else (x,)
    scales = None if by_size else (1.0, 1.0, 2.0, 2.0)
    parts = {"mode": mode, "coordinates": coordinates, "scales": scales}
    return s.add(described.Resize, inputs, ("N", 8, side, side), **parts)


def layer_norm(s: Sketch, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    parts = [s.constant(s.random(1, 1, 1, 6, dtype=dtype)) for _ in range(2)]
    return s.add(described.Normalization, (x, *parts), x.shape, x.dtype, axes=(3,), epsilon=1e-6)


def product(s: Sketch, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    kernel = s.constant(s.random(1, 1, 5, 6, dtype=dtype))
    parts = {"transpose_a": False, "transpose_b": True}
    return s.add(described.MatrixMultiply, (x, kernel), ("N", 8, 6, 5), x.dtype, **parts)


def between(s: Sketch, kind: Any, x: Tensor, factors: torch.Tensor, axis: int | None = None) -> Tensor:
    """Return x, quantized or dequantized."""
    dtype = "int8" if kind is described.Quantize else "float32"
    return s.add(kind, (x, s.constant(factors)), x.shape, dtype, axis=axis)


def int8_convolution(s: Sketch, x: Tensor, groups: int = 1) -> Tensor:
    """A convolution with a ReLU, whose input, kernel and output are int8."""
    scale, steps = torch.tensor(0.05), torch.arange(4 * 8 // groups * 9) % 255 - 127
    x = between(s, described.Dequantize, between(s, described.Quantize, x, scale), scale)
    values = s.constant(steps.view(4, 8 // groups, 3, 3).to(torch.int8))
    kernel = between(s, described.Dequantize, values, torch.tensor([0.001, 0.002, 0.003, 0.004]), axis=0)
    y = s.add(
        described.Convolution, (x, kernel), ("N", 4, 6, 6), num_output_maps=4, kernel_shape=(3, 3), stride=(1, 1),
        pre_padding=(1, 1), post_padding=(1, 1), dilation=(1, 1), groups=groups, bias=s.random(4),
    )  # fmt: skip
    y = activation(s, y)
    return between(s, described.Dequantize, between(s, described.Quantize, y, scale), scale)


def int8_product(s: Sketch, x: Tensor) -> Tensor:
    x = between(s, described.Dequantize, between(s, described.Quantize, x, torch.tensor(0.03)), torch.tensor(0.03))
    values = s.constant((torch.arange(30) * 8 - 120).view(1, 1, 5, 6).to(torch.int8))
    kernel = between(s, described.Dequantize, values, torch.arange(1, 6) / 1000, axis=2)
    parts = {"transpose_a": False, "transpose_b": True}
    return s.add(described.MatrixMultiply, (x, kernel), ("N", 8, 6, 5), **parts)


def scale(s: Sketch, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return s.add(
        described.Scale, (x,), x.shape, x.dtype, scale=s.random(8, dtype=dtype), shift=s.random(8, dtype=dtype)
    )


def select(s: Sketch, x: Tensor) -> Tensor:
    zero = s.constant(torch.zeros(1, 1, 1, 1))
    return s.add(described.Select, (elementwise(s, x, zero, "greater", "bool"), x, zero), x.shape)


def masked(s: Sketch, x: Tensor) -> Tensor:
    mask, fill = s.constant(torch.arange(36).view(1, 1, 6, 6) % 2 == 0), s.constant(torch.full((1, 1, 1, 1), -9.0))
    return s.add(described.Select, (mask, x, fill), x.shape)


def concatenation(s: Sketch, x: Tensor) -> Tensor:
    return s.add(described.Concatenation, (x, activation(s, x)), ("N", 16, 6, 6), axis=1)


def cubed(s: Sketch, x: Tensor) -> Tensor:
    positive = activation(s, x, "clip", 1e-6, 9.0)
    return elementwise(s, positive, s.constant(torch.full((1, 1, 1, 1), 3.0)), "pow")


def half(dtype: str) -> Case:
    """Return a block in half precision between casts, with what stays in float32 between casts of its own."""

    def case(s: Sketch, x: Tensor) -> Tensor:
        kind = getattr(torch, dtype)
        y = convolution(s, s.cast(x, dtype), kind)
        y = activation(s, scale_4(s, y, kind))
        y = s.cast(cubed(s, s.cast(y, "float32")), dtype)
        y = elementwise(s, y, s.constant(s.random(1, 4, 1, 1, dtype=kind)), "sum")
        return s.cast(product_of_4(s, layer_norm(s, y, kind), kind), "float32")

    def scale_4(s: Sketch, x: Tensor, kind: torch.dtype) -> Tensor:
        parts = {"scale": s.random(4, dtype=kind), "shift": s.random(4, dtype=kind)}
        return s.add(described.Scale, (x,), x.shape, x.dtype, **parts)

    def product_of_4(s: Sketch, x: Tensor, kind: torch.dtype) -> Tensor:
        kernel = s.constant(s.random(1, 1, 6, 5, dtype=kind))
        parts = {"transpose_a": False, "transpose_b": False}
        return s.add(described.MatrixMultiply, (x, kernel), ("N", 4, 6, 5), x.dtype, **parts)

    return case


ACTIVATIONS = {
    "relu": (0.0, 0.0), "sigmoid": (0.0, 0.0), "tanh": (0.0, 0.0), "clip": (-0.5, 0.7), "hard_sigmoid": (0.2, 0.5),
    "leaky_relu": (0.1, 0.0), "elu": (0.8, 0.0), "softplus": (1.0, 1.0), "gelu_erf": (0.0, 0.0),
    "gelu_tanh": (0.0, 0.0),
}  # fmt: skip
UNARY = ("exp", "log", "sqrt", "recip", "abs", "neg", "erf", "sin", "cos", "floor", "ceil", "not")
SCALAR = torch.tensor(2, dtype=torch.int32)
CASES: dict[str, Case] = {
    "convolution": convolution,
    "convolution, no bias": lambda s, x: convolution(s, x, bias=None),
    "convolution, stride": lambda s, x: convolution(s, x, stride=(2, 1), shape=("N", 4, 3, 6)),
    "convolution, dilation": lambda s, x: convolution(s, x, dilation=(2, 2), shape=("N", 4, 4, 4)),
    "convolution, groups": lambda s, x: convolution(s, x, groups=4, kernel=s.random(4, 2, 3, 3)),
    "convolution, 3x1": lambda s, x: convolution(
        s, x, kernel=s.random(4, 8, 3, 1), pre_padding=(1, 0), post_padding=(1, 0)
    ),
    "convolution, lopsided": lambda s, x: convolution(s, x, pre_padding=(0, 2), post_padding=(2, 0)),
    "deconvolution": deconvolution,
    "deconvolution, lopsided": lambda s, x: deconvolution(s, x, post_padding=(0, 0), shape=("N", 4, 13, 13)),
    "deconvolution, groups": lambda s, x: deconvolution(s, x, groups=4, kernel=s.random(8, 1, 4, 4), bias=None),
    "pooling max": lambda s, x: pooling(s, x, "max"),
    "pooling max, rounded up": lambda s, x: pooling(s, x, "max", 0, 1),
    "pooling average": lambda s, x: pooling(s, x, "average", 1, 1, False),
    "pooling average, padding excluded": lambda s, x: pooling(s, x, "average", 1, 1, True),
    **{
        f"activation {operation}": lambda s, x, operation=operation: activation(
            s, x, operation, *ACTIVATIONS[operation]
        )
        for operation in ACTIVATIONS
    },
    **{f"unary {operation}": lambda s, x, operation=operation: unary(s, x, operation) for operation in UNARY},
    **{
        f"elementwise {operation}": lambda s, x, operation=operation: elementwise(
            s, x, s.constant(s.random(1, 8, 1, 1)), operation
        )
        for operation in ("sum", "prod", "max", "min", "sub", "div")
    },
    "elementwise pow": cubed,
    **{
        f"elementwise {operation}": lambda s, x, operation=operation: s.cast(
            elementwise(s, x, s.constant(torch.zeros(1, 1, 1, 1)), operation, "bool"), "float32"
        )
        for operation in ("equal", "less", "greater")
    },
    **{
        f"reduce {operation}{', kept' if keep else ''}": lambda s, x, operation=operation, keep=keep: reduce(
            s, x, operation, keep
        )
        for operation in ("sum", "prod", "max", "min", "avg")
        for keep in (False, True)
    },
    "quantize and dequantize": int8_convolution,
    "quantize and dequantize, groups": lambda s, x: int8_convolution(s, x, 4),
    "quantize and dequantize, product": int8_product,
    "softmax": lambda s, x: s.add(described.Softmax, (x,), x.shape, axis=1),
    "topk max": lambda s, x: top3(s, x)[0],
    "topk min, indices": lambda s, x: s.cast(top3(s, x, "min")[1], "float32"),
    "gather element": gather_top,
    "gather scalar": lambda s, x: gather(s, x, SCALAR, 1, ("N", 6, 6)),
    "gather slices": lambda s, x: gather(s, x, torch.tensor([2, 0, 1], dtype=torch.int32), 2, ("N", 8, 3, 6)),
    "gather slices, int64": lambda s, x: gather(s, x, torch.tensor([2, 0, 1]), 3, ("N", 8, 6, 3)),
    "shuffle": lambda s, x: shuffle(s, x, ("N", 36, 8), first_transpose=(0, 2, 3, 1), reshape=(-1, 36, 8)),
    "shuffle, twice": lambda s, x: shuffle(s, x, ("N", 36, 8), reshape=(-1, 8, 36), second_transpose=(0, 2, 1)),
    "concatenation": concatenation,
    "slice": lambda s, x: cut(s, x, ("N", 8, 3, 2), s.sizes(x, "N", 8, 3, 2), start=(0, 0, 1, 5), stride=(1, 1, 2, -3)),
    "slice, zeros around": lambda s, x: cut(
        s, x, ("N", 8, 8, 7), s.sizes(x, "N", 8, 8, 7), start=(0, 0, -1, -1), mode="fill"
    ),
    "slice of a constant": lambda s, x: elementwise(
        s, x, cut(s, s.constant(s.random(1, 8, 6, 8)), (1, 8, 6, 6), size=(1, 8, 6, 6), start=(0, 0, 0, 2)), "sum"
    ),
    "slice, size by int32 index": lambda s, x: expanded(s, x, torch.int32),
    "slice, size by int64 index": lambda s, x: expanded(s, x, torch.int64),
    "slice, size 4*N": lambda s, x: shuffle(
        s, expanded(s, x, torch.int32, "4*N"), ("N", 32, 6, 6), reshape=(-1, 32, 6, 6)
    ),
    "slice, size 8*N": merged_batch,
    **{
        f"resize {mode} {coordinates}{' by size' if by_size else ''}": (
            lambda s, x, mode=mode, coordinates=coordinates, by_size=by_size: resize(s, x, mode, coordinates, by_size)
        )
        for mode, coordinates in (
            ("nearest", "asymmetric"),
            ("linear", "half_pixel"),
            ("linear", "align_corners"),
            ("cubic", "half_pixel"),
        )
        for by_size in (False, True)
    },
    "normalization": layer_norm,
    "matrix_multiply": product,
    "matrix_multiply with itself": lambda s, x: s.add(
        described.MatrixMultiply, (x, x), ("N", 8, 6, 6), transpose_a=True, transpose_b=False
    ),
    "scale": scale,
    "select": select,
    "select by a constant": masked,
    "cast and back": lambda s, x: s.cast(s.cast(x, "int32"), "float32"),
    "half float16": half("float16"),
    "half bfloat16": half("bfloat16"),
}


def described_case(name: str) -> tuple[Network, dict[str, torch.Tensor]]:
    """Describe a case; its parity sample is from the interpreter, which shares no code with the engine."""
    sketch = Sketch()
    network, weights = sketch.finish(CASES[name](sketch, sketch.input))
    tolerance = {"half float16": 2e-2, "half bfloat16": 1e-1}.get(name, 1e-4)
    network = network.model_copy(update={"parity": network.parity.model_copy(update={"tolerance": tolerance})})
    weights["parity.out"] = Interpreter(network, weights)(weights["parity.in"])
    return network, weights


@pytest.mark.parametrize("name", CASES)
def test_every_layer_is_built(name: str) -> None:
    warnings: list[str] = []
    plan = build_engine(*described_case(name), log=warnings.append)
    assert len(plan) > 1000
    assert warnings == []


def test_the_cases_have_every_layer_and_operation() -> None:
    made: dict[str, set[Any]] = {name: set() for name in described.TYPES}
    for name in CASES:
        for layer in described_case(name)[0].layers:
            made[layer.type].add(getattr(layer, "operation", None))
    assert all(made.values()), made
    for kind in (described.Activation, described.Unary, described.Elementwise, described.Reduce, described.TopK):
        operations = kind.model_fields["operation"].annotation.__args__
        assert made[kind.model_fields["type"].default] == set(operations)


# --- the definition, read back from TensorRT


def definition_of(network: Network, weights: dict[str, torch.Tensor]) -> Any:
    """Define a network without building it, and return TensorRT's own object."""
    with collect_messages(trt) as messages:
        builder = trt.Builder(logger(trt))
        definition = Definition(trt, create_network(trt, builder), weights)
        define(definition, network, messages)
    return SimpleNamespace(target=definition.target, alive=(builder, definition))


def layer_of(name: str, kind: str, class_name: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the only layer of a kind of a case as TensorRT has it, and the description's weights."""
    network, weights = described_case(name)
    defined = definition_of(network, weights)
    position = next(number for number, layer in enumerate(network.layers) if layer.type == kind)
    layer = defined.target.get_layer(position)
    assert layer.name == network.layers[position].name
    class_name = class_name or f"I{kind.title().replace('_', '')}Layer"
    layer.__class__ = getattr(trt, class_name)  # TensorRT's way to a layer's parameters
    return SimpleNamespace(layer=layer, alive=defined), weights


def test_deconvolutions_arrive_as_they_are_described() -> None:
    found, weights = layer_of("deconvolution, lopsided", "deconvolution")
    layer = found.layer
    assert (layer.kernel == weights["deconvolution_1.kernel"].numpy().ravel()).all()
    assert (layer.bias == weights["deconvolution_1.bias"].numpy()).all()
    assert (tuple(layer.pre_padding), tuple(layer.post_padding)) == ((1, 1), (0, 0))
    assert tuple(layer.stride_nd) == (2, 2)
    assert layer_of("deconvolution, groups", "deconvolution")[0].layer.num_groups == 4


def test_convolutions_arrive_as_they_are_described() -> None:
    found, weights = layer_of("convolution, lopsided", "convolution")
    layer = found.layer
    assert (layer.kernel == weights["convolution_1.kernel"].numpy().ravel()).all()
    assert (layer.bias == weights["convolution_1.bias"].numpy()).all()
    assert (tuple(layer.pre_padding), tuple(layer.post_padding)) == ((0, 2), (2, 0))
    assert tuple(layer_of("convolution, stride", "convolution")[0].layer.stride_nd) == (2, 1)
    assert tuple(layer_of("convolution, dilation", "convolution")[0].layer.dilation_nd) == (2, 2)
    assert layer_of("convolution, groups", "convolution")[0].layer.num_groups == 4
    assert len(layer_of("convolution, no bias", "convolution")[0].layer.bias) == 0


def test_other_layers_arrive_as_they_are_described() -> None:
    found, weights = layer_of("scale", "scale")
    assert (found.layer.scale == weights["scale_1.scale"].numpy()).all()
    assert (found.layer.shift == weights["scale_1.shift"].numpy()).all()
    assert (len(found.layer.power), found.layer.channel_axis) == (0, 1)
    pooling = layer_of("pooling average", "pooling")[0].layer
    assert (pooling.type, pooling.average_count_excludes_padding) == (trt.PoolingType.AVERAGE, False)
    clip = layer_of("activation clip", "activation")[0].layer
    assert (clip.type, clip.alpha, clip.beta) == (trt.ActivationType.CLIP, -0.5, pytest.approx(0.7))
    norm = layer_of("normalization", "normalization")[0].layer
    assert (norm.epsilon, norm.axes) == (pytest.approx(1e-6), 1 << 3)
    shuffle = layer_of("shuffle, twice", "shuffle")[0].layer
    assert (tuple(shuffle.reshape_dims), list(shuffle.second_transpose)[:3]) == ((-1, 8, 36), [0, 2, 1])
    assert not shuffle.zero_is_placeholder
    cut = layer_of("slice, zeros around", "slice")[0].layer
    assert (cut.mode, tuple(cut.start), tuple(cut.stride)) == (trt.SampleMode.FILL, (0, 0, -1, -1), (1, 1, 1, 1))
    resize = layer_of("resize cubic half_pixel", "resize")[0].layer
    assert (resize.resize_mode, list(resize.scales)) == (trt.InterpolationMode.CUBIC, [1, 1, 2, 2])
    assert resize.coordinate_transformation == trt.ResizeCoordinateTransformation.HALF_PIXEL
    assert resize.cubic_coeff == -0.75
    product = layer_of("matrix_multiply", "matrix_multiply")[0].layer
    assert (product.op0, product.op1) == (trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE)
    assert layer_of("softmax", "softmax", "ISoftMaxLayer")[0].layer.axes == 1 << 1
    reduce = layer_of("reduce avg, kept", "reduce")[0].layer
    assert (reduce.op, reduce.axes, reduce.keep_dims) == (trt.ReduceOperation.AVG, 0b1100, True)


def test_weights_in_another_memory_order_arrive_in_theirs() -> None:
    network, weights = described_case("convolution")
    kernel = weights["convolution_1.kernel"]
    weights["convolution_1.kernel"] = kernel.contiguous(memory_format=torch.channels_last)
    defined = definition_of(network, weights)
    layer = defined.target.get_layer(0)
    layer.__class__ = trt.IConvolutionLayer
    assert (layer.kernel == kernel.flatten().numpy()).all()


def test_bfloat16_weights_arrive_as_bfloat16() -> None:
    network, weights = described_case("half bfloat16")
    defined = definition_of(network, weights)
    layer = defined.target.get_layer(1)
    layer.__class__ = trt.IConvolutionLayer
    kernel = layer.kernel  # numpy has no bfloat16, so TensorRT returns its own Weights
    assert (kernel.dtype, kernel.size) == (trt.DataType.BF16, 288)
    assert weights["convolution_2.kernel"].dtype == torch.bfloat16


def test_tf32_is_off_unless_asked_for() -> None:
    network, _ = described_case("convolution")
    builder = trt.Builder(logger(trt))
    for tf32 in (False, True):
        config = engine._config(trt, builder, network, tf32, ())
        assert config.get_flag(trt.BuilderFlag.TF32) is tf32
        assert config.num_optimization_profiles == 1


# --- nets


def flat(function: Callable[[torch.Tensor], torch.Tensor]) -> Wrapped:
    """Return a function as a net with an output (N, K), as all that is deployed has."""
    return Wrapped(lambda x: function(x).reshape(x.shape[0], -1))


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_the_converter_makes_of_an_operator_is_built(name: str) -> None:
    torch.manual_seed(0)
    build_engine(*convert(flat(OPERATIONS[name]), torch.randn(2, 6, 9, 6), precision="fp16"))


QUICK = (("GeM_ResNet_AVP resnet34", "fp16"), ("mobilenet_v3_small", "fp32"), ("shufflenet_v2_x0_5", "fp32"))


@pytest.mark.parametrize(("row", "precision"), slow_but(QUICK, ROWS))
def test_every_family_is_built(row: str, precision: str) -> None:
    net, side = lively_net(row)
    network, weights = convert(net, inputs_of(row, 2, side), precision=precision)
    plan = build_engine(network, weights)
    used = {name for layer in network.layers for name in layer.weights.values()}
    assert len(plan) > 0.9 * sum(weights[name].nbytes for name in used)  # the weights are in it


def test_a_uint8_input_is_cast_first() -> None:
    s = Sketch(("N", 6, 6, 3), "uint8")
    x = shuffle(s, s.cast(s.input, "float32"), ("N", 3, 6, 6), first_transpose=(0, 3, 1, 2))
    build_engine(*s.finish(x))


# --- refusals


def ranks(s: Sketch) -> Tensor:
    return elementwise(s, s.input, s.constant(torch.ones(6)), "sum")


def dtypes(s: Sketch) -> Tensor:
    return elementwise(s, s.input, s.constant(torch.ones(1, 1, 1, 6).half()), "sum")


def leaves(s: Sketch) -> Tensor:
    return cut(s, s.input, ("N", 8, 8, 6), s.sizes(s.input, "N", 8, 8, 6))


def wrong_dtype(s: Sketch) -> Tensor:
    return s.add(described.Activation, (s.input,), s.input.shape, "float16", operation="relu")


def wrong_shape(s: Sketch) -> Tensor:
    return s.add(described.Activation, (s.input,), ("N", 8, 6, 7), operation="relu")


def fixed_batch(s: Sketch) -> Tensor:
    return s.add(described.Concatenation, (s.input, s.constant(torch.ones(1, 8, 6, 6))), ("N", 16, 6, 6), axis=1)


def far_axis(s: Sketch) -> Tensor:
    return s.add(described.Softmax, (s.input,), s.input.shape, axis=10**12)


def far_permutation(s: Sketch) -> Tensor:
    return shuffle(s, s.input, ("N", 8, 6, 6), first_transpose=(0, 1, 2, 9))


def huge_number(s: Sketch) -> Tensor:
    return cut(s, s.input, ("N", 8, 6, 6), s.sizes(s.input, "N", 8, 6, 6), start=(0, 0, 0, 10**30))


def input_as_output(s: Sketch) -> Tensor:
    activation(s, s.input)
    return s.input


def integers(s: Sketch) -> Tensor:
    return s.cast(unary(s, s.cast(s.input, "int32"), "exp"), "float32")


REFUSALS = {
    ranks: r'^layer "elementwise_2" \(elementwise\): tensorrt\w* [\d.]+ refuses it: .*x.nbDims == y.nbDims',
    dtypes: r'^layer "elementwise_2" \(elementwise\): .* must have same input types.*Float and Half',
    leaves: r'^layer "slice_\d+" \(slice\): tensorrt\w* [\d.]+ refuses it: .*out of bounds access on axis 2',
    wrong_dtype: r'"activation_1" \(activation\): tensor "activation_1.out" is float16 \(-1, 8, 6, 6\) in the '
    r"description, and FLOAT \(-1, 8, 6, 6\) in tensorrt",
    wrong_shape: r'"activation_1" .* is float32 \(-1, 8, 6, 7\) in the description, and FLOAT \(-1, 8, 6, 6\) in tens',
    fixed_batch: r'"concatenation_2" .* is float32 \(-1, 16, 6, 6\) in the description, and FLOAT \(1, 16, 6, 6\) in',
    far_axis: r'^layer "softmax_1" \(softmax\): .*: axis 1000000000000 is over 7$',
    far_permutation: r'^layer "shuffle_1" \(shuffle\): ',
    huge_number: r'^layer "slice_\d+" \(slice\): .*incompatible function arguments',
    input_as_output: r"^the network: .*Tensor can't be both input and output",
    integers: r'^layer "unary_2" \(unary\): .*input has type Int32 but must have type Float',
}


@pytest.mark.parametrize("make", REFUSALS, ids=lambda make: make.__name__)
def test_a_refusal_names_the_layer_and_tensorrts_reason(make: Callable[[Sketch], Tensor]) -> None:
    sketch = Sketch()
    network, weights = sketch.finish(make(sketch))
    with pytest.raises(DescriptionError, match=REFUSALS[make]) as caught:
        build_engine(network, weights)
    assert "cudaError" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_refusals() -> None:
    s = Sketch(("N", 6, 6, 3), "uint8")
    x = s.cast(shuffle(s, s.input, ("N", 3, 6, 6), first_transpose=(0, 3, 1, 2)), "float32")
    with pytest.raises(DescriptionError, match=r'layer "shuffle_1" \(shuffle\): .* has type UInt8 but must have type'):
        build_engine(*s.finish(x))
    network, weights = described_case("convolution")
    profile = described.Profile(min=1, best=2, max=10**30)
    with pytest.raises(DescriptionError, match=r"^the builder's settings: tensorrt\w* [\d.]+ refuses it: "):
        build_engine(network.model_copy(update={"profile": profile}), weights)
    with pytest.raises(DescriptionError, match=r"profile: min 4, best 2, max 1"):
        profile = described.Profile(min=4, best=2, max=1)
        build_engine(network.model_copy(update={"profile": profile}), weights)
    with pytest.raises(DescriptionError, match=r'kernel "convolution_1.kernel" is not in the weights file'):
        build_engine(network, {name: weights[name] for name in weights if "kernel" not in name})


def test_an_enumeration_that_lacks_a_member_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        def __getattr__(self, name: str) -> Any:
            return SimpleNamespace(RELU=0) if name == "ActivationType" else getattr(trt, name)

    older = Older()
    monkeypatch.setattr(engine, "load_library", lambda: older)
    with pytest.raises(DescriptionError, match=r'"activation_1" \(activation\): .*: it has no ActivationType.GELU_ERF'):
        build_engine(*described_case("activation gelu_erf"))


def test_warnings_reach_the_log() -> None:
    s = Sketch()
    constant = cut(s, s.constant(torch.ones(1, 8, 6, 6)), (1, 8, 6, 6), size=(1, 8, 6, 6))
    warnings: list[str] = []
    network, weights = s.finish(constant)
    build_engine(network, weights | {"parity.out": torch.ones(1, 8, 6, 6)}, log=warnings.append)
    assert any("images" in text for text in warnings), warnings  # an input that nothing needs


@pytest.mark.skipif(trt.__name__ != "tensorrt_rtx", reason="tensorrt builds for the GPU of its machine alone")
def test_compute_capabilities() -> None:
    case = described_case("convolution")
    assert len({build_engine(*case, compute_capabilities=chosen) for chosen in (("7.5",), ("8.9", "12.0"))}) == 2
    with pytest.raises(DescriptionError, match=r"compute capability 9.9: it knows 7.5, .*12.0"):
        build_engine(*case, compute_capabilities=("8.9", "9.9"))


# --- libraries


def test_tensorrt_comes_first_and_a_broken_one_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    found, wanted = ModuleType("found"), []

    def import_module(name: str) -> ModuleType:
        wanted.append(name)
        if name == "tensorrt":
            raise ImportError("libnvinfer.so.10: cannot open shared object file\nmore")
        return found

    monkeypatch.setattr(importlib, "import_module", import_module)
    assert load_library() is found
    assert wanted == ["tensorrt", "tensorrt_rtx"]
    monkeypatch.setattr(importlib, "import_module", lambda name: ModuleType(name))
    assert load_library().__name__ == "tensorrt"


def test_without_a_library_both_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def miss(name: str) -> Any:
        if name == "tensorrt":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", miss)
    assert main(["--device_info"]) == 2
    assert capsys.readouterr().err == (
        "python -m pytorch2json.engine: neither tensorrt nor tensorrt_rtx can be imported; install tensorrt-rtx-cu13, "
        "which builds engines without a GPU, or tensorrt (tensorrt_rtx fails with: libcudart.so.13: cannot open shared "
        "object file)\n"
    )


def test_a_library_that_cannot_build_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Standard:  # tensorrt on a machine without a GPU
        __name__, __version__ = "tensorrt", "10.9.0"

        def __getattr__(self, name: str) -> Any:
            return getattr(trt, name)

        def Builder(self, logger: Any) -> Any:
            logger.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    standard = Standard()
    monkeypatch.setattr(engine, "load_library", lambda: standard)
    message = r"^tensorrt 10.9.0 cannot build on this machine: CUDA initialization failure with error: 35; tensorrt-rtx"
    with pytest.raises(DescriptionError, match=message):
        build_engine(*described_case("convolution"))


def test_device_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device_info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 80
    rows: dict[str, str] = {}
    name = ""
    for line in lines:  # the first 13 columns name the row; a long one goes on below
        name = line[:13].strip() or name
        rows[name] = f"{rows.get(name, '')} {line[13:]}".strip()
    assert rows["library"] == f"{trt.__name__} {trt.__version__}"
    assert rows["CUDA device"] == "none"
    assert rows["runs here"] == f"no: torch {torch.__version__} sees no CUDA GPU"
    assert "compute capability 8.0" in rows["builds for"] or trt.__name__ == "tensorrt"


def test_spaces_between_compute_capabilities_are_no_part_of_them(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def write(description: str, output: str, tf32: bool, capabilities: Sequence[str], log: Any) -> dict[str, Any]:
        seen.append(capabilities)
        return {"bytes": 1, "library": "x", "version": "1"}

    monkeypatch.setattr(engine, "write_engine", write)
    flags = ["--description", str(files / "model.json"), "--output", str(files / "x.engine")]
    assert main([*flags, "--compute_capabilities", " 8.9, 12.0 ,"]) == 0
    assert seen == [("8.9", "12.0")]


def test_the_interpreter_names_its_input() -> None:
    network, weights = described_case("convolution")
    interpreter = Interpreter(network, weights)
    images = weights["parity.in"]
    message = r'^input "images" is a torch tensor, got numpy.ndarray; torch.from_numpy makes one$'
    with pytest.raises(DescriptionError, match=message):
        interpreter(images.numpy())
    with pytest.raises(DescriptionError, match=r'^input "images" is float32 .*, got float32 \(\)$'):
        interpreter(torch.tensor(1.0))


# --- files and the command line


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder with model.json, its weights and model.engine."""
    write_description(tmp_path / "model.json", *described_case("convolution"))
    write_engine(tmp_path / "model.json", tmp_path / "model.engine")
    return tmp_path


def test_the_engine_carries_the_metadata(files: Path) -> None:
    names = {"model.json", "model.safetensors", "model.engine", "model.engine.facts.json"}
    assert {path.name for path in files.iterdir()} == names
    plan, metadata = read_engine(files / "model.engine")
    assert plan == (files / "model.engine").read_bytes()
    info = metadata.pop("engine")
    assert metadata == {"class_names": ["a", "猫"]}
    assert (info["library"], info["version"], info["bytes"]) == (trt.__name__, trt.__version__, len(plan))
    assert info["tf32"] is False


def test_what_does_not_belong_together_is_refused(files: Path) -> None:
    path, metadata = files / "model.engine", files / "model.engine.facts.json"
    good_plan, good_metadata = path.read_bytes(), metadata.read_bytes()
    path.write_bytes(good_plan[:-1] + b"x")
    with pytest.raises(
        DescriptionError, match=r"model.engine: not the engine of model.engine.facts.json: sha256 \w{12}"
    ):
        EngineRunner(path)
    path.write_bytes(good_plan)
    for text in (b"[]", b"{}", b"\xff", b'{"engine": 3}', b'{"engine": "sha256"}', b"[" * 100_000):
        metadata.write_bytes(text)
        with pytest.raises(DescriptionError, match=r"facts.json: it does not hold the metadata of an engine"):
            EngineRunner(path)
    metadata.write_bytes(b'{"engine": {"sha256": 3}}')
    with pytest.raises(DescriptionError, match=r"model.engine: not the engine of"):
        EngineRunner(path)
    metadata.unlink()
    with pytest.raises(DescriptionError, match=r"facts.json: cannot read it: No such file"):
        EngineRunner(path)
    metadata.write_bytes(good_metadata)
    path.unlink()
    with pytest.raises(DescriptionError, match=r"model.engine: cannot read it: No such file"):
        EngineRunner(path)


def test_a_failure_leaves_the_old_engine(files: Path) -> None:
    before = (files / "model.engine").read_bytes()
    sketch = Sketch()
    write_description(files / "model.json", *sketch.finish(leaves(sketch)))
    with pytest.raises(DescriptionError, match=r'model.json: layer "slice_\d+" .*out of bounds'):
        write_engine(files / "model.json", files / "model.engine")
    assert (files / "model.engine").read_bytes() == before
    read_engine(files / "model.engine")


def test_the_command_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "model.engine").unlink()
    flags = ["--description", str(files / "model.json"), "--output", str(files / "deep" / "other.engine")]
    assert main([*flags, "--tf32"]) == 0
    assert capsys.readouterr().out.endswith(f"bytes, built by {trt.__name__} {trt.__version__}\n")
    assert read_engine(files / "deep" / "other.engine")[1]["engine"]["tf32"] is True
    for wrong, text in (
        ([], "name the description with --description and the engine with --output"),
        (["--description", "x.json"], "name the description with --description and the engine with --output"),
        (["--device_info", "--check"], "--check needs --description and --output"),
        (
            ["--description", "none.json", "--output", "x.engine"],
            "none.json: cannot read it: No such file or directory",
        ),
        ([*flags[:3], "model.json"], 'model.json: the name of an engine must end in ".engine"'),
        ([*flags[:3], f"{files}/model.json/x.engine"], "model.json/x.engine: cannot write it: "),
    ):
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith("python -m pytorch2json.engine: ")
        assert text in error
        assert error.count("\n") == 1


def test_help_is_quick() -> None:
    start = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "pytorch2json.engine", "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0
    assert "--device_info" in run.stdout
    assert not {" torch", " tensorrt", " tensorrt_rtx"} & {line.rpartition("|")[2] for line in run.stderr.splitlines()}
    assert time.perf_counter() - start < 5  # under a second on a machine that does nothing else


# --- running


def test_without_a_gpu_a_runner_names_the_other_files(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "model.engine: an engine runs only on a CUDA GPU, and {}; model.onnx and model.json run on the CPU"
    with pytest.raises(DescriptionError) as caught:
        EngineRunner(files / "model.engine", "cpu")
    assert message.format('"cpu" is none') in str(caught.value)
    with pytest.raises(DescriptionError, match=r'model.engine: "gpu" is not a device; name cuda or cuda:N'):
        EngineRunner(files / "model.engine", "gpu")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(DescriptionError, match=r'"cuda:2" is not there; torch sees cuda:0 to cuda:1'):
            EngineRunner(files / "model.engine", "cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DescriptionError) as caught:
        verify_parity(files / "model.engine", files / "model.json")
    assert message.format(f"torch {torch.__version__} sees none") in str(caught.value)


@pytest.fixture
def no_cuda_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a runner take the CPU for its GPU."""
    monkeypatch.setattr(engine_runner, "_cuda_device", lambda path, device: torch.device("cpu"))
    monkeypatch.setattr(engine_runner, "_on", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))


@pytest.mark.usefixtures("no_cuda_needed")
def test_an_engine_of_another_kind_is_refused_with_tensorrts_reason(files: Path) -> None:
    path, metadata = files / "model.engine", files / "model.engine.facts.json"
    path.write_bytes(b"x" * 1000)
    values = json.loads(metadata.read_text(encoding="utf-8"))
    values["engine"] |= {"version": "1.2.3", "sha256": hashlib.sha256(b"x" * 1000).hexdigest()}
    metadata.write_text(json.dumps(values), encoding="utf-8")
    message = (
        rf"model.engine: built by {trt.__name__} 1.2.3, and {trt.__name__} {trt.__version__} cannot load it: .*magicTag"
    )
    with pytest.raises(DescriptionError, match=message):
        EngineRunner(path)


class StandIn:
    """TensorRT's runtime replaced by the interpreter, through the same calls and the same bare addresses.

    It shows that shapes, dtypes, addresses and the profile go where they should, on a machine without a GPU.
    """

    __name__, __version__ = "stand_in", "0"

    def __init__(self, network: Network, weights: dict[str, torch.Tensor]) -> None:
        self.interpreter = Interpreter(network, weights)
        self.network = network
        self.parity_scale = float(weights["parity.out"].max())
        self.fails = False
        self.addresses: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(trt, name)

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: StandInEngine(self))


class StandInEngine:
    num_io_tensors = 2

    def __init__(self, library: StandIn) -> None:
        self.library = library
        self.shape: tuple[int, ...] = ()
        self.tensors = {tensor.name: tensor for tensor in (*library.network.outputs, *library.network.inputs)}
        self.bound: dict[str, int] = {}

    def create_execution_context(self) -> Any:
        return self

    def get_tensor_name(self, number: int) -> str:
        return list(self.tensors)[number]

    def get_tensor_mode(self, name: str) -> Any:
        return trt.TensorIOMode.INPUT if name == "images" else trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(trt.DataType, DTYPES[self.tensors[name].dtype])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        profile = self.library.network.profile
        return [self.tensors[name].shape_at(size) for size in (profile.min, profile.best, profile.max)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape_at(self.shape[0]) if self.shape else dims(self.tensors[name])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "images"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.bound[name] = address
        self.library.addresses.append(address)
        return name in self.tensors

    def execute_async_v3(self, stream: int) -> bool:
        if stream != 77 or self.library.fails:
            logger(self.library).log(trt.ILogger.ERROR, "the device is lost")
            return False
        self.view("logits").copy_(self.library.interpreter(self.view("images")))
        return True

    def view(self, name: str) -> torch.Tensor:
        """Return the memory at a bound address as a tensor."""
        shape, dtype = self.get_tensor_shape(name), getattr(torch, self.tensors[name].dtype)
        memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(self.bound[name])
        return torch.frombuffer(memory, dtype=dtype).view(shape)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_cuda_needed: None) -> Iterator[tuple[StandIn, Path]]:
    """Yield the stand-in and a folder with model.json and model.engine of a net whose output is named logits."""
    s = Sketch()
    x = activation(s, s.input)
    s.layers[-1] = s.layers[-1].model_copy(update={"outputs": (x.model_copy(update={"name": "logits"}),)})
    network, weights = s.finish(s.layers[-1].outputs[0])
    weights["parity.out"] = weights["parity.in"].relu()
    network = write_description(tmp_path / "model.json", network, weights)
    write_engine(tmp_path / "model.json", tmp_path / "model.engine")
    library = StandIn(network, weights)
    monkeypatch.setattr(engine_runner, "load_library", lambda: library)
    yield library, tmp_path


def test_a_runner_passes_on_what_it_gets(stand_in: tuple[StandIn, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    library, folder = stand_in
    monkeypatch.setattr(engine_runner, "ALIGNMENT", 64)  # what torch's memory has on the CPU
    runner = EngineRunner(folder / "model.engine")
    assert (runner.min_batch, runner.max_batch, runner.shape) == (1, 4, (-1, 8, 6, 6))
    images = torch.randn(5, 8, 6, 6)
    askew = torch.randn(1 + 288)[1:].view(1, 8, 6, 6)  # begins 4 bytes behind an aligned address
    for chosen in (images[:4], images[1:4], images[2:3], images[:2].transpose(2, 3), askew):
        assert torch.equal(runner(chosen), chosen.relu())
    assert len(library.addresses) == 10
    assert all(address % 64 == 0 for address in library.addresses)


def test_a_runner_refuses_what_does_not_fit(stand_in: tuple[StandIn, Path]) -> None:
    library, folder = stand_in
    runner = EngineRunner(folder / "model.engine")
    for images, message in (
        (torch.zeros(5, 8, 6, 6), r"model.engine: built for batches of 1 to 4 images, got 5$"),
        (torch.zeros(0, 8, 6, 6), r"built for batches of 1 to 4 images, got 0$"),
        (torch.zeros(1, 8, 6, 5), r"its input is float32 \(N, 8, 6, 6\), got float32 \(1, 8, 6, 5\)$"),
        (torch.zeros(1, 8, 6, 6).half(), r"its input is float32 \(N, 8, 6, 6\), got float16 \(1, 8, 6, 6\)$"),
        (torch.tensor(1.0), r"its input is float32 \(N, 8, 6, 6\), got float32 \(\)$"),
    ):
        with pytest.raises(DescriptionError, match=message):
            runner(images)
    library.fails = True
    with pytest.raises(DescriptionError, match=r"model.engine: it failed on cpu: the device is lost$"):
        runner(torch.zeros(1, 8, 6, 6))


def test_parity_is_verified(stand_in: tuple[StandIn, Path], capsys: pytest.CaptureFixture[str]) -> None:
    library, folder = stand_in
    path, description = folder / "model.engine", folder / "model.json"
    assert verify_parity(path, description) == 0
    library.interpreter = Wrapped(lambda x: x.relu() + 0.01)  # type: ignore[assignment]
    error = f"{0.01 / library.parity_scale:.2e}"
    with pytest.raises(DescriptionError, match=rf"relative error {error} on the parity sample, allowed is 1e-04"):
        verify_parity(path, description)
    library.interpreter = Wrapped(lambda x: x * torch.nan)  # type: ignore[assignment]
    with pytest.raises(DescriptionError, match=r"relative error nan on the parity sample"):
        verify_parity(path, description)
    description.write_text(description.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(DescriptionError, match=r"model.engine: it was not built from .*model.json; build it again"):
        verify_parity(path, description)


def verify_on_gpu(folder: Path, network: Network, weights: dict[str, torch.Tensor]) -> None:
    """Build, run and compare with the parity sample, directly and from a CUDA graph."""
    write_description(folder / "model.json", network, weights)
    write_engine(folder / "model.json", folder / "model.engine")
    verify_parity(folder / "model.engine", folder / "model.json")
    images = weights[network.parity.input]
    plain, graph = (EngineRunner(folder / "model.engine", cuda_graph=cuda_graph) for cuda_graph in (False, True))
    for _ in range(3):
        torch.testing.assert_close(graph(images), plain(images), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@needs_gpu
def test_every_layer_runs(tmp_path: Path) -> None:
    for name in CASES:
        verify_on_gpu(tmp_path, *described_case(name))


@pytest.mark.gpu
@needs_gpu
def test_what_the_converter_makes_of_operators_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for function in OPERATIONS.values():
        verify_on_gpu(tmp_path, *convert(flat(function), torch.randn(2, 6, 9, 6)))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("row", "precision"), ROWS)
def test_every_family_runs(row: str, precision: str, tmp_path: Path) -> None:
    net, side = lively_net(row)
    images = inputs_of(row, 9, side)
    verify_on_gpu(tmp_path, *convert(net, images[:2], precision=precision))
    runner = EngineRunner(tmp_path / "model.engine")
    with torch.no_grad():
        expected = net(images)
    tolerance = {"fp32": 1e-4, "fp16": 2e-2}[precision]
    for count in (1, 3, 9):
        error = (runner(images[:count]).cpu() - expected[:count]).abs().max() / expected[:count].abs().max()
        assert error < tolerance
