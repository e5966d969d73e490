"""Vision Transformer: Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929.

The position embeddings fix the image size: img_height x img_width, which must be square and divisible into patches.
"""

from __future__ import annotations

from torch import nn

from nets.support.errors import NetError
from nets.support.torchvision_builder import torchvision_net


def vit_b_16(
    *,
    num_classes: int,
    num_channels: int = 3,
    img_height: int = 224,
    img_width: int = 224,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> nn.Module:
    """ViT-B/16."""
    return _vit("vit_b_16", num_classes, num_channels, (img_height, img_width), 16, dropout, attention_dropout)


def vit_b_32(
    *,
    num_classes: int,
    num_channels: int = 3,
    img_height: int = 224,
    img_width: int = 224,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> nn.Module:
    """ViT-B/32."""
    return _vit("vit_b_32", num_classes, num_channels, (img_height, img_width), 32, dropout, attention_dropout)


def vit_l_16(
    *,
    num_classes: int,
    num_channels: int = 3,
    img_height: int = 224,
    img_width: int = 224,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> nn.Module:
    """ViT-L/16."""
    return _vit("vit_l_16", num_classes, num_channels, (img_height, img_width), 16, dropout, attention_dropout)


def vit_l_32(
    *,
    num_classes: int,
    num_channels: int = 3,
    img_height: int = 224,
    img_width: int = 224,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> nn.Module:
    """ViT-L/32."""
    return _vit("vit_l_32", num_classes, num_channels, (img_height, img_width), 32, dropout, attention_dropout)


def vit_h_14(
    *,
    num_classes: int,
    num_channels: int = 3,
    img_height: int = 224,
    img_width: int = 224,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> nn.Module:
    """ViT-H/14."""
    return _vit("vit_h_14", num_classes, num_channels, (img_height, img_width), 14, dropout, attention_dropout)


def _vit(
    name: str,
    num_classes: int,
    num_channels: int,
    size_px: tuple[int, int],
    patch_px: int,
    dropout: float,
    attention_dropout: float,
) -> nn.Module:
    height, width = size_px
    if height != width or height % patch_px:
        raise NetError(
            f"{name} needs square images whose side is a multiple of its patch of {patch_px} px, "
            f"got {height}x{width} (img_height x img_width)"
        )
    arguments = {"image_size": height, "dropout": dropout, "attention_dropout": attention_dropout}
    return torchvision_net(name, num_classes, num_channels, arguments=arguments)
