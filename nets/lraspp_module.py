"""LR-ASPP: the light segmentation head of MobileNetV3, Howard et al. 2019, https://arxiv.org/abs/1905.02244, sec. 6.4.

In shapes N is the batch, C the image's channels, K the classes.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.segmentation.lraspp import LRASPPHead

from nets.support.encoders import build_encoder

WIDTH = 128


class lraspp(nn.Module):
    """Images (N, C, H, W) of any size to logits (N, K, H, W).

    `model_type` is a backbone of `nets.support.encoders`, its last stage dilated; the head, torchvision's, reads its
    last map of stride 8 and that of stride 16. torchvision's own net reads the first of stride 8. Raises NetError.
    """

    task = "segmentation"
    output = "mask_logits"
    size_step = 32  # of exports; the net itself takes any size
    head_names = ("head.low_classifier", "head.high_classifier")

    def __init__(self, model_type: str = "mobilenet_v3_large", num_classes: int = 2, num_channels: int = 3) -> None:
        super().__init__()
        self.backbone = build_encoder(model_type, num_channels, output_stride=16)
        channels = self.backbone.channels
        self.head = LRASPPHead(channels[-3], channels[-1], num_classes, WIDTH)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(images)
        logits = self.head({"low": maps[-3], "high": maps[-1]})  # (N, K, H/8, W/8)
        return nn.functional.interpolate(
            logits, (images.shape[2], images.shape[3]), mode="bilinear", align_corners=False
        )
