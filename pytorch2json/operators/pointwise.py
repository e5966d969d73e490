"""Functions of each value: activations, arithmetic, comparisons and choices."""

from __future__ import annotations

from typing import Any

import torch

from pytorch2json import network
from pytorch2json.graph import Builder, Constant, Value
from pytorch2json.network import DescriptionError
from pytorch2json.operators.operands import HALF, Operand, as_float32, narrowed


def activation(b: Builder, x: Value, *, operation: str, alpha: float = 0.0, beta: float = 0.0, **_: Any) -> Value:
    """An activation without arguments of its own."""
    return b.add(network.Activation, (x,), operation=operation, alpha=alpha, beta=beta)


def gelu(b: Builder, x: Value, approximate: str = "none") -> Value:
    """GELU (Hendrycks & Gimpel 2016), exact or by tanh."""
    return activation(b, x, operation="gelu_erf" if approximate == "none" else "gelu_tanh")


def hardtanh(b: Builder, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    """min(max(x, low), high); ReLU6 among them."""
    return activation(b, x, operation="clip", alpha=float(low), beta=float(high))


def leaky_relu(b: Builder, x: Value, slope: float = 0.01) -> Value:
    """slope x below 0."""
    return activation(b, x, operation="leaky_relu", alpha=float(slope))


def elu(b: Builder, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    """alpha (e^x - 1) below 0."""
    if (scale, input_scale) != (1, 1):
        raise DescriptionError("a scaled ELU")
    return activation(b, x, operation="elu", alpha=float(alpha))


def gated(b: Builder, x: Value, *, operation: str, alpha: float = 0.0, beta: float = 0.0) -> Value:
    """x times an activation of x: SiLU and hard swish."""
    gate = b.add(network.Activation, (x,), step=operation, operation=operation, alpha=alpha, beta=beta)
    return b.add(network.Elementwise, (x, gate), operation="prod")


def clamp(b: Builder, x: Value, low: float | None = None, high: float | None = None) -> Value:
    """Bounds, each an elementwise max or min."""
    bounds = [(operation, bound) for operation, bound in (("max", low), ("min", high)) if bound is not None]
    for number, (operation, bound) in enumerate(bounds, 1):
        operands = (x, _bound(b, bound, x))
        x = b.add(network.Elementwise, operands, step="" if number == len(bounds) else operation, operation=operation)
    return x


def unary(b: Builder, x: Value, *, operation: str) -> Value:
    """A function of each value, in float32 but for sign and rounding."""
    if operation in ("abs", "neg", "floor", "ceil", "not"):
        return b.add(network.Unary, (x,), operation=operation)
    y = b.add(network.Unary, (as_float32(b, x),), step="wide" if x.dtype in HALF else "", operation=operation)
    return narrowed(b, y)


def rsqrt(b: Builder, x: Value) -> Value:
    """1 / sqrt(x)."""
    root = b.add(network.Unary, (as_float32(b, x),), step="sqrt", operation="sqrt")
    return narrowed(b, b.add(network.Unary, (root,), step="wide" if x.dtype in HALF else "", operation="recip"))


def elementwise(b: Builder, x: Operand, y: Operand, *, operation: str, alpha: float = 1) -> Value:
    """x op (alpha y), on operands of equal dtype and rank."""
    compared = operation in ("equal", "less", "greater")
    dtype = next(value.dtype for value in (x, y) if isinstance(value, Value)) if compared else b.dtype
    left, right = (b.value(value, dtype, len(b.shape)) for value in (x, y))
    if alpha != 1:
        factor = b.value(Constant(torch.tensor(alpha), dtype), rank=len(b.shape))
        right = b.add(network.Elementwise, (right, factor), right.shape, step="scaled", operation="prod")
    return b.add(network.Elementwise, (left, right), b.shape, b.dtype, operation=operation)


def addcmul(b: Builder, x: Operand, y: Operand, z: Operand, value: float = 1) -> Value:
    """x + value y z."""
    rank = len(b.shape)
    addend, left, right = (b.value(operand, b.dtype, rank) for operand in (x, y, z))
    shape = [long if short == 1 else short for short, long in zip(left.shape, right.shape, strict=True)]
    product = b.add(network.Elementwise, (left, right), shape, step="product", operation="prod")
    if value != 1:
        factor = b.value(Constant(torch.tensor(value), b.dtype), rank=rank)
        product = b.add(network.Elementwise, (product, factor), shape, step="scaled", operation="prod")
    return b.add(network.Elementwise, (addend, product), b.shape, b.dtype, operation="sum")


def not_equal(b: Builder, x: Operand, y: Operand) -> Value:
    """x != y."""
    operands = (x, y)
    dtype = next(value.dtype for value in operands if isinstance(value, Value))
    left, right = (b.value(value, dtype, len(b.shape)) for value in operands)
    same = b.add(network.Elementwise, (left, right), b.shape, torch.bool, step="equal", operation="equal")
    return b.add(network.Unary, (same,), operation="not")


def power(b: Builder, x: Operand, exponent: Operand) -> Value:
    """x to the exponent, in float32."""
    left, right = (b.value(value, torch.float32, len(b.shape)) for value in (x, exponent))
    step = "wide" if b.dtype in HALF else ""
    return narrowed(b, b.add(network.Elementwise, (left, right), b.shape, torch.float32, step=step, operation="pow"))


def masked_fill(b: Builder, x: Operand, mask: Operand, fill: Operand) -> Value:
    """`fill` where the mask is true."""
    return where(b, mask, fill, x)


def where(b: Builder, condition: Operand, x: Operand, y: Operand) -> Value:
    """x where the condition is true, else y."""
    rank = len(b.shape)
    return b.add(
        network.Select, (b.value(condition, torch.bool, rank), b.value(x, b.dtype, rank), b.value(y, b.dtype, rank)),
        b.shape, b.dtype,
    )  # fmt: skip


def cast(b: Builder, x: Value, *_: Any, **__: Any) -> Value:
    """To another dtype."""
    return x if x.dtype == b.dtype else b.add(network.Cast, (x,), x.shape, b.dtype)


def same(b: Builder, x: Value, *_: Any, **__: Any) -> Value:
    """x: clone, contiguous and dropout in eval mode change no value."""
    return x


def _bound(b: Builder, number: Operand, like: Value) -> Value:
    """Return a bound; 1e-12 before a division, which half precision rounds to 0, becomes its least normal number."""
    tensor = number.tensor if isinstance(number, Constant) else torch.tensor(number)
    if like.dtype in HALF and float(tensor) > 0:
        tensor = tensor.clamp(min=torch.finfo(like.dtype).tiny)
    return b.value(Constant(tensor, like.dtype), like.dtype, len(like.shape))
