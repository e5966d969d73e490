"""DenseNet: Huang et al. 2016, https://arxiv.org/abs/1608.06993. `dropout` follows every dense layer."""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net

MIN_SIZE_PX = 29  # below it the last transition has no pixel left


def densenet121(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.0
) -> nn.Module:
    """DenseNet-121."""
    return torchvision_net(
        "densenet121",
        num_classes,
        num_channels,
        arguments={"drop_rate": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def densenet161(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.0
) -> nn.Module:
    """DenseNet-161."""
    return torchvision_net(
        "densenet161",
        num_classes,
        num_channels,
        arguments={"drop_rate": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def densenet169(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.0
) -> nn.Module:
    """DenseNet-169."""
    return torchvision_net(
        "densenet169",
        num_classes,
        num_channels,
        arguments={"drop_rate": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def densenet201(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.0
) -> nn.Module:
    """DenseNet-201."""
    return torchvision_net(
        "densenet201",
        num_classes,
        num_channels,
        arguments={"drop_rate": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )
