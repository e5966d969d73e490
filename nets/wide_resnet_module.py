"""Wide ResNet for small images: Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146.

In shapes N is the batch, C the image's channels, K the classes, k the widen factor.
"""

from __future__ import annotations

import torch
from torch import nn

from nets.support.errors import NetError
from nets.support.rates import require_rate

STEM_WIDTH = 16  # table 1
GROUP_WIDTHS = (16, 32, 64)  # table 1, times the widen factor


class WideResNet(nn.Module):
    """WRN-depth-k: images (N, C, H, W) to logits (N, K).

    `depth` is 6n + 4: a 3x3 stem and three groups of n pre-activation blocks, the second and third at half the sizes
    (table 1), then batch norm, ReLU and global average pooling; 28 and a widen factor of 10 are the published best.
    `dropout` is between a block's convolutions (sec. 2.4). Convolutions are initialised by He et al. 2015, fan-in.
    Raises NetError for a depth that is not 6n + 4 and for a widen factor below 1.
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        num_classes: int = 10,
        num_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise NetError(f"depth must be 6n + 4 with n at least 1, such as 16, 22, 28 or 40, got {depth}")
        if widen_factor < 1:
            raise NetError(f"widen_factor must be at least 1, got {widen_factor}")
        require_rate("dropout", dropout)
        blocks = (depth - 4) // 6
        widths = [STEM_WIDTH, *(width * widen_factor for width in GROUP_WIDTHS)]
        self.conv1 = _conv3x3(num_channels, STEM_WIDTH, 1)
        self.layer1 = _group(blocks, widths[0], widths[1], 1, dropout)
        self.layer2 = _group(blocks, widths[1], widths[2], 2, dropout)
        self.layer3 = _group(blocks, widths[2], widths[3], 2, dropout)
        self.bn = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))  # (N, 64 k, H/4, W/4), rounded up
        pooled = torch.flatten(self.avgpool(self.relu(self.bn(features))), 1)  # (N, 64 k)
        logits: torch.Tensor = self.fc(pooled)
        return logits


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, and a shortcut (fig. 1 d): (N, C, H, W) to (N, C', H', W').

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, as in the published code.
    """

    def __init__(self, width_in: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = _conv3x3(width_in, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv3x3(width, width, 1)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or width_in != width:
            self.shortcut = nn.Conv2d(width_in, width, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.relu(self.bn1(x))
        branch: torch.Tensor = self.conv2(self.dropout(self.relu(self.bn2(self.conv1(activated)))))
        return branch + (x if self.shortcut is None else self.shortcut(activated))


def _conv3x3(width_in: int, width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)


def _group(blocks: int, width_in: int, width: int, stride: int, dropout: float) -> nn.Sequential:
    first = PreActivationBlock(width_in, width, stride, dropout)
    return nn.Sequential(first, *(PreActivationBlock(width, width, 1, dropout) for _ in range(blocks - 1)))
