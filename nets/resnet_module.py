"""ResNet: He et al. 2015, https://arxiv.org/abs/1512.03385. Wide ResNet: Zagoruyko & Komodakis 2016,
https://arxiv.org/abs/1605.07146.

`zero_init_residual` starts every residual branch at zero (Goyal et al. 2017, section 5.1). The stem "small" is that for
CIFAR: a 3x3 convolution of stride 1 and no max pool, so that the last feature map is an eighth of the image, not a
thirty-second; "imagenet" is the published one.
"""

from __future__ import annotations

from torch import nn

from nets.support.errors import NetError
from nets.support.resnet import build_resnet, use_small_stem

STEMS = ("imagenet", "small")


def resnet18(
    *, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False, stem: str = "imagenet"
) -> nn.Module:
    """ResNet-18."""
    return _resnet("resnet18", num_classes, num_channels, zero_init_residual, stem)


def resnet34(
    *, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False, stem: str = "imagenet"
) -> nn.Module:
    """ResNet-34."""
    return _resnet("resnet34", num_classes, num_channels, zero_init_residual, stem)


def resnet50(
    *, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False, stem: str = "imagenet"
) -> nn.Module:
    """ResNet-50."""
    return _resnet("resnet50", num_classes, num_channels, zero_init_residual, stem)


def resnet101(
    *, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False, stem: str = "imagenet"
) -> nn.Module:
    """ResNet-101."""
    return _resnet("resnet101", num_classes, num_channels, zero_init_residual, stem)


def resnet152(
    *, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False, stem: str = "imagenet"
) -> nn.Module:
    """ResNet-152."""
    return _resnet("resnet152", num_classes, num_channels, zero_init_residual, stem)


def wide_resnet50_2(
    *, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False, stem: str = "imagenet"
) -> nn.Module:
    """Wide ResNet-50-2: ResNet-50 with bottlenecks twice as wide."""
    return _resnet("wide_resnet50_2", num_classes, num_channels, zero_init_residual, stem)


def wide_resnet101_2(
    *, num_classes: int, num_channels: int = 3, zero_init_residual: bool = False, stem: str = "imagenet"
) -> nn.Module:
    """Wide ResNet-101-2: ResNet-101 with bottlenecks twice as wide."""
    return _resnet("wide_resnet101_2", num_classes, num_channels, zero_init_residual, stem)


def _resnet(name: str, num_classes: int, num_channels: int, zero_init_residual: bool, stem: str) -> nn.Module:
    if stem not in STEMS:
        raise NetError(f'stem must be one of {", ".join(STEMS)}, got "{stem}"')
    net = build_resnet(name, num_classes, num_channels, zero_init_residual=zero_init_residual)
    if stem == "small":
        use_small_stem(net)
    return net
