"""ResNeXt: Xie et al. 2016, https://arxiv.org/abs/1611.05431.

`zero_init_residual` starts every residual branch at zero (Goyal et al. 2017, section 5.1).
"""

from __future__ import annotations

from torch import nn

from nets.support.resnet import build_resnet


def resnext50_32x4d(*, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False) -> nn.Module:
    """ResNeXt-50, 32 groups of width 4."""
    return build_resnet("resnext50_32x4d", num_classes, num_channels, zero_init_residual=zero_init_residual)


def resnext101_32x8d(*, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False) -> nn.Module:
    """ResNeXt-101, 32 groups of width 8."""
    return build_resnet("resnext101_32x8d", num_classes, num_channels, zero_init_residual=zero_init_residual)


def resnext101_64x4d(*, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False) -> nn.Module:
    """ResNeXt-101, 64 groups of width 4."""
    return build_resnet("resnext101_64x4d", num_classes, num_channels, zero_init_residual=zero_init_residual)
