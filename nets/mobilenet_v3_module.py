"""MobileNetV3: Howard et al. 2019, https://arxiv.org/abs/1905.02244."""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net


def mobilenet_v3_large(*, num_classes: int, num_channels: int = 3, dropout: float = 0.2) -> nn.Module:
    """MobileNetV3 Large."""
    return torchvision_net("mobilenet_v3_large", num_classes, num_channels, arguments={"dropout": dropout})


def mobilenet_v3_small(*, num_classes: int, num_channels: int = 3, dropout: float = 0.2) -> nn.Module:
    """MobileNetV3 Small."""
    return torchvision_net("mobilenet_v3_small", num_classes, num_channels, arguments={"dropout": dropout})
