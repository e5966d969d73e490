"""GoogLeNet: Szegedy et al. 2014, https://arxiv.org/abs/1409.4842, without the auxiliary heads: logits only."""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net

MIN_SIZE_PX = 15  # below it the fourth pooling has no pixel left


def googlenet(
    *,
    num_classes: int,
    num_channels: int = 3,
    img_height: int = 224,
    img_width: int = 224,
    dropout: float = 0.2,
    transform_input: bool = True,
) -> nn.Module:
    """GoogLeNet, with batch norm.

    `transform_input` turns ImageNet's normalisation into the (x - 0.5) / 0.5 that the published weights were trained
    with. It needs three channels and is off for grey images.
    """
    arguments = {
        "aux_logits": False,
        "init_weights": True,
        "dropout": dropout,
        "transform_input": transform_input and num_channels == 3,
    }
    return torchvision_net(
        "googlenet",
        num_classes,
        num_channels,
        arguments=arguments,
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )
