"""Any net of timm by name (https://github.com/huggingface/pytorch-image-models), with fresh weights.

timm is an extra (requirements-timm.txt). Its published weights are started from as files: nothing is downloaded.
"""

from __future__ import annotations

from torch import nn

from nets.support.timm_builder import build_timm_net


def timm_net(
    *,
    model_type: str,
    num_classes: int,
    num_channels: int = 3,
    img_height: int = 224,
    img_width: int = 224,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """timm's net `model_type`, such as "convnext_atto" or "resnet18.a1_in1k", whose tag names published weights."""
    rates = {"drop_rate": dropout, "drop_path_rate": drop_path}
    return build_timm_net(model_type, num_classes, num_channels, (img_height, img_width), rates)
