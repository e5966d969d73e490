"""Small nets of every family, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from nets.net_interface import build_net

FAMILIES = {  # the rows of the table in docs/tensorrt-json.md: net: (module, model_args, side in px)
    "GeM_ResNet_AVP resnet18": ("GeM_ResNet_module.GeM_ResNet_AVP", {"model_type": "resnet18"}, 64),
    "GeM_ResNet_AVP resnet34": ("GeM_ResNet_module.GeM_ResNet_AVP", {"model_type": "resnet34"}, 64),
    "GeM_ResNet_AVP resnet50": ("GeM_ResNet_module.GeM_ResNet_AVP", {"model_type": "resnet50"}, 64),
    "GeM_ResNet_AVP resnet101": ("GeM_ResNet_module.GeM_ResNet_AVP", {"model_type": "resnet101"}, 64),
    "resnet18": ("resnet_module.resnet18", {}, 64),
    "WideResNet 10-2": ("wide_resnet_module.WideResNet", {"depth": 10, "widen_factor": 2}, 32),
    "resnext50_32x4d": ("resnext_module.resnext50_32x4d", {}, 64),
    "vgg11_bn": ("vgg_module.vgg11_bn", {}, 64),
    "densenet121": ("densenet_module.densenet121", {}, 64),
    "mobilenet_v2": ("mobilenet_v2_module.mobilenet_v2", {}, 64),
    "mobilenet_v3_small": ("mobilenet_v3_module.mobilenet_v3_small", {}, 64),
    "efficientnet_b0": ("efficientnet_module.efficientnet_b0", {}, 64),
    "efficientnet_lite0": (
        "efficientnet_lite_module.efficientnet_lite0",
        {},
        75,
    ),  # odd maps: padded alike on both sides
    "convnext_tiny": ("convnext_module.convnext_tiny", {}, 64),
    "regnet_y_400mf": ("regnet_module.regnet_y_400mf", {}, 64),
    "shufflenet_v2_x0_5": ("shufflenet_v2_module.shufflenet_v2_x0_5", {}, 64),
    "squeezenet1_1": ("squeezenet_module.squeezenet1_1", {}, 64),
    "inception_v3": ("inception_v3_module.inception_v3", {}, 107),
    "googlenet": ("googlenet_module.googlenet", {}, 64),
    "mnasnet0_5": ("mnasnet_module.mnasnet0_5", {}, 64),
    "alexnet": ("alexnet_module.alexnet", {}, 64),
    "vit_b_32": ("vit_module.vit_b_32", {}, 64),
    "swin_t": ("swin_module.swin_t", {}, 72),  # windows of 7 do not divide it: padding, shift and mask are met
    "swin_v2_t": ("swin_module.swin_v2_t", {}, 64),
    "linknet18": ("linknet_module.linknet18", {}, 64),
    "deeplabv3plus": ("deeplab_module.deeplabv3plus", {"model_type": "efficientnet_lite0"}, 64),
    "lraspp": ("lraspp_module.lraspp", {"model_type": "mobilenet_v3_small"}, 64),
    "unet": ("unet_module.unet", {"width": 8}, 64),
    "backbone_unet": ("unet_module.backbone_unet", {"model_type": "resnet18"}, 64),
    "siamese_linknet34": ("change_module.siamese_linknet34", {}, 64),
    "fc_siam_diff": ("change_module.fc_siam_diff", {}, 64),
}
OPERATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "topk and gather": lambda x: x.flatten(2).gather(2, x.flatten(2).topk(3, dim=2).indices.flip(-1)[:, :, :2]),
    "bilinear": lambda x: functional.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "bilinear, odd sizes": lambda x: functional.interpolate(x, (11, 7), mode="bilinear"),
    "bilinear, aligned": lambda x: functional.interpolate(x, (13, 9), mode="bilinear", align_corners=True),
    "bicubic": lambda x: functional.interpolate(x, scale_factor=2.0, mode="bicubic"),
    "nearest": lambda x: functional.interpolate(x, scale_factor=3.0),
    "log of mean of softmaxes": lambda x: torch.stack([x.softmax(1), (-x).softmax(1)]).mean(0).log(),
    "log softmax": lambda x: x.log_softmax(1),
    "length": lambda x: functional.normalize(x.flatten(1)),
    "max pool rounding up": lambda x: functional.max_pool2d(x, 3, 2, ceil_mode=True),
    "max pool padded": lambda x: functional.max_pool2d(x - 10, 3, 2, 1),
    "average pool, padding counts": lambda x: functional.avg_pool2d(x, 3, 1, 1),
    "average pool, padding does not": lambda x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average pool rounding up": lambda x: functional.avg_pool2d(x, 3, 2, ceil_mode=True),
    "adaptive pool": lambda x: functional.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive pool, larger": lambda x: functional.adaptive_avg_pool2d(x, (7, 11)),
    "padding": lambda x: functional.pad(x, (1, 2, 0, 3)),
    "roll": lambda x: torch.roll(x, (-2, 3), (2, 3)),
    "strided slice": lambda x: x[:, :, 1::2, ::3],
    "negative slice": lambda x: x[:, -3:-1],
    "chunk": lambda x: x.chunk(3, dim=1)[1],
    "split": lambda x: x.split([1, 3, 2], dim=1)[1],
    "unbind": lambda x: x.unbind(1)[4],
    "select": lambda x: x[:, -1],
    "mask": lambda x: x.masked_fill(x > 0.5, -2.0),
    "where": lambda x: torch.where(x < 0, x * 2, x.abs()),
    "not equal": lambda x: torch.where(x.relu() != 0, x, x - 1),
    "expand": lambda x: torch.cat([torch.ones(1, 6, 1, 6).expand(x.shape[0], -1, -1, -1), x], dim=2),
    "filled": lambda x: torch.cat([torch.full((x.shape[0], 1, 9, 6), 0.5), x], dim=1),
    "batch into windows and back": lambda x: (windows(x) * 2).view(-1, 3, 6, 3, 6),
    "windows of the batch sliced": lambda x: windows(x)[:, :, :2],
    "subtraction with a factor": lambda x: torch.sub(x, x.relu(), alpha=3),
    "product added": lambda x: torch.addcmul(torch.ones(1, 6, 1, 1), x.mean((2, 3), keepdim=True), x, value=3),
    "small product added": lambda x: torch.addcmul(x, x.amax((1, 2), keepdim=True), torch.arange(9.0).view(9, 1)),
    "number divided": lambda x: 1 / (x.abs() + 1),
    "power of a number": lambda x: 2.0**x,
    "inverse root": lambda x: torch.rsqrt(x.abs() + 1),
    "bounds": lambda x: x.clamp(-0.5, 0.7) + x.clamp(max=0.1),
    "largest": lambda x: x.amax((2, 3)) + x.amin((2, 3), keepdim=True).flatten(1),
    "sum over all but the batch": lambda x: x.sum((1, 2, 3), keepdim=True),
    "silu and hardswish": lambda x: functional.silu(x) + functional.hardswish(x),
    "gelu": lambda x: functional.gelu(x) + functional.gelu(x, approximate="tanh"),
    "leaky relu and elu": lambda x: functional.leaky_relu(x, 0.1) + functional.elu(x, 0.5) + functional.relu6(x * 9),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x * 2, x + 1, torch.ones(9, 9).tril().log()),
    "masked attention": lambda x: functional.scaled_dot_product_attention(x, x, x, torch.ones(9, 9).tril().bool()),
    "flip": lambda x: x.flip(1, 3),
    "argmax": lambda x: torch.cat([x.argmax(axis, keepdim=axis < 0).float().flatten(1) for axis in (1, -1)], 1),
    "exp, tanh, sigmoid, erf, floor": lambda x: x.exp() + x.tanh() + x.sigmoid() + x.erf() + (x * 3).floor(),
}  # fmt: skip
PAIRS = ("siamese_linknet34", "fc_siam_diff")  # take two images of 3 channels as one of 6
SMALLEST = {  # each family's smallest member and a side at which no feature map is a single pixel in training
    "GeM_ResNet_module": ("GeM_ResNet_AVP", 64),
    "alexnet_module": ("alexnet", 63),
    "convnext_module": ("convnext_tiny", 64),
    "densenet_module": ("densenet121", 64),
    "efficientnet_lite_module": ("efficientnet_lite0", 64),
    "efficientnet_module": ("efficientnet_b0", 64),
    "googlenet_module": ("googlenet", 64),
    "inception_v3_module": ("inception_v3", 107),
    "mnasnet_module": ("mnasnet0_5", 64),
    "mobilenet_v2_module": ("mobilenet_v2", 64),
    "mobilenet_v3_module": ("mobilenet_v3_small", 64),
    "regnet_module": ("regnet_x_400mf", 64),
    "resnet_module": ("resnet18", 64),
    "resnext_module": ("resnext50_32x4d", 64),
    "shufflenet_v2_module": ("shufflenet_v2_x0_5", 64),
    "squeezenet_module": ("squeezenet1_1", 64),
    "swin_module": ("swin_t", 64),
    "vgg_module": ("vgg11", 32),
    "vit_module": ("vit_b_32", 64),
}


def lively_net(row: str) -> tuple[nn.Module, int]:
    """Build a net whose batch norms have seen a batch and whose zero-initialised parts are not zero."""
    name, args, side = FAMILIES[row]
    module, _, net_name = name.partition(".")
    channels = 6 if row in PAIRS else 3
    net = build_net(
        module, net_name, num_classes=7, num_channels=channels, img_height=side, img_width=side, model_args=args
    )
    for parameter in net.parameters():
        if parameter.ndim and not bool(parameter.detach().any()):
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        net.train()(inputs_of(row, 8, side, seed=1))
    return net.eval(), side


def inputs_of(row: str, count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Return inputs of a row of FAMILIES, float32 (count, 3 or 6, side, side): smooth coloured images or pairs."""
    images = random_images(count, side, seed)
    return torch.cat([images, random_images(count, side, seed + 100)], dim=1) if row in PAIRS else images


def random_images(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Return smooth coloured images, float32 (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator) * 2
    return functional.interpolate(coarse, (side, side), mode="bicubic") + torch.randn(1, generator=generator) * 0.1


def windows(x: torch.Tensor) -> torch.Tensor:
    """(N, 6, 9, 6) to (3N, 6, 3, 6): a size that is a multiple of the batch."""
    return x.view(-1, 6, 3, 3, 6).permute(0, 2, 1, 3, 4).reshape(-1, 6, 3, 6)


class Wrapped(nn.Module):
    """A function as a net."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._function(images)


def gem_net() -> nn.Module:
    torch.manual_seed(0)
    net = build_net(
        "GeM_ResNet_module",
        "GeM_ResNet_AVP",
        num_classes=3,
        img_height=32,
        img_width=32,
        model_args={"model_type": "resnet18"},
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after a training: nothing is 0 or 1
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return net.eval()
