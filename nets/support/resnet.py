"""ResNets with torchvision's names, values and initial weights, and without its import.

He et al. 2015, https://arxiv.org/abs/1512.03385, with the stride of a bottleneck in its 3x3 convolution; ResNeXt:
Xie et al. 2016, https://arxiv.org/abs/1611.05431; Wide ResNet: Zagoruyko & Komodakis 2016,
https://arxiv.org/abs/1605.07146.

They are most of what is trained, and importing torchvision costs as much processor time as importing torch, because its
operators import torch's compiler. A prediction needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from nets.support.channels import check_channels, replace_first_conv

WIDTHS = (64, 128, 256, 512)  # of the four stages; bottlenecks end in four times as many channels


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, C, H, W) to (N, width_out, H / stride, W / stride).

    `width`, of the first convolution, is `width_out`.
    """

    expansion = 1

    def __init__(
        self, width_in: int, width: int, width_out: int, stride: int, groups: int, shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width_out, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.downsample = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        branch += x if self.downsample is None else self.downsample(x)
        rectified: torch.Tensor = self.relu(branch)
        return rectified


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut: (N, C, H, W) to (N, width_out, H / stride, W / stride).

    The 3x3 convolution has `width` channels in `groups`.
    """

    expansion = 4

    def __init__(
        self, width_in: int, width: int, width_out: int, stride: int, groups: int, shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(branch)))))
        branch += x if self.downsample is None else self.downsample(x)
        rectified: torch.Tensor = self.relu(branch)
        return rectified


@dataclass(frozen=True)
class Variant:
    """The blocks of each stage, and the groups and their width in the 3x3 convolutions of the first."""

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, int, int, int]
    groups: int = 1
    group_width: int = 64


RESNETS = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Variant(Bottleneck, (3, 8, 36, 3)),
    "wide_resnet50_2": Variant(Bottleneck, (3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": Variant(Bottleneck, (3, 4, 23, 3), group_width=128),
    "resnext50_32x4d": Variant(Bottleneck, (3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": Variant(Bottleneck, (3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": Variant(Bottleneck, (3, 4, 23, 3), groups=64, group_width=4),
}


class ResNet(nn.Module):
    """Images (N, 3, H, W) to logits (N, num_classes); layer1 to layer4 end at strides 4, 8, 16 and 32.

    Convolutions are initialised by He et al. 2015, fan-out. `zero_init_residual` starts every residual branch at zero
    (Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 5.1).
    """

    def __init__(self, variant: Variant, num_classes: int, *, zero_init_residual: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(variant)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[-1] * variant.block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))  # (N, C, 1, 1) to (N, C)
        return logits


def build_resnet(name: str, num_classes: int, num_channels: int, *, zero_init_residual: bool = False) -> ResNet:
    """Build a net of RESNETS: images (N, num_channels, H, W) to logits (N, num_classes). Raises NetError."""
    check_channels(name, num_channels)
    net = ResNet(RESNETS[name], num_classes, zero_init_residual=zero_init_residual)
    if num_channels != 3:
        replace_first_conv(net, num_channels)
    return net


def use_small_stem(net: ResNet) -> None:
    """Replace a ResNet's stem by CIFAR's: a 3x3 convolution of stride 1, initialised as the others, and no max pool."""
    stem = net.conv1
    net.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()


def _stages(variant: Variant) -> list[nn.Sequential]:
    """Build the four stages. A shortcut is made before the rest of its block: so torchvision draws the same numbers."""
    stages: list[nn.Sequential] = []
    width_in = WIDTHS[0]
    for planes, count in zip(WIDTHS, variant.blocks, strict=True):
        width = planes * variant.group_width // 64 * variant.groups
        width_out = planes * variant.block.expansion
        blocks: list[nn.Module] = []
        for number in range(count):
            stride = 2 if number == 0 and stages else 1
            shortcut = None
            if stride != 1 or width_in != width_out:
                projection = nn.Conv2d(width_in, width_out, 1, stride, bias=False)
                shortcut = nn.Sequential(projection, nn.BatchNorm2d(width_out))
            blocks.append(variant.block(width_in, width, width_out, stride, variant.groups, shortcut))
            width_in = width_out
        stages.append(nn.Sequential(*blocks))
    return stages
