"""VGG: Simonyan & Zisserman 2014, https://arxiv.org/abs/1409.1556."""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net

MIN_SIZE_PX = 32  # five poolings, each halves the image


def vgg11(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """VGG-11."""
    return torchvision_net(
        "vgg11",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def vgg11_bn(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """VGG-11 with batch norm."""
    return torchvision_net(
        "vgg11_bn",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def vgg13(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """VGG-13."""
    return torchvision_net(
        "vgg13",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def vgg13_bn(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """VGG-13 with batch norm."""
    return torchvision_net(
        "vgg13_bn",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def vgg16(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """VGG-16."""
    return torchvision_net(
        "vgg16",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def vgg16_bn(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """VGG-16 with batch norm."""
    return torchvision_net(
        "vgg16_bn",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def vgg19(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """VGG-19."""
    return torchvision_net(
        "vgg19",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def vgg19_bn(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, dropout: float = 0.5
) -> nn.Module:
    """VGG-19 with batch norm."""
    return torchvision_net(
        "vgg19_bn",
        num_classes,
        num_channels,
        arguments={"dropout": dropout},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )
