"""torchvision's families behind one builder, for any number of image channels and of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import nn

from nets.support.errors import NetError

MAX_CHANNELS = 64
RATES = {  # torchvision's name of a drop probability: ours
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "drop_rate": "dropout",
    "stochastic_depth_prob": "drop_path",
}


def torchvision_net(
    name: str,
    num_classes: int,
    num_channels: int,
    *,
    arguments: Mapping[str, Any] | None = None,
    size_px: tuple[int, int] | None = None,
    min_size_px: int = 1,
) -> nn.Module:
    """Build torchvision's net `name` with fresh weights: images (N, num_channels, H, W) to logits (N, num_classes).

    `arguments` go to torchvision's function. Raises NetError for a number of channels beyond MAX_CHANNELS, and for a
    `size_px` (height, width) below `min_size_px`, the smallest at which every feature map keeps at least one pixel.
    """
    if size_px and min(size_px) < min_size_px:
        raise NetError(
            f"{name} needs images of at least {min_size_px}x{min_size_px} px, "
            f"got {size_px[0]}x{size_px[1]} (img_height x img_width)"
        )
    check_channels(name, num_channels)
    for key, value in (arguments or {}).items():
        if key in RATES:
            require_rate(RATES[key], value)
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **(arguments or {}))
    if num_channels != 3:
        replace_first_conv(net, num_channels)
    return net


def check_channels(name: str, num_channels: int) -> None:
    """Raise NetError unless a net can have so many input channels."""
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise NetError(f"{name}: num_channels must be from 1 to {MAX_CHANNELS}, got {num_channels}")


def use_small_stem(net: Any) -> None:
    """Replace a ResNet's stem by CIFAR's: a 3x3 convolution of stride 1, initialised as the others, and no max pool."""
    stem = net.conv1
    net.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()


def require_rate(name: str, rate: float) -> None:
    """Raise NetError unless a drop probability is at least 0 and below 1."""
    if not 0 <= rate < 1:
        raise NetError(f"{name} must be at least 0 and below 1, got {rate}")


def first_conv_name(net: nn.Module) -> str | None:
    """Return the name of a net's first convolution, whose input is the image; None where there is none."""
    return next((name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)), None)


def replace_first_conv(net: nn.Module, num_channels: int) -> None:
    """Change the first convolution to `num_channels` input channels, its weights converted. Raises NetError."""
    name = first_conv_name(net)
    if name is None:
        raise NetError(f"{type(net).__name__} has no convolution, so num_channels cannot be {num_channels}")
    conv = net.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    weight = fit_input_channels(conv.weight.detach(), num_channels)
    if weight is None:
        raise NetError(f"{name} has {conv.in_channels} input channels, which cannot become {num_channels}")
    conv.weight = nn.Parameter(weight)
    conv.in_channels = num_channels


def fit_input_channels(weight: torch.Tensor, num_channels: int) -> torch.Tensor | None:
    """Return a convolution's weight (O, I, kH, kW) for another number of input channels; None where I is not 1 or 3.

    3 to 1 sums over the inputs. Otherwise the inputs are repeated in turn and divided by how much more there are, so
    that a grey image and its equal channels have the same feature maps (up to the rest of a division by 3).
    """
    channels = weight.shape[1]
    if channels not in (1, 3):
        return None
    if num_channels == 1:
        return weight.sum(dim=1, keepdim=True)  # (O, 1, kH, kW)
    repeats = -(-num_channels // channels)
    return weight.repeat(1, repeats, 1, 1)[:, :num_channels] * channels / num_channels
