"""Input channels: a net's first convolution, made for images of three, for any number of them."""

from __future__ import annotations

import torch
from torch import nn

from nets.support.errors import NetError

MAX_CHANNELS = 64


def check_channels(name: str, num_channels: int) -> None:
    """Raise NetError unless a net can have so many input channels."""
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise NetError(f"{name}: num_channels must be from 1 to {MAX_CHANNELS}, got {num_channels}")


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
