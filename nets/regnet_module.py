"""RegNet: Radosavovic et al. 2020, https://arxiv.org/abs/2003.13678.

The y nets have squeeze-and-excitation, the x nets not.
"""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net


def regnet_x_400mf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetX-400 MF."""
    return torchvision_net("regnet_x_400mf", num_classes, num_channels)


def regnet_x_800mf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetX-800 MF."""
    return torchvision_net("regnet_x_800mf", num_classes, num_channels)


def regnet_x_1_6gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetX-1.6 GF."""
    return torchvision_net("regnet_x_1_6gf", num_classes, num_channels)


def regnet_x_3_2gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetX-3.2 GF."""
    return torchvision_net("regnet_x_3_2gf", num_classes, num_channels)


def regnet_x_8gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetX-8 GF."""
    return torchvision_net("regnet_x_8gf", num_classes, num_channels)


def regnet_x_16gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetX-16 GF."""
    return torchvision_net("regnet_x_16gf", num_classes, num_channels)


def regnet_x_32gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetX-32 GF."""
    return torchvision_net("regnet_x_32gf", num_classes, num_channels)


def regnet_y_400mf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetY-400 MF."""
    return torchvision_net("regnet_y_400mf", num_classes, num_channels)


def regnet_y_800mf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetY-800 MF."""
    return torchvision_net("regnet_y_800mf", num_classes, num_channels)


def regnet_y_1_6gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetY-1.6 GF."""
    return torchvision_net("regnet_y_1_6gf", num_classes, num_channels)


def regnet_y_3_2gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetY-3.2 GF."""
    return torchvision_net("regnet_y_3_2gf", num_classes, num_channels)


def regnet_y_8gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetY-8 GF."""
    return torchvision_net("regnet_y_8gf", num_classes, num_channels)


def regnet_y_16gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetY-16 GF."""
    return torchvision_net("regnet_y_16gf", num_classes, num_channels)


def regnet_y_32gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetY-32 GF."""
    return torchvision_net("regnet_y_32gf", num_classes, num_channels)


def regnet_y_128gf(*, num_classes: int, num_channels: int = 3) -> nn.Module:
    """RegNetY-128 GF."""
    return torchvision_net("regnet_y_128gf", num_classes, num_channels)
