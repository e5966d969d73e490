"""AlexNet: Krizhevsky 2014, https://arxiv.org/abs/1404.5997."""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net

MIN_SIZE_PX = 63  # below it the third pooling has no pixel left


def alexnet(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """AlexNet, the one-column form."""
    return torchvision_net(
        "alexnet",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )
