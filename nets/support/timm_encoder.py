"""timm's nets as encoders of dense nets: their feature maps at the strides where the resolution falls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nets.support.errors import NetError
from nets.support.timm_builder import build_timm_net, pretrained_cfg


class TimmEncoder(nn.Module):
    """A net of timm without its head: images (N, C, H, W) to maps (N, channels[i], H / strides[i], W / strides[i]).

    Strides are 4, 8, 16 and 32, of most nets 2 before them; with `output_stride` 16, which not all nets know, the last
    stage is dilated and its stride is 16. Raises NetError, also for nets of one size, such as a ViT or a Swin.
    """

    def __init__(self, name: str, num_channels: int, output_stride: int = 32) -> None:
        super().__init__()
        published = pretrained_cfg(name)
        if published["fixed_input_size"]:
            raise NetError(f"timm's {name} takes images of one size, so it is no backbone of a net for other ones")
        height, width = published["input_size"][1:]
        net: Any = build_timm_net(name, 2, num_channels, (height, width), output_stride=output_stride)
        stages = [(place, info) for place, info in enumerate(getattr(net, "feature_info", [])) if info["reduction"] > 1]
        self.strides = tuple(info["reduction"] for _, info in stages)
        wanted = (4, 8, 16, output_stride)
        is_known = self.strides in (wanted, (2, *wanted))
        if not is_known or not hasattr(net, "forward_intermediates"):
            found = ", ".join(map(str, self.strides)) or "none"
            raise NetError(f"timm's {name} gives maps of strides {found}; a backbone has those of {wanted}")
        self.indices = [place for place, _ in stages]
        self.channels = [info["num_chs"] for _, info in stages]
        net.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)
        self.net = net

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = self.net.forward_intermediates(
            images, indices=self.indices, output_fmt="NCHW", intermediates_only=True, stop_early=True
        )
        return maps
