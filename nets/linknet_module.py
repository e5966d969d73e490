"""LinkNet: Chaurasia & Culurciello 2017, https://arxiv.org/abs/1707.03718, over a ResNet.

As the usual implementation has it (segmentation_models_pytorch's `Linknet`): five decoder blocks, the first three with
the encoder's maps of stride 16, 8 and 4 added, the fourth with that of stride 2. In shapes N is the batch, C the
image's channels, K the classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from nets.support.encoders import build_linknet_encoder, check_sides

BACKBONES = {"linknet18": "resnet18", "linknet34": "resnet34", "linknet50": "resnet50"}  # whose weights are published
LAST_WIDTH = 32  # channels before the head
STRIDE = 32


def linknet18(*, num_classes: int, num_channels: int = 3, img_height: int = 256, img_width: int = 256) -> LinkNet:
    """LinkNet over ResNet-18, as in the paper."""
    return LinkNet("resnet18", num_classes, num_channels, img_height, img_width)


def linknet34(*, num_classes: int, num_channels: int = 3, img_height: int = 256, img_width: int = 256) -> LinkNet:
    """LinkNet over ResNet-34."""
    return LinkNet("resnet34", num_classes, num_channels, img_height, img_width)


def linknet50(*, num_classes: int, num_channels: int = 3, img_height: int = 256, img_width: int = 256) -> LinkNet:
    """LinkNet over ResNet-50."""
    return LinkNet("resnet50", num_classes, num_channels, img_height, img_width)


class LinkNet(nn.Module):
    """Images (N, C, H, W), sides multiples of 32, to logits (N, K, H, W). Raises NetError."""

    task = "segmentation"
    output = "mask_logits"
    size_step = STRIDE
    head_names = ("head",)

    def __init__(
        self,
        model_type: str = "resnet34",
        num_classes: int = 2,
        num_channels: int = 3,
        img_height: int = 256,
        img_width: int = 256,
    ) -> None:
        super().__init__()
        check_sides("LinkNet", STRIDE, img_height, img_width)
        self.backbone = build_linknet_encoder(model_type, num_channels)
        self.decoder = LinkNetDecoder(self.backbone.channels)
        self.head = nn.Conv2d(LAST_WIDTH, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.decoder(self.backbone(images)))
        return logits


class LinkNetDecoder(nn.Module):
    """An encoder's five maps (N, channels[i], H / 2^(i+1), W / 2^(i+1)) to features (N, 32, H, W)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [*reversed(channels), LAST_WIDTH]
        self.blocks = nn.ModuleList(_block(*pair) for pair in itertools.pairwise(widths))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        x = maps[-1]
        for block, skip in zip(self.blocks, [*reversed(maps[:-1]), None], strict=True):
            x = block(x)
            x = x if skip is None else x + skip
        return x


def _block(width_in: int, width_out: int) -> nn.Sequential:
    """Build a decoder block: (N, width_in, H, W) to (N, width_out, 2H, 2W)."""
    width = width_in // 4
    return nn.Sequential(
        *(nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
        *(nn.ConvTranspose2d(width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
        *(nn.Conv2d(width, width_out, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU(inplace=True)),
    )
