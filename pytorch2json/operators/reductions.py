"""Reductions along axes."""

from __future__ import annotations

from typing import Any

import torch

from pytorch2json import network
from pytorch2json.graph import Builder, Value
from pytorch2json.network import DescriptionError
from pytorch2json.operators.operands import HALF, Sizes, as_float32, narrowed


def reduce(
    b: Builder, x: Value, axes: Sizes | int | None = None, keep: bool = False, *, operation: str, **_: Any
) -> Value:
    """A mean, sum, max or min over axes; none named: over all."""
    rank = len(x.shape)
    named = (axes,) if isinstance(axes, int) else tuple(axes or range(rank))
    wide = as_float32(b, x) if operation in ("avg", "sum") else x
    step = "wide" if wide.dtype != b.dtype else ""
    y = b.add(
        network.Reduce,
        (wide,),
        step=step,
        operation=operation,
        axes=tuple(sorted(axis % rank for axis in named)),
        keep_dims=keep,
    )
    return narrowed(b, y)


def vector_norm(
    b: Builder, x: Value, order: float = 2, axes: Sizes | None = None, keep: bool = False, **_: Any
) -> Value:
    """The Euclidean length along axes."""
    if order != 2 or axes is None:
        raise DescriptionError(f"a vector norm of order {order}")
    wide = as_float32(b, x)
    squares = b.add(network.Elementwise, (wide, wide), x.shape, step="squares", operation="prod")
    named = tuple(sorted(axis % len(x.shape) for axis in axes))
    total = b.add(network.Reduce, (squares,), step="sum", operation="sum", axes=named, keep_dims=keep)
    return narrowed(b, b.add(network.Unary, (total,), step="wide" if b.dtype in HALF else "", operation="sqrt"))


def softmax(b: Builder, x: Value, axis: int, *_: Any, logarithm: bool = False) -> Value:
    """Softmax, or its logarithm, in float32."""
    plain = b.dtype not in HALF and not logarithm
    y = b.add(network.Softmax, (as_float32(b, x),), step="" if plain else "softmax", axis=axis % len(x.shape))
    if logarithm:
        y = b.add(network.Unary, (y,), step="wide" if b.dtype in HALF else "", operation="log")
    return narrowed(b, y)


def argmax(b: Builder, x: Value, axis: int | None = None, keep_axis: bool = False) -> Value:
    """The index of the largest value along an axis."""
    if axis is None:
        raise DescriptionError("an argmax over all axes, the batch's too")
    axis %= len(x.shape)
    if x.dtype in HALF:  # a class's index must not be rounded
        x = b.cast(x, torch.float32)
    shape = [1 if number == axis else size for number, size in enumerate(x.shape)]
    indices = b.topk(x, shape, operation="max", k=1, axis=axis)[1]
    return b.cast(b.reshaped(indices, b.shape), b.dtype)


def topk(b: Builder, x: Value, k: int, axis: int = -1, largest: bool = True, *_: Any) -> tuple[Value, Value]:
    """The k largest or smallest values, best first, and their indices."""
    return b.topk(x, b.shape, operation="max" if largest else "min", k=k, axis=axis % len(x.shape))
