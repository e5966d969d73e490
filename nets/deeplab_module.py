"""DeepLabV3+: Chen et al. 2018, https://arxiv.org/abs/1802.02611, over a backbone of any family of encoders.

In shapes N is the batch, C the image's channels, K the classes.
"""

from __future__ import annotations

import torch
from torch import nn

from nets.support.encoders import build_encoder
from nets.support.rates import require_rate

WIDTH = 256  # of the pyramid and the decoder
LOW_WIDTH = 48  # of the map of stride 4 (table 1)
RATES = (6, 12, 18)  # pixels of a map of stride 16 between a kernel's positions (section 4.1)


class deeplabv3plus(nn.Module):
    """Images (N, C, H, W) of any size to logits (N, K, H, W).

    `model_type` is a backbone of `nets.support.encoders`. Its last stage is dilated, so that its stride is 16. All 3x3
    convolutions of pyramid and decoder are separable (section 3.2). Raises NetError.
    """

    task = "segmentation"
    output = "mask_logits"
    size_step = 32  # of exports; the net itself takes any size
    head_names = ("head",)

    def __init__(
        self, model_type: str = "resnet34", num_classes: int = 2, num_channels: int = 3, dropout: float = 0.5
    ) -> None:
        super().__init__()
        require_rate("dropout", dropout)
        self.backbone = build_encoder(model_type, num_channels, output_stride=16)
        self.pyramid = AtrousPyramid(self.backbone.channels[-1], dropout)
        self.refine = _separable(WIDTH, WIDTH)
        self.low = _conv(self.backbone.channels[-4], LOW_WIDTH)
        self.merge = _separable(WIDTH + LOW_WIDTH, WIDTH)
        self.head = nn.Conv2d(WIDTH, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(images)
        low = self.low(maps[-4])  # (N, 48, H/4, W/4)
        high = _resize(self.refine(self.pyramid(maps[-1])), low)  # (N, 256, H/16, W/16) to (N, 256, H/4, W/4)
        return _resize(self.head(self.merge(torch.cat([high, low], dim=1))), images)


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: (N, C, H, W) to (N, 256, H, W).

    The branch of the whole image has a bias and no batch norm, unlike the usual one: it has one value a channel and
    image, so that a batch of one image could not be normalised.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        branches = [_conv(channels, WIDTH), *(_separable(channels, WIDTH, rate) for rate in RATES)]
        self.branches = nn.ModuleList(branches)
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, WIDTH, 1), nn.ReLU())
        self.project = _conv((len(branches) + 1) * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.whole(x).expand(-1, -1, x.shape[2], x.shape[3])  # (N, 256, 1, 1) to (N, 256, H, W)
        features: torch.Tensor = self.project(torch.cat([*(branch(x) for branch in self.branches), whole], dim=1))
        return self.dropout(features)


def _conv(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width_out, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU())


def _separable(width_in: int, width_out: int, rate: int = 1) -> nn.Sequential:
    """Build a 3x3 convolution of each channel, `rate` pixels apart, and one across the channels."""
    depthwise = nn.Conv2d(width_in, width_in, 3, padding=rate, dilation=rate, groups=width_in, bias=False)
    return nn.Sequential(depthwise, *_conv(width_in, width_out))


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Resize (N, C, H, W) bilinearly to the height and width of another."""
    return nn.functional.interpolate(x, (like.shape[2], like.shape[3]), mode="bilinear", align_corners=False)
