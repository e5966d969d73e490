"""Depthwise convolutions in bf16 on a CPU, whose gradients torch 2.15 computes without its fast routines.

oneDNN's backward pass of a depthwise convolution in bf16 is 4 to 10 times as slow as in float32 where the kernel is 5x5
(the weights' gradients) or the stride 2 (the image's): findings/depthwise_bf16_gradients.sh. So it runs in float32.
Forward and backward pass of EfficientNet-Lite0, 32 images of 224 px: 11 images/s before, 20 with it (two cores, AMX).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def use_float32_gradients(net: nn.Module) -> None:
    """Have the depthwise convolutions of a net, trained in bf16 on a CPU, compute their gradients in float32."""
    for module in net.modules():
        if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
            continue
        if module.groups == module.in_channels > 1:
            module.__class__ = _DepthwiseConv2d  # keeps parameters, hooks and names


class _DepthwiseConv2d(nn.Conv2d):
    """(N, C, H, W) to (N, C', H', W'), as nn.Conv2d."""

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and input.device.type == "cpu"):
            return super()._conv_forward(input, weight, bias)
        dtype = torch.get_autocast_dtype("cpu")
        bias = None if bias is None else bias.to(dtype)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        output: torch.Tensor = _Convolution.apply(input.to(dtype), weight.to(dtype), bias, geometry)
        return output


class _Convolution(torch.autograd.Function):
    """A convolution whose gradients are computed in float32, whatever its inputs are."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, weight: torch.Tensor, bias: Any, geometry: Any) -> torch.Tensor:
        ctx.save_for_backward(image, weight)
        ctx.has_bias, ctx.geometry = bias is not None, geometry
        return nn.functional.conv2d(image, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        image, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        wanted = (*ctx.needs_input_grad[:2], ctx.has_bias and ctx.needs_input_grad[2])
        gradients = torch.ops.aten.convolution_backward(
            gradient.float(), image.float(), weight.float(), [len(weight)] if ctx.has_bias else None,
            stride, padding, dilation, False, (0, 0), groups, wanted,
        )  # fmt: skip
        return *(g if g is None else g.to(image.dtype) for g in gradients), None
