"""Pooling and resizing of images."""

from __future__ import annotations

import math
from typing import Any

import torch

from pytorch2json import network
from pytorch2json.graph import Builder, Constant, Value
from pytorch2json.network import DescriptionError, Size
from pytorch2json.operators.operands import Sizes, height_and_width, static_size


def max_pool(
    b: Builder, x: Value, kernel: Sizes, stride: Sizes = (), padding: Sizes = (0, 0), dilation: Sizes = (1, 1),
    ceil_mode: bool = False,
) -> Value:  # fmt: skip
    """max_pool2d; where it rounds up, the bottom and the right are padded for it."""
    if height_and_width(dilation, 1) != (1, 1):
        raise DescriptionError("a max pooling with dilation")
    return _pool(b, x, "max", height_and_width(kernel, 1), stride, height_and_width(padding, 0), excludes=True)


def average_pool(
    b: Builder, x: Value, kernel: Sizes, stride: Sizes = (), padding: Sizes = (0, 0), ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    """avg_pool2d."""
    window, padded = height_and_width(kernel, 1), height_and_width(padding, 0)
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
        transpose_a=False,
        transpose_b=False,
    )
    return b.add(network.MatrixMultiply, (wide, right), transpose_a=False, transpose_b=True)


def upsample(b: Builder, x: Value, size: Any = None, *rest: Any, mode: str, **_: Any) -> Value:
    """interpolate: nearest, bilinear and bicubic, with or without aligned corners."""
    align = mode != "nearest" and bool(rest and rest[0])
    coordinates = "align_corners" if align else "asymmetric" if mode == "nearest" else "half_pixel"
    factors = [static_size(after) / static_size(before) for before, after in zip(x.shape[2:], b.shape[2:], strict=True)]
    parts: dict[str, Any] = {"mode": mode, "coordinates": coordinates}
    scales = [scale for scale in rest[1 if mode != "nearest" else 0 :] if isinstance(scale, float)]
    if isinstance(rest[-1] if rest else None, (list, tuple)):
        scales = list(rest[-1])
    if any(scale and scale != factor for scale, factor in zip(scales, factors, strict=False)):
        raise DescriptionError(f"a resize whose factor {scales} is not the ratio of its sizes")
    if all(factor == int(factor) for factor in factors):
        return b.add(network.Resize, (x,), scales=(1.0, 1.0, *factors), **parts)
    return b.add(network.Resize, (x, b.sizes(b.shape)), scales=None, **parts)


def _pool(
    b: Builder,
    x: Value,
    operation: str,
    window: tuple[int, int],
    stride: Sizes,
    padding: tuple[int, int],
    excludes: bool,
) -> Value:
    steps = height_and_width(stride, 1) if stride else window
    post = []
    for axis in (0, 1):
        size, wanted = static_size(x.shape[axis + 2]), static_size(b.shape[axis + 2])
        post.append(max(padding[axis], (wanted - 1) * steps[axis] + window[axis] - size - padding[axis]))
    return b.add(
        network.Pooling, (x,), operation=operation, window=window, stride=steps, pre_padding=padding,
        post_padding=tuple(post), average_excludes_padding=excludes,
    )  # fmt: skip


def _averaging(before: Size, after: Size) -> torch.Tensor:
    """Return the matrix (h, H) of an adaptive average: row i averages floor(i H / h) to ceil((i + 1) H / h)."""
    size, wanted = static_size(before), static_size(after)
    matrix = torch.zeros(wanted, size)
    for row in range(wanted):
        start, end = row * size // wanted, math.ceil((row + 1) * size / wanted)
        matrix[row, start:end] = 1 / (end - start)
    return matrix
