"""MNASNet: Tan et al. 2018, https://arxiv.org/abs/1807.11626."""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net


def mnasnet0_5(*, num_classes: int, num_channels: int = 3, dropout: float = 0.2) -> nn.Module:
    """MNASNet-B1, width 0.5."""
    return torchvision_net("mnasnet0_5", num_classes, num_channels, arguments={"dropout": dropout})


def mnasnet0_75(*, num_classes: int, num_channels: int = 3, dropout: float = 0.2) -> nn.Module:
    """MNASNet-B1, width 0.75."""
    return torchvision_net("mnasnet0_75", num_classes, num_channels, arguments={"dropout": dropout})


def mnasnet1_0(*, num_classes: int, num_channels: int = 3, dropout: float = 0.2) -> nn.Module:
    """MNASNet-B1, width 1.0."""
    return torchvision_net("mnasnet1_0", num_classes, num_channels, arguments={"dropout": dropout})


def mnasnet1_3(*, num_classes: int, num_channels: int = 3, dropout: float = 0.2) -> nn.Module:
    """MNASNet-B1, width 1.3."""
    return torchvision_net("mnasnet1_3", num_classes, num_channels, arguments={"dropout": dropout})
