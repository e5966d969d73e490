"""ConvNeXt: Liu et al. 2022, https://arxiv.org/abs/2201.03545.

`drop_path` is the rate of stochastic depth (Huang et al. 2016) at the last block; it grows linearly from 0.
"""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net

MIN_SIZE_PX = 32  # the image is reduced 32 times, without padding


def convnext_tiny(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, drop_path: float = 0.1
) -> nn.Module:
    """ConvNeXt-Tiny."""
    return torchvision_net(
        "convnext_tiny",
        num_classes,
        num_channels,
        arguments={"stochastic_depth_prob": drop_path},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def convnext_small(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, drop_path: float = 0.4
) -> nn.Module:
    """ConvNeXt-Small."""
    return torchvision_net(
        "convnext_small",
        num_classes,
        num_channels,
        arguments={"stochastic_depth_prob": drop_path},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def convnext_base(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, drop_path: float = 0.5
) -> nn.Module:
    """ConvNeXt-Base."""
    return torchvision_net(
        "convnext_base",
        num_classes,
        num_channels,
        arguments={"stochastic_depth_prob": drop_path},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )


def convnext_large(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, drop_path: float = 0.5
) -> nn.Module:
    """ConvNeXt-Large."""
    return torchvision_net(
        "convnext_large",
        num_classes,
        num_channels,
        arguments={"stochastic_depth_prob": drop_path},
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )
