"""The operands of ATen operators, and what their descriptions share.

Half precision follows autocast: normalization, softmax, powers and exponentials are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pytorch2json import network
from pytorch2json.graph import Builder, Constant, Value
from pytorch2json.network import DescriptionError, Size

Operand = Value | Constant | float
Sizes = Sequence[Any]
HALF = (torch.float16, torch.bfloat16)


def static_size(size: Size) -> int:
    """Return a size that is a number. Raises DescriptionError for one that depends on the batch."""
    if not isinstance(size, int):
        raise DescriptionError(f"a size that depends on the batch ({size}) where a number is needed")
    return size


def as_float32(b: Builder, x: Value) -> Value:
    """Return x, cast to float32 where it is half precision."""
    return b.cast(x, torch.float32) if x.dtype in HALF else x


def narrowed(b: Builder, y: Value) -> Value:
    """Return what was computed in float32, cast to the operator's own dtype under the operator's own name."""
    return y if y.dtype == b.dtype else b.add(network.Cast, (y,), y.shape, b.dtype)


def height_and_width(sizes: Sizes | int, default: int) -> tuple[int, int]:
    """Return a size for height and width; a 1-d operator's width is the default."""
    values = (sizes, sizes) if isinstance(sizes, int) else tuple(sizes)
    return (values[0], values[1]) if len(values) == 2 else (values[0], default)
