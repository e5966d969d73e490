"""torchvision's families behind one builder, for any number of image channels and of classes.

torchvision is imported when it is called: that takes as long as importing torch, and ResNets do without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import nn

from nets.support.channels import check_channels, replace_first_conv
from nets.support.errors import NetError
from nets.support.rates import require_rate

if TYPE_CHECKING:
    from torchvision.models import VisionTransformer

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
    import torchvision

    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **(arguments or {}))
    if num_channels != 3:
        replace_first_conv(net, num_channels)
    return net


def torchvision_names() -> list[str]:
    """Return the names of torchvision's nets for classification."""
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def is_vision_transformer(net: nn.Module) -> TypeGuard[VisionTransformer]:
    """Return whether a net is torchvision's VisionTransformer, without importing it for a net that is not."""
    return any(kind.__module__ == "torchvision.models.vision_transformer" for kind in type(net).__mro__)
