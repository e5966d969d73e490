"""What each ATen operator is in TensorRT's layers. `OPERATORS` names them all; a net with any other is refused.

Every function takes a Builder and the operator's own arguments: Values (they depend on the input), Constants, numbers
and sizes. Half precision follows autocast: normalisation, softmax, powers and exponentials are computed in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pytorch2json import network
from pytorch2json.graph import Builder, Constant, Value, reshape_of, shape_of
from pytorch2json.network import DescriptionError, Size

Operand = Value | Constant | float
Sizes = Sequence[Any]
HALF = (torch.float16, torch.bfloat16)


def convolution(
    b: Builder, x: Value, weight: Operand, bias: Constant | None = None, stride: Sizes = (1, 1),
    padding: Sizes = (0, 0), dilation: Sizes = (1, 1), groups: int = 1, norm: Sizes | None = None,
) -> Value:  # fmt: skip
    """conv2d, with the batch norm after it folded in; conv1d is one of height S and width 1."""
    if not isinstance(weight, Constant) or isinstance(padding, str):
        raise DescriptionError("a convolution whose weights depend on the input, or whose padding is a word")
    kernel, shift = weight.tensor, None if bias is None else bias.tensor
    if norm is not None:
        scale, offset = _norm_factors(norm[0], norm[1], norm[2], norm[3], norm[-1])
        shift = offset if shift is None else shift.double() * scale + offset
        kernel = kernel.double() * scale.view(-1, *[1] * (kernel.ndim - 1))
    one_axis = kernel.ndim == 3
    if one_axis:
        kernel = kernel.unsqueeze(-1)  # (O, I, k, 1)
        x = b.reshaped(x, (*x.shape, 1), step="two_axes")
    stride, padding, dilation = (_two(sizes, last) for sizes, last in ((stride, 1), (padding, 0), (dilation, 1)))
    weights = {"kernel": b.weight("kernel", kernel, x.dtype)}
    if shift is not None:
        weights["bias"] = b.weight("bias", shift, x.dtype)
    y = b.add(
        network.Convolution, (x,), (*b.shape, 1) if one_axis else None, step="convolution" if one_axis else "",
        num_output_maps=kernel.shape[0], kernel_shape=tuple(kernel.shape[2:]), stride=stride, pre_padding=padding,
        post_padding=padding, dilation=dilation, groups=groups, weights=weights,
    )  # fmt: skip
    return b.add(network.Shuffle, (y,), reshape=reshape_of(b.shape)) if one_axis else y


def batch_norm(
    b: Builder, x: Value, weight: Constant | None, bias: Constant | None, mean: Constant, var: Constant,
    _: float, eps: float,
) -> tuple[Value]:  # fmt: skip
    """A batch norm that no convolution takes in: a scale layer, or two elementwise ones where there are not 4 axes."""
    scale, shift = _norm_factors(weight, bias, mean, var, eps)
    if len(x.shape) == 4:
        weights = {"scale": b.weight("scale", scale, x.dtype), "shift": b.weight("shift", shift, x.dtype)}
        return (b.add(network.Scale, (x,), weights=weights),)
    shape = (1, -1, *[1] * (len(x.shape) - 2))
    factors = [b.value(Constant(factor.view(shape), x.dtype)) for factor in (scale, shift)]
    scaled = b.add(network.Elementwise, (x, factors[0]), step="scaled", operation="prod")
    return (b.add(network.Elementwise, (scaled, factors[1]), operation="sum"),)


def linear(b: Builder, x: Value, weight: Constant, bias: Constant | None = None) -> Value:
    """x W^T + b over the last axis."""
    rank = len(x.shape)
    kernel = b.value(weight, x.dtype, rank)  # (1, ..., O, I)
    y = b.add(
        network.MatrixMultiply, (x, kernel), b.shape, step="" if bias is None else "matmul", **_transposes(False, True)
    )
    if bias is None:
        return y
    return b.add(network.Elementwise, (y, b.value(bias, x.dtype, rank)), b.shape, operation="sum")


def matmul(b: Builder, x: Operand, y: Operand) -> Value:
    """A matrix product over the last two axes."""
    rank = len(b.shape)
    left, right = b.value(x, b.dtype, rank), b.value(y, b.dtype, rank)
    if rank < 2 or min(len(left.shape), len(right.shape)) < 2:
        raise DescriptionError("a product with a vector")
    return b.add(network.MatrixMultiply, (left, right), b.shape, **_transposes(False, False))


def attention(
    b: Builder, q: Value, k: Value, v: Value, mask: Operand | None = None, dropout: float = 0.0,
    is_causal: bool = False, scale: float | None = None, **_: Any,
) -> Value:  # fmt: skip
    """softmax(q k^T scale + mask) v (Vaswani et al. 2017, eq. 1)."""
    if is_causal or q.shape[-3] != k.shape[-3]:
        raise DescriptionError("attention that is causal or has fewer keys' heads than queries'")
    width = q.shape[-1]
    assert isinstance(width, int)
    shape = (*q.shape[:-1], k.shape[-2])  # (N, heads, S, S)
    factor = b.value(Constant(torch.tensor(width**-0.5 if scale is None else scale), q.dtype), rank=len(shape))
    q = b.add(network.Elementwise, (q, factor), q.shape, step="scaled", operation="prod")
    scores = b.add(network.MatrixMultiply, (q, k), shape, step="scores", **_transposes(False, True))
    if mask is not None:
        if isinstance(mask, Constant) and mask.dtype == torch.bool:  # true: may attend
            mask = Constant(torch.zeros(mask.tensor.shape).masked_fill(~mask.tensor, -torch.inf), q.dtype)
        added = b.value(mask, q.dtype, len(shape))
        scores = b.add(network.Elementwise, (scores, added), shape, step="masked", operation="sum")
    wide = _float32(b, scores)
    weights = b.add(network.Softmax, (wide,), shape, step="softmax", axis=len(shape) - 1)
    return b.add(network.MatrixMultiply, (b.cast(weights, q.dtype), v), b.shape, **_transposes(False, False))


def layer_norm(
    b: Builder, x: Value, normalized: Sizes, weight: Constant | None = None, bias: Constant | None = None,
    eps: float = 1e-5, *_: Any,
) -> Value:  # fmt: skip
    """Layer norm over the last axes (Ba et al. 2016), in float32."""
    axes = tuple(range(len(x.shape) - len(normalized), len(x.shape)))
    wide = _float32(b, x)
    parts = [
        b.value(part or Constant(torch.full(tuple(normalized), fill), torch.float32), torch.float32, len(x.shape))
        for part, fill in ((weight, 1.0), (bias, 0.0))
    ]
    y = b.add(network.Normalization, (wide, *parts), step="wide" if x.dtype in HALF else "", axes=axes, epsilon=eps)
    return _narrowed(b, y)


def max_pool(
    b: Builder, x: Value, kernel: Sizes, stride: Sizes = (), padding: Sizes = (0, 0), dilation: Sizes = (1, 1),
    ceil_mode: bool = False,
) -> Value:  # fmt: skip
    """max_pool2d; where it rounds up, the bottom and the right are padded for it."""
    if _two(dilation, 1) != (1, 1):
        raise DescriptionError("a max pooling with dilation")
    return _pool(b, x, "max", _two(kernel, 1), stride, _two(padding, 0), excludes=True)


def average_pool(
    b: Builder, x: Value, kernel: Sizes, stride: Sizes = (), padding: Sizes = (0, 0), ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    """avg_pool2d."""
    window, padded = _two(kernel, 1), _two(padding, 0)
    if divisor_override is not None:
        raise DescriptionError("an average pooling with its own divisor")
    if ceil_mode and any(padded) and count_include_pad:
        raise DescriptionError("an average pooling that rounds up and counts its padding")
    excludes = not count_include_pad or not any(padded)
    return _pool(b, x, "average", window, stride, padded, excludes=excludes)


def adaptive_average_pool(b: Builder, x: Value, size: Sizes) -> Value:
    """adaptive_avg_pool2d: a mean, or a product with the averaging matrices of height and width."""
    height, width = b.shape[-2:]
    rank = len(x.shape)
    if (height, width) == (1, 1):
        return b.add(network.Reduce, (x,), operation="avg", axes=(rank - 2, rank - 1), keep_dims=True)
    if x.shape[-2:] == (height, width):
        return x
    rows, columns = (_averaging(x.shape[axis], b.shape[axis]) for axis in (-2, -1))
    left = b.value(Constant(rows, x.dtype), rank=rank)  # (1, 1, h, H)
    right = b.value(Constant(columns, x.dtype), rank=rank)  # (1, 1, w, W)
    wide = b.add(
        network.MatrixMultiply,
        (left, x),
        (*x.shape[:-2], height, x.shape[-1]),
        step="rows",
        **_transposes(False, False),
    )
    return b.add(network.MatrixMultiply, (wide, right), **_transposes(False, True))


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
        operands = (x, _scalar(b, bound, x))
        x = b.add(network.Elementwise, operands, step="" if number == len(bounds) else operation, operation=operation)
    return x


def unary(b: Builder, x: Value, *, operation: str) -> Value:
    """A function of each value, in float32 but for sign and rounding."""
    if operation in ("abs", "neg", "floor", "ceil", "not"):
        return b.add(network.Unary, (x,), operation=operation)
    y = b.add(network.Unary, (_float32(b, x),), step="wide" if x.dtype in HALF else "", operation=operation)
    return _narrowed(b, y)


def rsqrt(b: Builder, x: Value) -> Value:
    """1 / sqrt(x)."""
    root = b.add(network.Unary, (_float32(b, x),), step="sqrt", operation="sqrt")
    return _narrowed(b, b.add(network.Unary, (root,), step="wide" if x.dtype in HALF else "", operation="recip"))


def elementwise(b: Builder, x: Operand, y: Operand, *, operation: str, alpha: float = 1) -> Value:
    """x op (alpha y), on operands of equal dtype and rank."""
    compared = operation in ("equal", "less", "greater")
    dtype = next(value.dtype for value in (x, y) if isinstance(value, Value)) if compared else b.dtype
    left, right = (b.value(value, dtype, len(b.shape)) for value in (x, y))
    if alpha != 1:
        factor = b.value(Constant(torch.tensor(alpha), dtype), rank=len(b.shape))
        right = b.add(network.Elementwise, (right, factor), right.shape, step="scaled", operation="prod")
    return b.add(network.Elementwise, (left, right), b.shape, b.dtype, operation=operation)


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
    return _narrowed(b, b.add(network.Elementwise, (left, right), b.shape, torch.float32, step=step, operation="pow"))


def reduce(
    b: Builder, x: Value, axes: Sizes | int | None = None, keep: bool = False, *, operation: str, **_: Any
) -> Value:
    """A mean, sum, max or min over axes; none named: over all."""
    rank = len(x.shape)
    named = (axes,) if isinstance(axes, int) else tuple(axes or range(rank))
    wide = _float32(b, x) if operation in ("avg", "sum") else x
    step = "wide" if wide.dtype != b.dtype else ""
    y = b.add(
        network.Reduce,
        (wide,),
        step=step,
        operation=operation,
        axes=tuple(sorted(axis % rank for axis in named)),
        keep_dims=keep,
    )
    return _narrowed(b, y)


def vector_norm(
    b: Builder, x: Value, order: float = 2, axes: Sizes | None = None, keep: bool = False, **_: Any
) -> Value:
    """The Euclidean length along axes."""
    if order != 2 or axes is None:
        raise DescriptionError(f"a vector norm of order {order}")
    wide = _float32(b, x)
    squares = b.add(network.Elementwise, (wide, wide), x.shape, step="squares", operation="prod")
    named = tuple(sorted(axis % len(x.shape) for axis in axes))
    total = b.add(network.Reduce, (squares,), step="sum", operation="sum", axes=named, keep_dims=keep)
    return _narrowed(b, b.add(network.Unary, (total,), step="wide" if b.dtype in HALF else "", operation="sqrt"))


def softmax(b: Builder, x: Value, axis: int, *_: Any, logarithm: bool = False) -> Value:
    """Softmax, or its logarithm, in float32."""
    plain = b.dtype not in HALF and not logarithm
    y = b.add(network.Softmax, (_float32(b, x),), step="" if plain else "softmax", axis=axis % len(x.shape))
    if logarithm:
        y = b.add(network.Unary, (y,), step="wide" if b.dtype in HALF else "", operation="log")
    return _narrowed(b, y)


def topk(b: Builder, x: Value, k: int, axis: int = -1, largest: bool = True, *_: Any) -> tuple[Value, Value]:
    """The k largest or smallest values, best first, and their indices."""
    return b.topk(x, b.shape, operation="max" if largest else "min", k=k, axis=axis % len(x.shape))


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
    """Whole slices along an axis."""
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
        order = torch.arange(_static(x.shape[axis]), dtype=torch.int32).roll(shift)
        chosen = b.value(Constant(order, torch.int32))
        step = "" if number == len(moves) else f"axis_{axis}"
        x = b.add(network.Gather, (x, chosen), x.shape, step=step, mode="default", axis=axis)
    return x


def flip(b: Builder, x: Value, axes: Sizes) -> Value:
    """Axes the other way round."""
    for number, axis in enumerate((axis % len(x.shape) for axis in axes), 1):
        order = torch.arange(_static(x.shape[axis]) - 1, -1, -1, dtype=torch.int32)
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
    """view, reshape, flatten, squeeze and unsqueeze: the result's shape tells all."""
    return x if x.shape == b.shape else b.add(network.Shuffle, (x,), reshape=reshape_of(b.shape))


def same(b: Builder, x: Value, *_: Any, **__: Any) -> Value:
    """What changes no value: clone, contiguous, dropout in eval mode."""
    return x


def cast(b: Builder, x: Value, *_: Any, **__: Any) -> Value:
    """To another dtype."""
    return x if x.dtype == b.dtype else b.add(network.Cast, (x,), x.shape, b.dtype)


def concatenation(b: Builder, parts: Sequence[Operand], axis: int = 0) -> Value:
    """Tensors side by side."""
    values = [b.value(part, b.dtype) for part in parts]
    return b.add(network.Concatenation, values, axis=axis % len(b.shape))


def stack(b: Builder, parts: Sequence[Operand], axis: int = 0) -> Value:
    """Tensors side by side on a new axis."""
    axis %= len(b.shape)
    shape = tuple(1 if place == axis else size for place, size in enumerate(b.shape))
    values = [b.reshaped(b.value(part, b.dtype), shape) for part in parts]
    return b.add(network.Concatenation, values, axis=axis)


def slices(b: Builder, x: Value, axis: int = 0, start: int | None = None, end: Any = None, step: int = 1) -> Value:
    """x[start:end:step] along an axis."""
    axis %= len(x.shape)
    if x.shape == b.shape:
        return x
    size = _static(x.shape[axis])
    first = slice(start, None if isinstance(end, str) else end).indices(size)[0]
    return _slice(b, x, {axis: first}, b.shape, {axis: step})


def split(b: Builder, x: Value, _: Any, axis: int = 0) -> tuple[Value, ...]:
    """Consecutive slices along an axis."""
    axis %= len(x.shape)
    parts, start = [], 0
    for meta in b.metas:
        shape = shape_of(meta)
        parts.append(_slice(b, x, {axis: start}, shape, {}))
        start += _static(shape[axis])
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


def filled(b: Builder, sizes: Sizes, value: float = 0.0, *_: Any, **__: Any) -> Value:
    """A tensor of one value, as large as the batch."""
    one = Constant(torch.full((1,) * len(b.shape), value), b.dtype)
    return expand(b, one)


def upsample(b: Builder, x: Value, size: Any = None, *rest: Any, mode: str, **_: Any) -> Value:
    """interpolate: nearest, bilinear and bicubic, with or without aligned corners."""
    align = mode != "nearest" and bool(rest and rest[0])
    coordinates = "align_corners" if align else "asymmetric" if mode == "nearest" else "half_pixel"
    factors = [_static(after) / _static(before) for before, after in zip(x.shape[2:], b.shape[2:], strict=True)]
    parts: dict[str, Any] = {"mode": mode, "coordinates": coordinates}
    given = [scale for scale in rest[1 if mode != "nearest" else 0 :] if isinstance(scale, float)]
    if isinstance(rest[-1] if rest else None, (list, tuple)):
        given = list(rest[-1])
    if any(scale and scale != factor for scale, factor in zip(given, factors, strict=False)):
        raise DescriptionError(f"a resize whose factor {given} is not the ratio of its sizes")
    if all(factor == int(factor) for factor in factors):
        return b.add(network.Resize, (x,), scales=(1.0, 1.0, *factors), **parts)
    return b.add(network.Resize, (x, b.sizes(b.shape)), scales=None, **parts)


def _norm_factors(
    weight: Constant | None, bias: Constant | None, mean: Constant, var: Constant, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give a batch norm in eval mode as float64 scale and shift (Ioffe & Szegedy 2015, alg. 2)."""
    scale = (var.tensor.double() + eps).rsqrt() * (1 if weight is None else weight.tensor.double())
    shift = (0 if bias is None else bias.tensor.double()) - mean.tensor.double() * scale
    return scale, shift


def _pool(
    b: Builder,
    x: Value,
    operation: str,
    window: tuple[int, int],
    stride: Sizes,
    padding: tuple[int, int],
    excludes: bool,
) -> Value:
    steps = _two(stride, 1) if stride else window
    post = []
    for axis in (0, 1):
        size, wanted = _static(x.shape[axis + 2]), _static(b.shape[axis + 2])
        post.append(max(padding[axis], (wanted - 1) * steps[axis] + window[axis] - size - padding[axis]))
    return b.add(
        network.Pooling, (x,), operation=operation, window=window, stride=steps, pre_padding=padding,
        post_padding=tuple(post), average_excludes_padding=excludes,
    )  # fmt: skip


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


def _averaging(before: Size, after: Size) -> torch.Tensor:
    """Give the matrix (after, before) of an adaptive average: row i averages floor(i H / h) to ceil((i + 1) H / h)."""
    size, wanted = _static(before), _static(after)
    matrix = torch.zeros(wanted, size)
    for row in range(wanted):
        start, end = row * size // wanted, math.ceil((row + 1) * size / wanted)
        matrix[row, start:end] = 1 / (end - start)
    return matrix


def _static(size: Size) -> int:
    if not isinstance(size, int):
        raise DescriptionError(f"a size that depends on the batch ({size}) where a number is needed")
    return size


def _scalar(b: Builder, number: Operand, like: Value) -> Value:
    """Give a bound; 1e-12 before a division, which half precision rounds to 0, becomes its smallest normal number."""
    tensor = number.tensor if isinstance(number, Constant) else torch.tensor(number)
    if like.dtype in HALF and float(tensor) > 0:
        tensor = tensor.clamp(min=torch.finfo(like.dtype).tiny)
    return b.value(Constant(tensor, like.dtype), like.dtype, len(like.shape))


def _indices(b: Builder, x: Operand) -> Value:
    """Give indices as int32, which TensorRT takes everywhere."""
    return b.value(x, torch.int32)


def _float32(b: Builder, x: Value) -> Value:
    return b.cast(x, torch.float32) if x.dtype in HALF else x


def _narrowed(b: Builder, y: Value) -> Value:
    """Cast what was computed in float32 to the operator's own dtype, under the operator's own name."""
    return y if y.dtype == b.dtype else b.add(network.Cast, (y,), y.shape, b.dtype)


def _transposes(left: bool, right: bool) -> dict[str, Any]:
    return {"transpose_a": left, "transpose_b": right}


def _two(sizes: Sizes | int, default: int) -> tuple[int, int]:
    """Give a size for height and width; the one of a 1-d operator gets its default for the width."""
    values = (sizes, sizes) if isinstance(sizes, int) else tuple(sizes)
    return (values[0], values[1]) if len(values) == 2 else (values[0], default)


def _all(function: Callable[..., Any], **parts: Any) -> Callable[..., Any]:
    return functools.partial(function, **parts)


OPERATORS: dict[str, Callable[..., Any]] = {
    "aten.conv1d.default": convolution,
    "aten.conv2d.default": convolution,
    "aten._native_batch_norm_legit_no_training.default": batch_norm,
    "aten.linear.default": linear,
    "aten.matmul.default": matmul,
    "aten.mm.default": matmul,
    "aten.bmm.default": matmul,
    "aten.scaled_dot_product_attention.default": attention,
    "aten.layer_norm.default": layer_norm,
    "aten.max_pool2d.default": max_pool,
    "aten.avg_pool2d.default": average_pool,
    "aten.adaptive_avg_pool2d.default": adaptive_average_pool,
    "aten.relu.default": _all(activation, operation="relu"),
    "aten.sigmoid.default": _all(activation, operation="sigmoid"),
    "aten.tanh.default": _all(activation, operation="tanh"),
    "aten.hardsigmoid.default": _all(activation, operation="hard_sigmoid", alpha=1 / 6, beta=0.5),
    "aten.hardswish.default": _all(gated, operation="hard_sigmoid", alpha=1 / 6, beta=0.5),
    "aten.silu.default": _all(gated, operation="sigmoid"),
    "aten.gelu.default": gelu,
    "aten.hardtanh.default": hardtanh,
    "aten.relu6.default": _all(hardtanh, low=0.0, high=6.0),
    "aten.leaky_relu.default": leaky_relu,
    "aten.elu.default": elu,
    "aten.clamp.default": clamp,
    "aten.clamp_min.default": clamp,
    "aten.exp.default": _all(unary, operation="exp"),
    "aten.log.default": _all(unary, operation="log"),
    "aten.sqrt.default": _all(unary, operation="sqrt"),
    "aten.abs.default": _all(unary, operation="abs"),
    "aten.neg.default": _all(unary, operation="neg"),
    "aten.erf.default": _all(unary, operation="erf"),
    "aten.reciprocal.default": _all(unary, operation="recip"),
    "aten.floor.default": _all(unary, operation="floor"),
    "aten.ceil.default": _all(unary, operation="ceil"),
    "aten.logical_not.default": _all(unary, operation="not"),
    "aten.rsqrt.default": rsqrt,
    "aten.add.Tensor": _all(elementwise, operation="sum"),
    "aten.sub.Tensor": _all(elementwise, operation="sub"),
    "aten.mul.Tensor": _all(elementwise, operation="prod"),
    "aten.div.Tensor": _all(elementwise, operation="div"),
    "aten.maximum.default": _all(elementwise, operation="max"),
    "aten.minimum.default": _all(elementwise, operation="min"),
    "aten.eq.Scalar": _all(elementwise, operation="equal"),
    "aten.eq.Tensor": _all(elementwise, operation="equal"),
    "aten.lt.Scalar": _all(elementwise, operation="less"),
    "aten.lt.Tensor": _all(elementwise, operation="less"),
    "aten.gt.Scalar": _all(elementwise, operation="greater"),
    "aten.gt.Tensor": _all(elementwise, operation="greater"),
    "aten.ne.Scalar": not_equal,
    "aten.ne.Tensor": not_equal,
    "aten.pow.Tensor_Tensor": power,
    "aten.pow.Tensor_Scalar": power,
    "aten.pow.Scalar": power,
    "aten.mean.dim": _all(reduce, operation="avg"),
    "aten.sum.dim_IntList": _all(reduce, operation="sum"),
    "aten.amax.default": _all(reduce, operation="max"),
    "aten.amin.default": _all(reduce, operation="min"),
    "aten.linalg_vector_norm.default": vector_norm,
    "aten.softmax.int": softmax,
    "aten._softmax.default": softmax,
    "aten.log_softmax.int": _all(softmax, logarithm=True),
    "aten.topk.default": topk,
    "aten.gather.default": gather,
    "aten.index.Tensor": index,
    "aten.index_select.default": index_select,
    "aten.select.int": select,
    "aten.roll.default": roll,
    "aten.flip.default": flip,
    "aten.permute.default": permute,
    "aten.transpose.int": transpose,
    "aten.view.default": reshape,
    "aten._unsafe_view.default": reshape,
    "aten.reshape.default": reshape,
    "aten.flatten.using_ints": reshape,
    "aten.unsqueeze.default": reshape,
    "aten.squeeze.dim": reshape,
    "aten.squeeze.dims": reshape,
    "aten.clone.default": same,
    "aten.alias.default": same,
    "aten.detach.default": same,
    "aten.contiguous.default": same,
    "aten.dropout.default": same,
    "aten._to_copy.default": cast,
    "aten.to.dtype": cast,
    "aten.cat.default": concatenation,
    "aten.stack.default": stack,
    "aten.slice.Tensor": slices,
    "aten.split.Tensor": split,
    "aten.split_with_sizes.default": split,
    "aten.chunk.default": split,
    "aten.unbind.int": unbind,
    "aten.pad.default": pad,
    "aten.constant_pad_nd.default": pad,
    "aten.expand.default": expand,
    "aten.masked_fill.Scalar": masked_fill,
    "aten.where.self": where,
    "aten.full.default": filled,
    "aten.zeros.default": filled,
    "aten.upsample_nearest2d.vec": _all(upsample, mode="nearest"),
    "aten.upsample_nearest2d.default": _all(upsample, mode="nearest"),
    "aten.upsample_bilinear2d.vec": _all(upsample, mode="linear"),
    "aten.upsample_bilinear2d.default": _all(upsample, mode="linear"),
    "aten.upsample_bicubic2d.vec": _all(upsample, mode="cubic"),
    "aten.upsample_bicubic2d.default": _all(upsample, mode="cubic"),
}
