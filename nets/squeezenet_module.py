"""SqueezeNet: Iandola et al. 2016, https://arxiv.org/abs/1602.07360. Its head is a convolution."""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net


def squeezenet1_0(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """SqueezeNet 1.0, as published."""
    return torchvision_net(
        "squeezenet1_0",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=21,
    )


def squeezenet1_1(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """SqueezeNet 1.1: 2.4 times less computation."""
    return torchvision_net(
        "squeezenet1_1",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=17,
    )
