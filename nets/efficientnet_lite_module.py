"""EfficientNet-Lite: EfficientNet (Tan & Le 2019, https://arxiv.org/abs/1905.11946) for integer and edge inference.

Google's lite variants (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) have no
squeeze-and-excitation, ReLU6 instead of SiLU, and a stem and head that are not scaled. Their published weights were
trained with TensorFlow: images are (x - 127) / 128, x from 0 to 255, and a convolution of stride 2 pads more at the
bottom and the right ("same" padding). In shapes N is the batch, C the image's channels, K the classes.

`drop_path` is the rate of stochastic depth (Huang et al. 2016) at the last block; it grows linearly from 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from nets.support.channels import check_channels
from nets.support.rates import StochasticDepth, require_rate

STEM_WIDTH, HEAD_WIDTH = 32, 1280  # of every variant


class Stage(NamedTuple):
    """Blocks of one width."""

    kernel: int
    stride: int  # of the first block
    expansion: int
    width: int
    blocks: int
    is_last_of_stride: bool


STAGES = (  # EfficientNet-B0's (table 1)
    Stage(3, 1, 1, 16, 1, is_last_of_stride=False),
    Stage(3, 2, 6, 24, 2, is_last_of_stride=True),
    Stage(5, 2, 6, 40, 2, is_last_of_stride=True),
    Stage(3, 2, 6, 80, 3, is_last_of_stride=False),
    Stage(5, 1, 6, 112, 3, is_last_of_stride=True),
    Stage(5, 2, 6, 192, 4, is_last_of_stride=False),
    Stage(3, 1, 6, 320, 1, is_last_of_stride=True),
)


def efficientnet_lite0(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.2, drop_path: float = 0.2
) -> EfficientNetLite:
    """EfficientNet-Lite0, published for 224 px."""
    return EfficientNetLite(1.0, 1.0, num_classes, num_channels, dropout, drop_path)


def efficientnet_lite1(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.2, drop_path: float = 0.2
) -> EfficientNetLite:
    """EfficientNet-Lite1, published for 240 px."""
    return EfficientNetLite(1.0, 1.1, num_classes, num_channels, dropout, drop_path)


def efficientnet_lite2(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.3, drop_path: float = 0.2
) -> EfficientNetLite:
    """EfficientNet-Lite2, published for 260 px."""
    return EfficientNetLite(1.1, 1.2, num_classes, num_channels, dropout, drop_path)


def efficientnet_lite3(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.3, drop_path: float = 0.2
) -> EfficientNetLite:
    """EfficientNet-Lite3, published for 280 px."""
    return EfficientNetLite(1.2, 1.4, num_classes, num_channels, dropout, drop_path)


def efficientnet_lite4(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.3, drop_path: float = 0.2
) -> EfficientNetLite:
    """EfficientNet-Lite4, published for 300 px."""
    return EfficientNetLite(1.4, 1.8, num_classes, num_channels, dropout, drop_path)


class EfficientNetLite(nn.Module):
    """Inverted residual blocks and one linear layer: images (N, C, H, W) to logits (N, K).

    `width` scales the channels of all stages, `depth` the blocks of all but the first and the last. `stage_names` are
    the modules whose feature maps are the last of stride 4, 8, 16 and 32. Convolutions are initialised by He et al.
    2015, fan-out. Raises NetError for a number of channels beyond 1 to 64, and for rates not from 0 to below 1.
    """

    def __init__(
        self, width: float, depth: float, num_classes: int, num_channels: int, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        check_channels("EfficientNet-Lite", num_channels)
        require_rate("dropout", dropout)
        require_rate("drop_path", drop_path)
        counts = [STAGES[0].blocks, *(math.ceil(depth * stage.blocks) for stage in STAGES[1:-1]), STAGES[-1].blocks]
        total = sum(counts)
        blocks: list[nn.Module] = []
        self.stage_names: list[str] = []
        width_in = STEM_WIDTH
        for stage, count in zip(STAGES, counts, strict=True):
            width_out = _scaled(stage.width, width)
            for number in range(count):
                stride, rate = (1 if number else stage.stride), drop_path * len(blocks) / total
                blocks.append(InvertedResidual(width_in, width_out, stage.kernel, stride, stage.expansion, rate))
                width_in = width_out
            if stage.is_last_of_stride:
                self.stage_names.append(f"blocks.{len(blocks) - 1}")
        self.pad = SamePad(3)
        self.conv_stem = nn.Conv2d(num_channels, STEM_WIDTH, 3, stride=2, bias=False)
        self.bn0 = _norm(STEM_WIDTH)
        self.relu0 = nn.ReLU6(inplace=True)
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(width_in, HEAD_WIDTH, 1, bias=False)
        self.bn1 = _norm(HEAD_WIDTH)
        self.relu1 = nn.ReLU6(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(HEAD_WIDTH, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.relu0(self.bn0(self.conv_stem(self.pad(images))))  # (N, 32, H/2, W/2), sizes rounded up
        x = self.relu1(self.bn1(self.conv_head(self.blocks(x))))  # (N, 1280, H/32, W/32), sizes rounded up
        logits: torch.Tensor = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return logits


class InvertedResidual(nn.Module):
    """(N, C, H, W) to (N, C', H/stride, W/stride): Sandler et al. 2018, https://arxiv.org/abs/1801.04381."""

    def __init__(
        self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int, drop_path: float
    ) -> None:
        super().__init__()
        width = width_in * expansion
        self.expand_conv = nn.Conv2d(width_in, width, 1, bias=False) if expansion > 1 else None
        self.bn0 = _norm(width) if expansion > 1 else None
        self.pad: nn.Module = SamePad(kernel) if stride == 2 else nn.Identity()
        padding = 0 if stride == 2 else kernel // 2
        self.depthwise_conv = nn.Conv2d(width, width, kernel, stride, padding, groups=width, bias=False)
        self.bn1 = _norm(width)
        self.project_conv = nn.Conv2d(width, width_out, 1, bias=False)
        self.bn2 = _norm(width_out)
        self.relu = nn.ReLU6(inplace=True)
        self.drop = StochasticDepth(drop_path)
        self.has_shortcut = stride == 1 and width_in == width_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = x
        if self.expand_conv is not None and self.bn0 is not None:
            branch = self.relu(self.bn0(self.expand_conv(x)))
        branch = self.relu(self.bn1(self.depthwise_conv(self.pad(branch))))
        branch = self.bn2(self.project_conv(branch))
        return x + self.drop(branch) if self.has_shortcut else branch


class SamePad(nn.Module):
    """TensorFlow's padding of a convolution of stride 2: (N, C, H, W), the larger half at the bottom and the right.

    With `stride` 1 there are H x W positions, of which every second is one of stride 2.
    """

    def __init__(self, kernel: int, stride: int = 2) -> None:
        super().__init__()
        self.reach, self.stride = kernel // 2, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2], x.shape[3]
        above, left = self.reach - 1 + height % 2, self.reach - 1 + width % 2  # as much as below where a side is odd
        below, right = (self.reach, self.reach) if self.stride == 2 else (2 * self.reach - above, 2 * self.reach - left)
        return nn.functional.pad(x, (left, right, above, below))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


def _scaled(width: int, factor: float) -> int:
    """Return a width times the factor, as the nearest multiple of 8 that is at least nine tenths of it."""
    scaled = width * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded
