"""Backbones of the nets around one: torchvision's families, EfficientNet-Lite, and timm's nets as "timm:NAME"."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from common.formatting import did_you_mean
from nets import efficientnet_lite_module
from nets.support.errors import NetError
from nets.support.resnet import RESNETS, build_resnet
from nets.support.timm_builder import build_timm_net
from nets.support.timm_names import PREFIX, is_timm
from nets.support.torchvision_builder import torchvision_names, torchvision_net

EFFICIENTNET_LITE = tuple(f"efficientnet_lite{number}" for number in range(5))


def build_backbone(
    model_type: str, num_channels: int, size_px: tuple[int, int] = (224, 224), **arguments: Any
) -> nn.Module:
    """Build the net `model_type` with fresh weights and two classes: images (N, C, H, W) to logits (N, 2).

    `size_px` is (height, width), which some of timm's nets are built for; `arguments` go to torchvision's function.
    Raises NetError.
    """
    if is_timm(model_type):
        return build_timm_net(model_type.removeprefix(PREFIX), 2, num_channels, size_px)
    if model_type in EFFICIENTNET_LITE:
        net: nn.Module = getattr(efficientnet_lite_module, model_type)(num_classes=2, num_channels=num_channels)
        return net
    if model_type in RESNETS:
        return build_resnet(model_type, 2, num_channels, **arguments)
    names = torchvision_names()
    if model_type not in names:
        hint = did_you_mean(model_type, [*names, *EFFICIENTNET_LITE])
        raise NetError(
            "model_type must be one of torchvision's nets, such as resnet50 or swin_t, or one of "
            f'{", ".join(EFFICIENTNET_LITE)}, got "{model_type}"{hint} (timm\'s nets have the prefix "{PREFIX}")'
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet's and Inception's, about their initialisation
        return torchvision_net(model_type, 2, num_channels, arguments=arguments)
