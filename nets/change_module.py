"""Change detection: two images of one place to the classes of what changed.

A pair is one image of 2C channels, the earlier one first. In shapes N is the batch, C an image's channels, K the
classes.
"""

from __future__ import annotations

import torch
from torch import nn

from nets.linknet_module import LAST_WIDTH, LinkNetDecoder
from nets.linknet_module import STRIDE as LINKNET_STRIDE
from nets.support.encoders import build_linknet_encoder, check_sides
from nets.support.errors import NetError
from nets.support.rates import require_rate

BACKBONES = {"siamese_linknet34": "resnet34"}  # whose weights are published
FC_SIAM_WIDTHS = (16, 32, 64, 128)
FC_SIAM_DEPTHS = (2, 2, 3, 3)  # convolutions a level
FC_SIAM_STRIDE = 16


def siamese_linknet34(
    *, num_classes: int = 2, num_channels: int = 6, img_height: int = 256, img_width: int = 256
) -> SiameseLinkNet:
    """SiameseLinkNet over ResNet-34."""
    return SiameseLinkNet("resnet34", num_classes, num_channels, img_height, img_width)


class SiameseLinkNet(nn.Module):
    """LinkNet over one encoder for both images: pairs (N, 2C, H, W), sides multiples of 32, to logits (N, K, H, W).

    The decoder is LinkNet's, on the absolute differences of the two images' maps at every stride. `model_type` is as
    LinkNet's, `num_channels` is 2C. Raises NetError.
    """

    task = "change_detection"
    output = "mask_logits"
    size_step = LINKNET_STRIDE
    head_names = ("head",)

    def __init__(
        self,
        model_type: str = "resnet34",
        num_classes: int = 2,
        num_channels: int = 6,
        img_height: int = 256,
        img_width: int = 256,
    ) -> None:
        super().__init__()
        check_sides("SiameseLinkNet", LINKNET_STRIDE, img_height, img_width)
        self.backbone = build_linknet_encoder(model_type, _channels_of_one(num_channels))
        self.decoder = LinkNetDecoder(self.backbone.channels)
        self.head = nn.Conv2d(LAST_WIDTH, num_classes, 1)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.decoder(_differences(self.backbone, pairs, self.training)))
        return logits


class fc_siam_diff(nn.Module):
    """FC-Siam-diff: pairs (N, 2C, H, W), sides multiples of 16, to logits (N, K, H, W).

    Daudt, Le Saux & Boulch 2018, "Fully Convolutional Siamese Networks for Change Detection",
    https://arxiv.org/abs/1810.08462. The encoder is shared, the absolute differences of its maps are the skip
    connections, and the decoder begins with the later image's last map. The decoder's convolutions of stride 1 are
    plain ones here, transposed ones in the published code, which are the same with turned kernels. `num_channels` is
    2C. Raises NetError.
    """

    task = "change_detection"
    output = "mask_logits"
    size_step = FC_SIAM_STRIDE
    head_names = ("head",)

    def __init__(
        self,
        num_classes: int = 2,
        num_channels: int = 6,
        img_height: int = 256,
        img_width: int = 256,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_sides("fc_siam_diff", FC_SIAM_STRIDE, img_height, img_width)
        require_rate("dropout", dropout)
        widths, depths = FC_SIAM_WIDTHS, FC_SIAM_DEPTHS
        self.pool = nn.MaxPool2d(2)
        inputs = (_channels_of_one(num_channels), *widths)
        self.encoder = nn.ModuleList(
            _level(width_in, [width] * depth, dropout)
            for width_in, width, depth in zip(inputs, widths, depths, strict=False)
        )
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(width, width, 3, 2, 1, output_padding=1) for width in reversed(widths)
        )
        outputs = (widths[0], *widths[:-1])
        self.decoder = nn.ModuleList(
            _level(2 * width, [width] * (depth - 1) + [out], dropout)
            for width, depth, out in list(zip(widths, depths, outputs, strict=True))[:0:-1]
        )
        self.decoder.append(_level(2 * widths[0], [widths[0]], dropout))
        self.head = nn.Conv2d(widths[0], num_classes, 3, padding=1)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        before, after = (self._maps(image) for image in pairs.chunk(2, dim=1))
        x = self.pool(after[-1])  # (N, 128, H/16, W/16)
        for level in range(len(before)):
            difference = (before[-1 - level] - after[-1 - level]).abs()
            x = self.decoder[level](torch.cat([self.upsample[level](x), difference], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the last map of each level: (N, 16, H, W) to (N, 128, H/8, W/8)."""
        maps, x = [], images
        for number, level in enumerate(self.encoder):
            x = level(self.pool(x) if number else x)
            maps.append(x)
        return maps


def _differences(encoder: nn.Module, pairs: torch.Tensor, training: bool) -> list[torch.Tensor]:
    """Return the absolute differences of the two images' maps.

    In training both go through at once, so that batch norm sees what it will see of either.
    """
    images = pairs.chunk(2, dim=1)  # two (N, C, H, W)
    if training:
        maps = [x.chunk(2, dim=0) for x in encoder(torch.cat(images))]
    else:  # a batch of 2N would be in the way of exports
        maps = list(zip(*(encoder(image) for image in images), strict=True))
    return [(before - after).abs() for before, after in maps]


def _level(width_in: int, widths: list[int], dropout: float) -> nn.Sequential:
    """Build 3x3 convolutions to these widths, each with batch norm, ReLU and dropout of whole channels."""
    layers: list[nn.Module] = []
    for before, after in zip([width_in, *widths], widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [nn.Dropout2d(dropout)]
    return nn.Sequential(*layers)


def _channels_of_one(num_channels: int) -> int:
    if num_channels % 2:
        raise NetError(f"num_channels must be even, those of both images of a pair, got {num_channels}")
    return num_channels // 2
