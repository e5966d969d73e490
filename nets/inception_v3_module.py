"""Inception v3: Szegedy et al. 2015, https://arxiv.org/abs/1512.00567, without the auxiliary head: logits only."""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net

MIN_SIZE_PX = 75  # below it the last reduction has no pixel left


def inception_v3(
    *,
    num_classes: int,
    num_channels: int = 3,
    img_height: int = 299,
    img_width: int = 299,
    dropout: float = 0.5,
    transform_input: bool = True,
) -> nn.Module:
    """Inception v3.

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
        "inception_v3",
        num_classes,
        num_channels,
        arguments=arguments,
        size_px=(img_height, img_width),
        min_size_px=MIN_SIZE_PX,
    )
