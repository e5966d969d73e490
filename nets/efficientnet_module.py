"""EfficientNet: Tan & Le 2019, https://arxiv.org/abs/1905.11946; V2: Tan & Le 2021, https://arxiv.org/abs/2104.00298.

`drop_path` is the rate of stochastic depth (Huang et al. 2016) at the last block; it grows linearly from 0.
"""

from __future__ import annotations

from torch import nn

from nets.support.torchvision_builder import torchvision_net


def efficientnet_b0(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.2, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNet-B0."""
    return torchvision_net(
        "efficientnet_b0", num_classes, num_channels, arguments={"dropout": dropout, "stochastic_depth_prob": drop_path}
    )


def efficientnet_b1(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.2, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNet-B1."""
    return torchvision_net(
        "efficientnet_b1", num_classes, num_channels, arguments={"dropout": dropout, "stochastic_depth_prob": drop_path}
    )


def efficientnet_b2(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.3, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNet-B2."""
    return torchvision_net(
        "efficientnet_b2", num_classes, num_channels, arguments={"dropout": dropout, "stochastic_depth_prob": drop_path}
    )


def efficientnet_b3(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.3, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNet-B3."""
    return torchvision_net(
        "efficientnet_b3", num_classes, num_channels, arguments={"dropout": dropout, "stochastic_depth_prob": drop_path}
    )


def efficientnet_b4(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.4, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNet-B4."""
    return torchvision_net(
        "efficientnet_b4", num_classes, num_channels, arguments={"dropout": dropout, "stochastic_depth_prob": drop_path}
    )


def efficientnet_b5(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.4, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNet-B5."""
    return torchvision_net(
        "efficientnet_b5", num_classes, num_channels, arguments={"dropout": dropout, "stochastic_depth_prob": drop_path}
    )


def efficientnet_b6(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.5, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNet-B6."""
    return torchvision_net(
        "efficientnet_b6", num_classes, num_channels, arguments={"dropout": dropout, "stochastic_depth_prob": drop_path}
    )


def efficientnet_b7(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.5, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNet-B7."""
    return torchvision_net(
        "efficientnet_b7", num_classes, num_channels, arguments={"dropout": dropout, "stochastic_depth_prob": drop_path}
    )


def efficientnet_v2_s(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.2, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNetV2-S."""
    return torchvision_net(
        "efficientnet_v2_s",
        num_classes,
        num_channels,
        arguments={"dropout": dropout, "stochastic_depth_prob": drop_path},
    )


def efficientnet_v2_m(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.3, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNetV2-M."""
    return torchvision_net(
        "efficientnet_v2_m",
        num_classes,
        num_channels,
        arguments={"dropout": dropout, "stochastic_depth_prob": drop_path},
    )


def efficientnet_v2_l(
    *, num_classes: int, num_channels: int = 3, dropout: float = 0.4, drop_path: float = 0.2
) -> nn.Module:
    """EfficientNetV2-L."""
    return torchvision_net(
        "efficientnet_v2_l",
        num_classes,
        num_channels,
        arguments={"dropout": dropout, "stochastic_depth_prob": drop_path},
    )
