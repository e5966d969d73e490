"""A single-stage, anchor-free detector over any encoder of ours.

A path aggregation network (PAN: Liu et al. 2018, https://arxiv.org/abs/1803.01534, section 3.2) joins the encoder's
maps of stride 8, 16 and 32; a decoupled head (YOLOX: Ge et al. 2021, https://arxiv.org/abs/2107.08430, section 2.1)
gives for each position of each map one box and a logit for each class. The box is four distances from the position to
its sides (FCOS: Tian et al. 2019, https://arxiv.org/abs/1904.01355, section 3.1, equation 2). Departures: maps are
added, not joined, and 3x3 convolutions are depthwise separable, which suits CPUs. There is no objectness and no
centre-ness: the training's targets carry the quality of the box.

In shapes N is the batch, C the image's channels, K the classes, A the positions of the three maps, W their width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from nets.support.encoders import build_encoder, check_sides

STRIDES = (8, 16, 32)
PRIOR = 0.01  # score of every class at first (Lin et al. 2017, https://arxiv.org/abs/1708.02002, section 4.1)
FIRST_DISTANCE = 1.5  # strides from a position to each side of its box at first: boxes of 24, 48 and 96 pixels
MOST_EXPONENT = 6.0  # of a distance, e^6 strides: float16 holds it, and e^-6 is still a box with a width in float32


class Detector(nn.Module):
    """Images (N, C, H, W), sides multiples of 32, to (N, A, 4 + K).

    The columns are left, top, right and bottom in pixels of the input, then a logit for each class; a score is its
    sigmoid. A is H/8 * W/8 + H/16 * W/16 + H/32 * W/32, row by row. `model_type` is an encoder of
    `nets.support.encoders`. Raises NetError.
    """

    task = "detection"
    output = "boxes"
    head_names = ("heads",)
    strides = STRIDES
    centres: torch.Tensor  # (A, 2), pixels
    steps: torch.Tensor  # (A, 1), the strides

    def __init__(
        self,
        model_type: str = "efficientnet_lite0",
        num_classes: int = 1,
        num_channels: int = 3,
        img_height: int = 320,
        img_width: int = 320,
        width: int = 96,
        head_depth: int = 2,
    ) -> None:
        super().__init__()
        check_sides("Detector", STRIDES[-1], img_height, img_width)
        self.backbone = build_encoder(model_type, num_channels)
        self.neck = PathAggregation(self.backbone.channels[-3:], width)
        self.heads = nn.ModuleList(Head(width, head_depth, num_classes) for _ in STRIDES)
        points = anchor_points(img_height, img_width, STRIDES)  # (A, 3)
        self.register_buffer("centres", points[:, :2].contiguous(), persistent=False)  # not a part of another storage
        self.register_buffer("steps", points[:, 2:].contiguous(), persistent=False)
        for module in (self.neck, self.heads):
            module.apply(_initialize)
        for head in self.heads:
            assert isinstance(head, Head)
            head.start_with_prior()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.neck(self.backbone(images)[-3:])
        rows = [head(x).flatten(2) for head, x in zip(self.heads, maps, strict=True)]  # (N, 4 + K, h * w) each
        raw = torch.cat(rows, dim=2).transpose(1, 2)  # (N, A, 4 + K)
        if raw.dtype != torch.float32:
            raw = raw.float()  # bfloat16 would round boxes to 2 pixels in 320
        distances = raw[:, :, :4].clamp(-MOST_EXPONENT, MOST_EXPONENT).exp() * self.steps  # (N, A, 4)
        corners = [self.centres - distances[:, :, :2], self.centres + distances[:, :, 2:]]
        return torch.cat([*corners, raw[:, :, 4:]], dim=2)


class PathAggregation(nn.Module):
    """Maps (N, channels[i], H_i, W_i), each half as large as the one before, to maps (N, W, H_i, W_i)."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_conv(count, width) for count in channels)
        self.down_the_pyramid = nn.ModuleList(_separable(width, width) for _ in channels[1:])
        self.strided = nn.ModuleList(_separable(width, width, stride=2) for _ in channels[1:])
        self.up_the_pyramid = nn.ModuleList(_separable(width, width) for _ in channels[1:])

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for level in reversed(range(len(merged) - 1)):
            larger = nn.functional.interpolate(merged[level + 1], scale_factor=2.0, mode="nearest")
            merged[level] = self.down_the_pyramid[level](merged[level] + larger)
        for level in range(len(merged) - 1):
            smaller = self.strided[level](merged[level])
            merged[level + 1] = self.up_the_pyramid[level](merged[level + 1] + smaller)
        return merged


class Head(nn.Module):
    """A map (N, W, H, W') to (N, 4 + K, H, W'): logarithms of four distances in strides, and K logits."""

    def __init__(self, width: int, depth: int, num_classes: int) -> None:
        super().__init__()
        self.box_branch = nn.Sequential(*(_separable(width, width) for _ in range(depth)))
        self.class_branch = nn.Sequential(*(_separable(width, width) for _ in range(depth)))
        self.box = nn.Conv2d(width, 4, 1)
        self.classes = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.box(self.box_branch(x)), self.classes(self.class_branch(x))], dim=1)

    def start_with_prior(self) -> None:
        """Let every class begin with the score PRIOR, and every box with FIRST_DISTANCE."""
        for layer, bias in ((self.box, math.log(FIRST_DISTANCE)), (self.classes, -math.log((1 - PRIOR) / PRIOR))):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]


def anchor_points(height: int, width: int, strides: Sequence[int]) -> torch.Tensor:
    """Return rows (A, 3) float32: x and y of the middle of each position in pixels, and its stride; level by level."""
    levels = []
    for stride in strides:
        ys, xs = (torch.arange(side // stride, dtype=torch.float32) + 0.5 for side in (height, width))
        y, x = torch.meshgrid(ys * stride, xs * stride, indexing="ij")  # (H / stride, W / stride)
        levels.append(torch.stack([x.flatten(), y.flatten(), torch.full((x.numel(),), float(stride))], dim=1))
    return torch.cat(levels)


def _conv(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width_out, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU())


def _separable(width_in: int, width_out: int, stride: int = 1) -> nn.Sequential:
    """Build a 3x3 convolution of each channel, and one across the channels, each with batch norm."""
    depthwise = nn.Conv2d(width_in, width_in, 3, stride, padding=1, groups=width_in, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(width_in), *_conv(width_in, width_out))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
