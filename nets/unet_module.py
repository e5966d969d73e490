"""U-Net: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, as in the paper and over a backbone.

In shapes N is the batch, C the image's channels, K the classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from nets.support.encoders import build_encoder, check_sides
from nets.support.errors import NetError

LEVELS = 5  # strides 1 to 16
STRIDE, BACKBONE_STRIDE = 16, 32
BACKBONE_WIDTHS = (256, 128, 64, 32, 16)  # of the decoder, from stride 16 to 1


class unet(nn.Module):
    """Images (N, C, H, W), sides multiples of 16, to logits (N, K, H, W).

    Five levels of two 3x3 convolutions, `width` channels at the first and twice as many at each further one; the paper
    has 64. Unlike there the convolutions are padded and followed by batch norm, and maps are enlarged by nearest
    neighbour in place of a transposed convolution. It has no published weights. Raises NetError.
    """

    task = "segmentation"
    output = "mask_logits"
    size_step = STRIDE
    head_names = ("head",)

    def __init__(
        self,
        num_classes: int = 2,
        num_channels: int = 3,
        img_height: int = 256,
        img_width: int = 256,
        width: int = 32,
    ) -> None:
        super().__init__()
        check_sides("unet", STRIDE, img_height, img_width)
        if not 4 <= width <= 256:
            raise NetError(f"width must be from 4 to 256, got {width}")
        widths = [width * 2**level for level in range(LEVELS)]
        self.pool = nn.MaxPool2d(2)
        pairs = zip([num_channels, *widths], widths, strict=False)
        self.encoder = nn.ModuleList(_two_convolutions(before, after) for before, after in pairs)
        self.decoder = UNetDecoder(widths, widths[-2::-1])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps, x = [], images
        for number, level in enumerate(self.encoder):
            x = level(self.pool(x) if number else x)
            maps.append(x)
        logits: torch.Tensor = self.head(self.decoder(maps))
        return logits


class backbone_unet(nn.Module):
    """U-Net's decoder over a backbone: images (N, C, H, W), sides multiples of 32, to logits (N, K, H, W).

    As the usual implementation has it (segmentation_models_pytorch's `Unet`). `model_type` is a backbone of
    `nets.support.encoders`. Raises NetError.
    """

    task = "segmentation"
    output = "mask_logits"
    size_step = BACKBONE_STRIDE
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
        check_sides("backbone_unet", BACKBONE_STRIDE, img_height, img_width)
        self.backbone = build_encoder(model_type, num_channels)
        self.decoder = UNetDecoder(self.backbone.channels, BACKBONE_WIDTHS)
        self.head = nn.Conv2d(BACKBONE_WIDTHS[-1], num_classes, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.decoder(self.backbone(images)))
        return logits


class UNetDecoder(nn.Module):
    """An encoder's maps (N, channels[i], H_i, W_i), each half as large as the one before, to (N, widths[-1], H, W).

    Each step enlarges by nearest neighbour, joins the map of that size where there still is one, and convolves twice.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        skips = [*reversed(channels[:-1])]
        skips += [0] * (len(widths) - len(skips))
        inputs = [channels[-1], *widths]
        steps = zip(inputs, skips, widths, strict=False)
        self.steps = nn.ModuleList(_two_convolutions(below + skip, width) for below, skip, width in steps)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        x, skips = maps[-1], [*reversed(maps[:-1])]
        for number, step in enumerate(self.steps):
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = step(torch.cat([x, skips[number]], dim=1) if number < len(skips) else x)
        return x


def _two_convolutions(width_in: int, width: int) -> nn.Sequential:
    """Build (N, width_in, H, W) to (N, width, H, W)."""
    layers: list[nn.Module] = []
    for before in (width_in, width):
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
