"""Encoders of dense nets: a backbone's feature maps at strides 2 to 32, under the names of its published weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.formatting import did_you_mean
from nets.efficientnet_lite_module import InvertedResidual, SamePad
from nets.support.backbones import EFFICIENTNET_LITE, build_backbone
from nets.support.channels import check_channels, replace_first_conv
from nets.support.errors import NetError
from nets.support.resnet import RESNETS
from nets.support.timm_encoder import TimmEncoder
from nets.support.timm_names import PREFIX, is_timm

MOBILENETS = ("mobilenet_v3_large", "mobilenet_v3_small")
ENCODERS = (*RESNETS, *EFFICIENTNET_LITE, *MOBILENETS)
LINKNET_MAPS = 5
PROBE = 128  # pixels; the smallest map of five is 4x4


def build_encoder(model_type: str, num_channels: int, output_stride: int = 32) -> Encoder | TimmEncoder:
    """Build the encoder `model_type`: one of ENCODERS, or timm's as "timm:NAME". Raises NetError."""
    if is_timm(model_type):
        return TimmEncoder(model_type.removeprefix(PREFIX), num_channels, output_stride)
    return Encoder(model_type, num_channels, output_stride)


def build_linknet_encoder(model_type: str, num_channels: int) -> Encoder | TimmEncoder:
    """Build the encoder `model_type`, which must have the five maps that LinkNet's decoder adds. Raises NetError."""
    encoder = build_encoder(model_type, num_channels)
    if len(encoder.channels) != LINKNET_MAPS:
        raise NetError(f"LinkNet adds a map of stride 2, and {model_type} has none; for one image use backbone_unet")
    return encoder


class Encoder(nn.Module):
    """A backbone without its head: images (N, C, H, W) to five maps (N, channels[i], H / strides[i], W / strides[i]).

    Strides are 2, 4, 8, 16 and 32; with `output_stride` 16 the last stage is dilated by 2 instead and its stride is 16
    (Chen et al. 2017, https://arxiv.org/abs/1706.05587, section 3.1). Sizes are rounded up. More than 3 channels C
    repeat the three of a colour image in turn; see `fit_input_channels`. Raises NetError.
    """

    def __init__(self, model_type: str, num_channels: int, output_stride: int = 32) -> None:
        super().__init__()
        if model_type not in ENCODERS:
            hint = did_you_mean(model_type, ENCODERS)
            known = f'{", ".join(ENCODERS)} or "{PREFIX}NAME" for timm\'s NAME'
            raise NetError(f'model_type must be one of {known}, got "{model_type}"{hint}')
        check_channels(model_type, num_channels)
        net: Any = build_backbone(model_type, 1 if num_channels == 1 else 3)
        if num_channels > 3 or num_channels == 2:
            replace_first_conv(net, num_channels)
        if model_type in RESNETS:
            names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
        elif model_type in EFFICIENTNET_LITE:
            net.blocks = nn.ModuleList(net.blocks)  # run one by one: no stage for gradient checkpointing
            names = ["pad", "conv_stem", "bn0", "relu0", *(f"blocks.{i}" for i in range(len(net.blocks)))]
        else:
            net.features = nn.ModuleList(net.features)
            names = [f"features.{i}" for i in range(len(net.features))]
        for name in dict.fromkeys(name.partition(".")[0] for name in names):
            self.add_module(name, getattr(net, name))
        self._find_stages(names, num_channels)
        if output_stride == 16:
            for name in self.stages[-1]:
                _dilate(self.get_submodule(name))
        self.strides = (2, 4, 8, 16, output_stride)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps, x = [], images
        for names in self.stages:
            for name in names:
                x = self.get_submodule(name)(x)
            maps.append(x)
        return maps

    @torch.no_grad()
    def _find_stages(self, names: list[str], num_channels: int) -> None:
        """Set the modules of each map, by name, in the order of their run, and the maps' channels."""
        stages: list[list[str]] = [[]]
        self.channels: list[int] = [0]
        self.eval()
        x, size = torch.zeros(1, num_channels, PROBE, PROBE), PROBE
        for name in names:
            x = self.get_submodule(name)(x)
            if x.shape[2] < size:
                if size < PROBE:
                    stages.append([])
                    self.channels.append(0)
                size = x.shape[2]
            stages[-1].append(name)
            self.channels[-1] = x.shape[1]
        self.train()
        self.stages = tuple(map(tuple, stages))


def check_sides(net: str, multiple: int, img_height: int, img_width: int) -> None:
    """Raise NetError unless both sides are multiples of a net's largest stride."""
    if img_height % multiple or img_width % multiple:
        raise NetError(
            f"{net} takes images whose sides are multiples of {multiple} px, got {img_height}x{img_width} "
            "(img_height x img_width)"
        )


def _dilate(stage: nn.Module) -> None:
    """Take the stride from a stage, and set the positions of the kernels behind it two apart.

    Its every second output is then what it was before, with the same weights.
    """
    for module in stage.modules():
        if isinstance(module, InvertedResidual) and isinstance(module.pad, SamePad):
            module.pad = SamePad(module.depthwise_conv.kernel_size[0], stride=1)
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
        elif isinstance(module, nn.Conv2d):
            rows, columns = module.kernel_size
            module.dilation, module.padding = (2, 2), (2 * (rows // 2), 2 * (columns // 2))
