"""ShuffleNetV2: Ma et al. 2018, https://arxiv.org/abs/1807.11164."""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net


def shufflenet_v2_x0_5(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """ShuffleNetV2, width 0.5."""
    return torchvision_net("shufflenet_v2_x0_5", num_classes, num_channels)


def shufflenet_v2_x1_0(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """ShuffleNetV2, width 1.0."""
    return torchvision_net("shufflenet_v2_x1_0", num_classes, num_channels)


def shufflenet_v2_x1_5(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """ShuffleNetV2, width 1.5."""
    return torchvision_net("shufflenet_v2_x1_5", num_classes, num_channels)


def shufflenet_v2_x2_0(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """ShuffleNetV2, width 2.0."""
    return torchvision_net("shufflenet_v2_x2_0", num_classes, num_channels)
