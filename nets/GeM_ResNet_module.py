"""A ResNet with GeM and average pooling side by side.

GeM: Radenovic, Tolias & Chum 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation", eq. 3,
https://arxiv.org/abs/1711.02512. ResNet: He et al. 2015, https://arxiv.org/abs/1512.03385.
"""

from __future__ import annotations

import torch
from torch import nn

from common.formatting import did_you_mean
from nets.support.errors import NetError
from nets.support.gem import GeM
from nets.support.rates import require_rate
from nets.support.resnet import build_resnet

MODEL_TYPES = ("resnet18", "resnet34", "resnet50", "resnet101")


class GeM_ResNet_AVP(nn.Module):
    """ResNet, GeM and average pooling side by side, one linear layer: images (N, C, H, W) to logits (N, num_classes).

    The layers up to layer4 carry torchvision's names, so that torchvision's weights load. `in_size` is kept from the
    classic signature and only stored: any height and width work, and they need not be equal.
    Raises NetError for an unknown model_type.
    """

    def __init__(
        self,
        model_type: str = "resnet34",
        in_size: int = 128,
        num_classes: int = 10,
        num_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if model_type not in MODEL_TYPES:
            hint = did_you_mean(str(model_type), MODEL_TYPES)
            raise NetError(f'model_type must be one of {", ".join(MODEL_TYPES)}, got "{model_type}"{hint}')
        require_rate("dropout", dropout)
        # Each residual branch starts at zero (Goyal et al. 2017, sec. 5.1): without it the first epochs at a rate of
        # 0.05 and batch 64 reach losses above 4, as GeM follows the largest features.
        resnet = build_resnet(model_type, num_classes, num_channels, zero_init_residual=True)
        self.in_size = in_size
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.gem = GeM()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * resnet.fc.in_features, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.features(images)
        pooled = torch.cat([self.gem(features), features.float().mean(dim=(2, 3))], dim=1)  # (N, 2C)
        return self.fc(self.dropout(pooled.to(self.fc.weight.dtype)))  # (N, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last feature map (N, C, H/32, W/32), sizes rounded up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features: torch.Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features
