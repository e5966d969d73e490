"""Convolutions, products, attention and normalization."""

from __future__ import annotations

from typing import Any

import torch

from pytorch2json import network
from pytorch2json.graph import Builder, Constant, Value, reshape_of
from pytorch2json.network import DescriptionError
from pytorch2json.operators.operands import HALF, Operand, Sizes, as_float32, height_and_width, narrowed


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
    stride, padding, dilation = (
        height_and_width(sizes, last) for sizes, last in ((stride, 1), (padding, 0), (dilation, 1))
    )
    weights = {"kernel": b.weight("kernel", kernel, x.dtype)}
    if shift is not None:
        weights["bias"] = b.weight("bias", shift, x.dtype)
    y = b.add(
        network.Convolution, (x,), (*b.shape, 1) if one_axis else None, step="convolution" if one_axis else "",
        num_output_maps=kernel.shape[0], kernel_shape=tuple(kernel.shape[2:]), stride=stride, pre_padding=padding,
        post_padding=padding, dilation=dilation, groups=groups, weights=weights,
    )  # fmt: skip
    return b.add(network.Shuffle, (y,), reshape=reshape_of(b.shape)) if one_axis else y


def deconvolution(
    b: Builder, x: Value, weight: Operand, bias: Constant | None = None, stride: Sizes = (1, 1),
    padding: Sizes = (0, 0), output_padding: Sizes = (0, 0), groups: int = 1, dilation: Sizes = (1, 1),
    norm: Sizes | None = None,
) -> Value:  # fmt: skip
    """conv_transpose2d, with the batch norm after it folded in."""
    if not isinstance(weight, Constant):
        raise DescriptionError("a transposed convolution whose weights depend on the input")
    kernel, shift = weight.tensor, None if bias is None else bias.tensor  # (I, O / groups, kH, kW)
    maps = kernel.shape[1] * groups
    if norm is not None:
        scale, offset = _norm_factors(norm[0], norm[1], norm[2], norm[3], norm[-1])
        shift = offset if shift is None else shift.double() * scale + offset
        of_inputs = scale.view(groups, 1, -1).expand(-1, kernel.shape[0] // groups, -1).flatten(0, 1)  # (I, O / groups)
        kernel = kernel.double() * of_inputs[:, :, None, None]
    stride, dilation, padding, extra = (
        height_and_width(sizes, last) for sizes, last in ((stride, 1), (dilation, 1), (padding, 0), (output_padding, 0))
    )
    post_padding = tuple(cut - added for cut, added in zip(padding, extra, strict=True))
    if min(post_padding) < 0:
        raise DescriptionError(f"a transposed convolution whose output_padding {extra} is over its padding {padding}")
    weights = {"kernel": b.weight("kernel", kernel, x.dtype)}
    if shift is not None:
        weights["bias"] = b.weight("bias", shift, x.dtype)
    return b.add(
        network.Deconvolution, (x,), num_output_maps=maps, kernel_shape=tuple(kernel.shape[2:]), stride=stride,
        pre_padding=padding, post_padding=post_padding, dilation=dilation, groups=groups, weights=weights,
    )  # fmt: skip


def batch_norm(
    b: Builder, x: Value, weight: Constant | None, bias: Constant | None, mean: Constant, var: Constant,
    _: float, eps: float,
) -> tuple[Value]:  # fmt: skip
    """A batch norm that no convolution absorbs: a scale layer, or without 4 axes two elementwise ones."""
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
        network.MatrixMultiply,
        (x, kernel),
        b.shape,
        step="" if bias is None else "matmul",
        transpose_a=False,
        transpose_b=True,
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
    return b.add(network.MatrixMultiply, (left, right), b.shape, transpose_a=False, transpose_b=False)


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
    scores = b.add(network.MatrixMultiply, (q, k), shape, step="scores", transpose_a=False, transpose_b=True)
    if mask is not None:
        if isinstance(mask, Constant) and mask.dtype == torch.bool:  # true: may attend
            mask = Constant(torch.zeros(mask.tensor.shape).masked_fill(~mask.tensor, -torch.inf), q.dtype)
        added = b.value(mask, q.dtype, len(shape))
        scores = b.add(network.Elementwise, (scores, added), shape, step="masked", operation="sum")
    wide = as_float32(b, scores)
    weights = b.add(network.Softmax, (wide,), shape, step="softmax", axis=len(shape) - 1)
    return b.add(network.MatrixMultiply, (b.cast(weights, q.dtype), v), b.shape, transpose_a=False, transpose_b=False)


def layer_norm(
    b: Builder, x: Value, normalized: Sizes, weight: Constant | None = None, bias: Constant | None = None,
    eps: float = 1e-5, *_: Any,
) -> Value:  # fmt: skip
    """Layer norm over the last axes (Ba et al. 2016), in float32."""
    axes = tuple(range(len(x.shape) - len(normalized), len(x.shape)))
    wide = as_float32(b, x)
    parts = [
        b.value(part or Constant(torch.full(tuple(normalized), fill), torch.float32), torch.float32, len(x.shape))
        for part, fill in ((weight, 1.0), (bias, 0.0))
    ]
    y = b.add(network.Normalization, (wide, *parts), step="wide" if x.dtype in HALF else "", axes=axes, epsilon=eps)
    return narrowed(b, y)


def group_norm(
    b: Builder, x: Value, groups: int, weight: Constant | None = None, bias: Constant | None = None,
    eps: float = 1e-5, *_: Any,
) -> Value:  # fmt: skip
    """Group norm over groups of channels and all places (Wu & He 2018), in float32: a layer norm of each group."""
    channels, rest = x.shape[1], x.shape[2:]
    if len(x.shape) != 4 or not all(isinstance(size, int) for size in (channels, *rest)):
        raise DescriptionError("a group norm of other than images of a fixed size")
    wide = as_float32(b, x)
    each = int(channels) // groups * int(rest[0]) * int(rest[1])
    rows = b.reshaped(wide, (x.shape[0], groups, each), step="groups")
    ones, zeros = (b.value(Constant(torch.full((each,), fill), torch.float32), rank=3) for fill in (1.0, 0.0))
    even = b.add(network.Normalization, (rows, ones, zeros), rows.shape, step="normalized", axes=(2,), epsilon=eps)
    factors = {
        "scale": torch.ones(int(channels)) if weight is None else weight.tensor,
        "shift": torch.zeros(int(channels)) if bias is None else bias.tensor,
    }
    weights = {name: b.weight(name, factor, torch.float32) for name, factor in factors.items()}
    image = b.reshaped(even, x.shape, step="image")
    return narrowed(b, b.add(network.Scale, (image,), step="wide" if x.dtype in HALF else "", weights=weights))


def _norm_factors(
    weight: Constant | None, bias: Constant | None, mean: Constant, var: Constant, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch norm in eval mode as float64 scale and shift (Ioffe & Szegedy 2015, alg. 2)."""
    scale = (var.tensor.double() + eps).rsqrt() * (1 if weight is None else weight.tensor.double())
    shift = (0 if bias is None else bias.tensor.double()) - mean.tensor.double() * scale
    return scale, shift
