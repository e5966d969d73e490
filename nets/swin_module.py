"""Swin Transformer: Liu et al. 2021, https://arxiv.org/abs/2103.14030; V2: https://arxiv.org/abs/2111.09883.

`drop_path` is the rate of stochastic depth (Huang et al. 2016) at the last block; it grows linearly from 0.
"""

from __future__ import annotations

from torch import nn
from torchvision.ops import StochasticDepth

from nets.support.rates import require_rate
from nets.support.torchvision_builder import torchvision_net

MIN_SIZE_PX = 4  # one patch; feature maps are padded to a multiple of the window


def swin_t(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, drop_path: float = 0.2
) -> nn.Module:
    """Swin-T."""
    return _swin("swin_t", num_classes, num_channels, (img_height, img_width), drop_path)


def swin_s(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, drop_path: float = 0.3
) -> nn.Module:
    """Swin-S."""
    return _swin("swin_s", num_classes, num_channels, (img_height, img_width), drop_path)


def swin_b(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, drop_path: float = 0.5
) -> nn.Module:
    """Swin-B."""
    return _swin("swin_b", num_classes, num_channels, (img_height, img_width), drop_path)


def swin_v2_t(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, drop_path: float = 0.2
) -> nn.Module:
    """Swin V2-T."""
    return _swin("swin_v2_t", num_classes, num_channels, (img_height, img_width), drop_path)


def swin_v2_s(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, drop_path: float = 0.3
) -> nn.Module:
    """Swin V2-S."""
    return _swin("swin_v2_s", num_classes, num_channels, (img_height, img_width), drop_path)


def swin_v2_b(
    *, num_classes: int, num_channels: int = 3, img_height: int = 224, img_width: int = 224, drop_path: float = 0.5
) -> nn.Module:
    """Swin V2-B."""
    return _swin("swin_v2_b", num_classes, num_channels, (img_height, img_width), drop_path)


def _swin(name: str, num_classes: int, num_channels: int, size_px: tuple[int, int], drop_path: float) -> nn.Module:
    require_rate("drop_path", drop_path)
    net = torchvision_net(name, num_classes, num_channels, size_px=size_px, min_size_px=MIN_SIZE_PX)
    blocks = [module for module in net.modules() if isinstance(module, StochasticDepth)]
    for index, block in enumerate(blocks):  # torchvision's function takes no rate of ours
        block.p = drop_path * index / (len(blocks) - 1)
    return net
