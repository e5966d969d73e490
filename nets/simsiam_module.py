"""SimSiam: representation learning from unlabelled images, and the classifier on top of it.

Chen & He 2021, "Exploring Simple Siamese Representation Learning", https://arxiv.org/abs/2011.10566. In shapes N is the
batch, D the backbone's features, P the projections, K the classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nets.support.backbones import build_backbone
from nets.support.errors import NetError
from nets.support.resnet import use_small_stem
from nets.support.timm_builder import build_timm_features
from nets.support.timm_names import PREFIX, is_timm

STEMS = ("auto", "small", "imagenet")
SMALL_INPUT = 64  # pixels: up to this height and width "auto" means the small stem
RESIDUAL = ("resnet", "resnext", "wide_resnet")


class SimSiam(nn.Module):
    """Backbone, projector and predictor: images (N, C, H, W) to features (N, D), not normalised.

    `model_type` is any backbone of `nets.support.backbones` that ends in a linear layer, which is removed. The stem
    "small" is a ResNet's for CIFAR: a 3x3 convolution of stride 1 and no max pool; "auto" uses it up to 64 px.
    Projector: `projector_layers` linear layers of `projector_size`, each with batch norm, the last without affine
    parameters; 3 in the paper, 2 on CIFAR. Predictor: two linear layers, batch norm in the hidden one alone. Its rate
    stays constant.
    Raises NetError.
    """

    task = "simsiam"
    output = "features"
    constant_rate = ("predictor",)
    head_names = ()  # no part depends on the classes
    training_only = ("projector", "predictor")  # parts that an export leaves out

    def __init__(
        self,
        model_type: str = "resnet50",
        num_channels: int = 3,
        img_height: int = 224,
        img_width: int = 224,
        stem: str = "auto",
        projector_size: int = 2048,
        projector_layers: int = 3,
        predictor_size: int = 512,
    ) -> None:
        super().__init__()
        if min(projector_size, projector_layers, predictor_size) < 1:
            raise NetError("projector_size, projector_layers and predictor_size must be at least 1")
        self.projector_size = projector_size
        self.backbone, features = _backbone(model_type, num_channels, (img_height, img_width), stem)
        self.projector = _projector(features, projector_size, projector_layers)
        self.predictor = nn.Sequential(
            nn.Linear(projector_size, predictor_size, bias=False),
            nn.BatchNorm1d(predictor_size),
            nn.ReLU(inplace=True),
            nn.Linear(predictor_size, projector_size),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone(images)
        return features

    def projections(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the projection z and the prediction p, each (N, P), of one view (N, C, H, W)."""
        z: torch.Tensor = self.projector(self.backbone(images))  # (N, D) to (N, P)
        return z, self.predictor(z)


class SimSiam_probe(nn.Module):
    """A SimSiam backbone with one linear layer: images (N, C, H, W) to logits (N, K).

    `freeze: ["backbone"]` makes it the linear probe of the paper; without it the net is fine-tuned. Raises NetError.
    """

    head_names = ("fc",)

    def __init__(
        self,
        model_type: str = "resnet50",
        num_classes: int = 10,
        num_channels: int = 3,
        img_height: int = 224,
        img_width: int = 224,
        stem: str = "auto",
    ) -> None:
        super().__init__()
        self.backbone, features = _backbone(model_type, num_channels, (img_height, img_width), stem)
        self.fc = nn.Linear(features, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.backbone(images))
        return logits


def _backbone(model_type: str, num_channels: int, size: tuple[int, int], stem: str) -> tuple[nn.Module, int]:
    """Build a net without its last linear layer; return it and the number of features D."""
    if stem not in STEMS:
        raise NetError(f'stem must be one of {", ".join(STEMS)}, got "{stem}"')
    is_residual = model_type.startswith(RESIDUAL)
    if is_timm(model_type) and stem != "small":
        return build_timm_features(model_type.removeprefix(PREFIX), num_channels, size)
    net: Any = build_backbone(model_type, num_channels, size, **_arguments(model_type, num_channels, size))
    if is_residual and (stem == "small" or (stem == "auto" and max(size) <= SMALL_INPUT)):
        use_small_stem(net)
    elif stem == "small":
        raise NetError(f'only torchvision\'s ResNets have the stem "small", {model_type} does not')
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    last = list(net.named_modules())[-1][0]
    if not layers or layers[-1] != last:
        raise NetError(f"{model_type} does not end in a linear layer, so it has no features to project")
    features = net.get_submodule(last).in_features
    net.set_submodule(last, nn.Identity())
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, num_channels, *size))
    except RuntimeError as error:
        raise NetError(f"{model_type} does not take images of {size[0]}x{size[1]} px: {error}") from error
    return net.train(), features


def _arguments(model_type: str, num_channels: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return the further arguments of torchvision's function. Raises NetError."""
    if model_type.startswith(RESIDUAL):
        return {"zero_init_residual": True}  # as the published pretraining
    if model_type in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True, "transform_input": num_channels == 3}
    if model_type.startswith("vit"):
        patch = int(model_type.rpartition("_")[2])
        if size[0] != size[1] or size[0] % patch:
            raise NetError(f"{model_type} takes squares of whole patches of {patch} px, got {size[0]}x{size[1]}")
        return {"image_size": size[0]}
    return {}


def _projector(features: int, size: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for number in range(layers):
        is_last = number == layers - 1
        parts += [nn.Linear(features if number == 0 else size, size, bias=False)]
        parts += [nn.BatchNorm1d(size, affine=not is_last), *([] if is_last else [nn.ReLU(inplace=True)])]
    return nn.Sequential(*parts)
