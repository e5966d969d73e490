"""MobileNetV2: Sandler et al. 2018, https://arxiv.org/abs/1801.04381."""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net


def mobilenet_v2(*, num_classes: int, num_channels: int = 3, dropout: float = 0.2) -> nn.Module:
    """MobileNetV2, width 1.0."""
    return torchvision_net("mobilenet_v2", num_classes, num_channels, arguments={"dropout": dropout})
