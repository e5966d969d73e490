"""timm's nets behind one builder: as a classification net, as features, and as the feature maps of four stages.

In shapes N is the batch, C channels, K the classes, D the features.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from common.formatting import did_you_mean
from nets.support.channels import check_channels
from nets.support.errors import NetError
from nets.support.rates import require_rate
from nets.support.timm_names import NOT_INSTALLED, is_installed

STAGES = 4
OURS = {"drop_rate": "dropout", "drop_path_rate": "drop_path"}  # timm's names of rates: ours
REFUSALS = (RuntimeError, AssertionError, ValueError, TypeError, IndexError)  # of a size, by timm's nets


def build_timm_net(
    name: str,
    num_classes: int,
    num_channels: int,
    size_px: tuple[int, int],
    rates: Mapping[str, float] | None = None,
    output_stride: int = 32,
) -> nn.Module:
    """Build timm's net `name` with fresh weights: images (N, num_channels, H, W) to logits (N, num_classes).

    It has its tensors' names from timm, and its last layers in `head_names`. `size_px` is (height, width); `rates` are
    timm's drop rates, of which those above 0 are passed on. `output_stride` 16 or 8 dilates the last stages of nets
    that know it. Raises NetError.
    """
    timm = _timm()
    wanted = pretrained_cfg(name)
    check_channels(name, num_channels)
    arguments: dict[str, Any] = {key: rate for key, rate in (rates or {}).items() if rate}
    for key, rate in arguments.items():
        require_rate(OURS[key], rate)
    if wanted["fixed_input_size"]:
        arguments["img_size"] = size_px
    if output_stride != 32:
        arguments["output_stride"] = output_stride
    try:
        net: Any = timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=num_channels, **arguments
        )
    except REFUSALS as error:
        if output_stride != 32:
            raise NetError(f"timm's {name} cannot dilate its last stage, which this net needs") from error
        refused = [OURS[key] for key in OURS if f"'{key}'" in str(error)]
        raise NetError(f"{name} has no {refused[0]}" if refused else _too_odd(name, size_px, error)) from error
    net.head_names = _classifier_names(net)
    if size_px != tuple(wanted["input_size"][1:]):
        _try_size(net, name, num_channels, size_px)
    return net


def build_timm_features(name: str, num_channels: int, size_px: tuple[int, int]) -> tuple[nn.Module, int]:
    """Build a net without its classifier: images to features (N, D), and D. Raises NetError."""
    net: Any = build_timm_net(name, 2, num_channels, size_px)
    net.reset_classifier(0)
    features = _try_size(net, name, num_channels, size_px)
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise NetError(f"{name} has no features (N, D) below its classifier")
    return net, features.shape[1]


class TimmStages(nn.Module):
    """The feature maps of four stages: images (N, C, H, W) to a dict "stage1" .. "stage4" of maps (N, C_i, H_i, W_i).

    The stages are the last four at which the resolution falls: strides 4, 8, 16 and 32 for most nets. A net of one
    resolution, such as a ViT, has four blocks at equal distances instead, as in ViTDet (Li et al. 2022,
    https://arxiv.org/abs/2203.16527). What lies behind the last stage is left out. Raises NetError.
    """

    def __init__(self, name: str, num_channels: int, size_px: tuple[int, int]) -> None:
        super().__init__()
        net: Any = build_timm_net(name, 2, num_channels, size_px)
        if not hasattr(net, "forward_intermediates"):
            raise NetError(f"timm's {name} gives no feature maps, so it is no backbone with stages")
        self.indices = _stage_indices(name, [info["reduction"] for info in net.feature_info])
        net.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)
        self.net = net

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.net.forward_intermediates(
            images, indices=self.indices, output_fmt="NCHW", intermediates_only=True, stop_early=True
        )
        return {f"stage{number}": x for number, x in enumerate(maps, 1)}


def pretrained_cfg(name: str) -> dict[str, Any]:
    """Return timm's record of a net's published weights: input_size, mean, std, interpolation, crop_pct, ...

    Raises NetError: timm is not installed, or has no such net.
    """
    timm = _timm()
    if ":" in name or "/" in name:
        raise NetError(
            f'"{name}" would be a download or a folder: name the net alone, such as "resnet18.a1_in1k", and its '
            "weights in pretrained_file (nothing is downloaded; fetch the file or the Hub folder on another machine)"
        )
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise NetError(f'timm {timm.__version__} has no net "{base}"{did_you_mean(base, timm.list_models())}')
    try:
        values: dict[str, Any] = timm.get_pretrained_cfg(name).to_dict()
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
        raise NetError(f'timm has no weights "{tag}" of {base}; it knows: {", ".join(tags) or "none"}') from error
    return {"fixed_input_size": False, **values}


def timm_converted(net: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights as timm itself converts those of its published files for a net: renamed, and resized positions.

    `state` has the names of `net`, which may be around one of timm's; without one it is returned as it is.
    Raises NetError for a file that timm cannot convert.
    """
    inner = next(((path, module) for path, module in net.named_modules() if _is_of_timm(module)), None)
    if inner is None:
        return state
    path, module = inner
    prefix = f"{path}." if path else ""
    convert = getattr(importlib.import_module(type(module).__module__), "checkpoint_filter_fn", None)
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if convert is None or not own:
        return state
    try:
        converted = convert(own, module)
    except (*REFUSALS, KeyError, AttributeError) as error:
        raise NetError(f"timm cannot convert these weights for {type(module).__name__}: {error}") from error
    others = {name: value for name, value in state.items() if not name.startswith(prefix)}
    return others | {f"{prefix}{name}": value for name, value in converted.items()}


def _timm() -> Any:
    if not is_installed():
        raise NetError(NOT_INSTALLED)
    return importlib.import_module("timm")


def _is_of_timm(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.models.") and hasattr(module, "pretrained_cfg")


def _classifier_names(net: Any) -> tuple[str, ...]:
    """Return the names of the layers whose outputs are the logits; of distilled nets they are two."""
    heads = net.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    return tuple(name for name, module in net.named_modules() if any(module is head for head in heads))


def _try_size(net: nn.Module, name: str, num_channels: int, size_px: tuple[int, int]) -> Any:
    """Return the net's output for one image, in eval mode. Raises NetError where it does not take the size."""
    was_training = net.training
    try:
        with torch.no_grad():
            return net.eval()(torch.zeros(1, num_channels, *size_px))
    except REFUSALS as error:
        raise NetError(_too_odd(name, size_px, error)) from error
    finally:
        net.train(was_training)


def _too_odd(name: str, size_px: tuple[int, int], error: Exception) -> str:
    published = "x".join(map(str, pretrained_cfg(name)["input_size"][1:]))
    return f"{name} does not take images of {size_px[0]}x{size_px[1]} px (published for {published}): {error}"


def _stage_indices(name: str, reductions: Sequence[int]) -> list[int]:
    """Return the places of four stages in timm's `feature_info`, whose reductions these are. Raises NetError."""
    if len(set(reductions)) == 1:
        depth = len(reductions)
        if depth >= STAGES:
            return [depth * number // STAGES - 1 for number in range(1, STAGES + 1)]
    last_of = {reduction: place for place, reduction in enumerate(reductions)}
    places = [place for _, place in sorted(last_of.items())][-STAGES:]
    if len(places) < STAGES:
        raise NetError(f"timm's {name} has {len(places)} stages of feature maps; {STAGES} are needed")
    return places
