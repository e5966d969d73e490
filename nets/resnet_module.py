"""ResNet: He et al. 2015, https://arxiv.org/abs/1512.03385. Wide ResNet: Zagoruyko & Komodakis 2016,
https://arxiv.org/abs/1605.07146.

`zero_init_residual` starts every residual branch at zero (Goyal et al. 2017, section 5.1).
"""

from __future__ import annotations

from torch import nn

from nets.torchvision_family import torchvision_net


def resnet18(*, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False) -> nn.Module:
    """ResNet-18."""
    return torchvision_net("resnet18", num_classes, num_channels, arguments={"zero_init_residual": zero_init_residual})


def resnet34(*, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False) -> nn.Module:
    """ResNet-34."""
    return torchvision_net("resnet34", num_classes, num_channels, arguments={"zero_init_residual": zero_init_residual})


def resnet50(*, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False) -> nn.Module:
    """ResNet-50."""
    return torchvision_net("resnet50", num_classes, num_channels, arguments={"zero_init_residual": zero_init_residual})


def resnet101(*, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False) -> nn.Module:
    """ResNet-101."""
    return torchvision_net("resnet101", num_classes, num_channels, arguments={"zero_init_residual": zero_init_residual})


def resnet152(*, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False) -> nn.Module:
    """ResNet-152."""
    return torchvision_net("resnet152", num_classes, num_channels, arguments={"zero_init_residual": zero_init_residual})


def wide_resnet50_2(*, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False) -> nn.Module:
    """Wide ResNet-50-2: ResNet-50 with bottlenecks twice as wide."""
    return torchvision_net(
        "wide_resnet50_2", num_classes, num_channels, arguments={"zero_init_residual": zero_init_residual}
    )


def wide_resnet101_2(*, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False) -> nn.Module:
    """Wide ResNet-101-2: ResNet-101 with bottlenecks twice as wide."""
    return torchvision_net(
        "wide_resnet101_2", num_classes, num_channels, arguments={"zero_init_residual": zero_init_residual}
    )
