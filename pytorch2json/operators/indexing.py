"""Selection, order, shape and repetition of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pytorch2json import network
from pytorch2json.graph import Builder, Constant, Value, reshape_of, shape_of
from pytorch2json.network import DescriptionError, Size
from pytorch2json.operators.operands import Operand, Sizes, static_size


def gather(b: Builder, x: Operand, axis: int, index: Operand, *_: Any) -> Value:
    """One value an index along an axis."""
    data, indices = b.value(x), _indices(b, index)
    return b.add(network.Gather, (data, indices), mode="element", axis=axis % len(data.shape))


def index(b: Builder, x: Operand, indices: Sequence[Operand | None]) -> Value:
    """x[..., indices, ...] with one tensor of indices."""
    places = [place for place, one in enumerate(indices) if one is not None]
    if len(places) != 1:
        raise DescriptionError("an index by several tensors at once")
    chosen = indices[places[0]]
    assert chosen is not None
    return b.add(network.Gather, (b.value(x), _indices(b, chosen)), mode="default", axis=places[0])


def index_select(b: Builder, x: Operand, axis: int, chosen: Operand) -> Value:
    """Slices along an axis."""
    return b.add(network.Gather, (b.value(x), _indices(b, chosen)), mode="default", axis=axis % len(b.shape))


def select(b: Builder, x: Value, axis: int, position: int) -> Value:
    """One slice; its axis disappears."""
    axis %= len(x.shape)
    size = x.shape[axis]
    if not isinstance(size, int):
        raise DescriptionError("one image picked out of the batch")
    chosen = Constant(torch.tensor(position % size, dtype=torch.int32), torch.int32, f"number.{position % size}")
    return b.add(network.Gather, (x, b.value(chosen)), mode="default", axis=axis)


def roll(b: Builder, x: Value, shifts: Sizes, axes: Sizes) -> Value:
    """A cyclic shift: each axis gathered in its shifted order."""
    moves = [(axis % len(x.shape), shift) for shift, axis in zip(shifts, axes, strict=True) if shift]
    for number, (axis, shift) in enumerate(moves, 1):
        order = torch.arange(static_size(x.shape[axis]), dtype=torch.int32).roll(shift)
        chosen = b.value(Constant(order, torch.int32))
        step = "" if number == len(moves) else f"axis_{axis}"
        x = b.add(network.Gather, (x, chosen), x.shape, step=step, mode="default", axis=axis)
    return x


def flip(b: Builder, x: Value, axes: Sizes) -> Value:
    """Axes in reverse order."""
    for number, axis in enumerate((axis % len(x.shape) for axis in axes), 1):
        order = torch.arange(static_size(x.shape[axis]) - 1, -1, -1, dtype=torch.int32)
        step = "" if number == len(axes) else f"axis_{axis}"
        operands = (x, b.value(Constant(order, torch.int32)))
        x = b.add(network.Gather, operands, x.shape, step=step, mode="default", axis=axis)
    return x


def permute(b: Builder, x: Value, order: Sizes) -> Value:
    """Axes in another order."""
    return b.add(network.Shuffle, (x,), first_transpose=tuple(axis % len(order) for axis in order))


def transpose(b: Builder, x: Value, one: int, other: int) -> Value:
    """Two axes exchanged."""
    order = list(range(len(x.shape)))
    order[one], order[other] = order[other], order[one]
    return permute(b, x, order)


def reshape(b: Builder, x: Value, *_: Any) -> Value:
    """view, reshape, flatten, squeeze and unsqueeze: the result's shape decides."""
    return x if x.shape == b.shape else b.add(network.Shuffle, (x,), reshape=reshape_of(b.shape))


def concatenation(b: Builder, parts: Sequence[Operand], axis: int = 0) -> Value:
    """Tensors joined along an axis."""
    values = [b.value(part, b.dtype) for part in parts]
    return b.add(network.Concatenation, values, axis=axis % len(b.shape))


def stack(b: Builder, parts: Sequence[Operand], axis: int = 0) -> Value:
    """Tensors joined along a new axis."""
    axis %= len(b.shape)
    shape = tuple(1 if place == axis else size for place, size in enumerate(b.shape))
    values = [b.reshaped(b.value(part, b.dtype), shape) for part in parts]
    return b.add(network.Concatenation, values, axis=axis)


def slices(b: Builder, x: Value, axis: int = 0, start: int | None = None, end: Any = None, step: int = 1) -> Value:
    """x[start:end:step] along an axis."""
    axis %= len(x.shape)
    if x.shape == b.shape:
        return x
    size = static_size(x.shape[axis])
    first = slice(start, None if isinstance(end, str) else end).indices(size)[0]
    return _slice(b, x, {axis: first}, b.shape, {axis: step})


def split(b: Builder, x: Value, _: Any, axis: int = 0) -> tuple[Value, ...]:
    """Consecutive slices along an axis."""
    axis %= len(x.shape)
    parts, start = [], 0
    for meta in b.metas:
        shape = shape_of(meta)
        parts.append(_slice(b, x, {axis: start}, shape, {}))
        start += static_size(shape[axis])
    return tuple(parts)


def unbind(b: Builder, x: Value, axis: int = 0) -> tuple[Value, ...]:
    """All slices of an axis, without it."""
    axis %= len(x.shape)
    chosen = [Constant(torch.tensor(i, dtype=torch.int32), torch.int32, f"number.{i}") for i in range(len(b.metas))]
    return tuple(b.add(network.Gather, (x, b.value(one)), mode="default", axis=axis) for one in chosen)


def pad(b: Builder, x: Value, padding: Sizes, mode: str | float = "constant", value: float | None = None) -> Value:
    """Zeros around the last axes: a slice that begins before the data."""
    if mode not in ("constant", 0, 0.0) or value not in (None, 0, 0.0) or min(padding) < 0:
        raise DescriptionError("a padding with anything but zeros")
    if not any(padding):
        return x
    starts = {len(x.shape) - 1 - place: -before for place, before in enumerate(padding[::2])}
    return _slice(b, x, starts, b.shape, {}, mode="fill")


def expand(b: Builder, x: Operand, *_: Any, **__: Any) -> Value:
    """Axes of size 1 repeated: a slice whose stride is 0 there."""
    value = b.value(x, rank=len(b.shape))
    if value.shape == b.shape:
        return value
    repeated = {axis: 0 for axis, size in enumerate(value.shape) if size == 1 and b.shape[axis] != 1}
    return _slice(b, value, {}, b.shape, repeated)


def filled(b: Builder, sizes: Sizes, value: float = 0.0, *_: Any, **__: Any) -> Value:
    """A tensor of one value, as large as the batch."""
    one = Constant(torch.full((1,) * len(b.shape), value), b.dtype)
    return expand(b, one)


def _slice(
    b: Builder, x: Value, starts: dict[int, int], shape: Sequence[Size], strides: dict[int, int], mode: str = "default"
) -> Value:
    axes = range(len(x.shape))
    parts: dict[str, Any] = {
        "start": tuple(starts.get(axis, 0) for axis in axes),
        "stride": tuple(strides.get(axis, 1) for axis in axes),
        "mode": mode,
    }
    if all(isinstance(size, int) for size in shape):
        return b.add(network.Slice, (x,), shape, size=tuple(shape), **parts)
    return b.add(network.Slice, (x, b.sizes(shape)), shape, size=None, **parts)


def _indices(b: Builder, x: Operand) -> Value:
    """Return indices as int32, which TensorRT takes everywhere."""
    return b.value(x, torch.int32)
