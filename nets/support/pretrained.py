"""Weights to start from: torchvision's published ones or a file's, and the report of what was taken over."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from nets.net_interface import net_parameters
from nets.support.errors import NetError
from nets.support.torchvision_builder import first_conv_name, fit_input_channels

Shape = tuple[int, ...]
BACKBONE = "backbone."  # where nets around a backbone keep it; published files know nothing of that
SHOWN = 5  # names listed of each kind
AUXILIARY = re.compile(r"(AuxLogits|aux1|aux2)\.")  # inception_v3's and googlenet's second heads
OLD_NAMES = (  # names in published files that torchvision renamed since, as its own loaders do
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_1\."), r"\g<1>0."),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_2\."), r"\g<1>3."),
)


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of the net and of the file, by name."""

    loaded: tuple[str, ...]
    skipped_head: tuple[str, ...]  # left fresh on purpose
    skipped_shape: tuple[tuple[str, Shape, Shape], ...]  # name, shape in the file, shape in the net
    skipped_auxiliary: tuple[str, ...]  # of the file: second heads that the net does not have
    unexpected: tuple[str, ...]  # of the file, not in the net
    missing: tuple[str, ...]  # of the net, not in the file
    converted: tuple[str, ...]  # sentences on tensors that were fitted; they are among the loaded

    @property
    def percent(self) -> float:
        """Share of the net's tensors that were loaded, from 0 to 100."""
        total = len(self.loaded) + len(self.skipped_head) + len(self.skipped_shape) + len(self.missing)
        return 100 * len(self.loaded) / total if total else 0.0

    def summary(self) -> str:
        """Tell what was loaded and what was not, a line each."""
        total = len(self.loaded) + len(self.skipped_head) + len(self.skipped_shape) + len(self.missing)
        lines = [f"loaded {len(self.loaded)} of {total} tensors of the net ({self.percent:.1f} %)", *self.converted]
        kinds = {
            "new head, left fresh": self.skipped_head,
            "other shape, left fresh": [_shape_text(*entry) for entry in self.skipped_shape],
            "not in the file, left fresh": self.missing,
            "only in the file": self.unexpected,
            "only in the file, auxiliary heads": self.skipped_auxiliary,
        }
        return "\n".join(lines + [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names])


def published_state_dict(module_name: str, net_name: str, model_args: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Fetch torchvision's best published ImageNet weights for a net, or for its backbone where it has a model_type.

    They are downloaded once and kept in torch's hub folder. Raises NetError: none are published, or the download fails.
    """
    defaults = {parameter.name: parameter.default for parameter in net_parameters(module_name, net_name)}
    name = model_args.get("model_type", defaults["model_type"]) if "model_type" in defaults else net_name
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise NetError(f'torchvision publishes no weights for "{name}"; name a weights file in pretrained_file instead')
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state_dict: dict[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network, HTTP error; a damaged download
        raise NetError(
            f"the published weights of {name} could not be downloaded from {weights.url} ({error}); "
            "fetch that file on another machine, place it in the folder pretrained_path and name it in pretrained_file"
        ) from error
    return state_dict


def load_start_weights(net: nn.Module, state_dict: Mapping[str, Any], *, new_head: bool) -> LoadReport:
    """Copy weights into the net, in place, and report on every name; the net stays as it was where this raises.

    new_head=True (finetune): the head stays fresh, a first convolution is fitted between 1 and 3 channels, a ViT's
    position embeddings are interpolated, weights of a bare backbone find their place in a net around one, and what does
    not match is reported. new_head=False (update): all must match.
    A net with other heads than its last linear or convolutional layer names their prefixes in `head_names`.
    Raises NetError: not a state dict, nothing loaded, or (update) any difference.
    """
    offered = _cleaned(state_dict)
    targets = {_clean_name(name): tensor for name, tensor in net.state_dict().items()}
    if new_head and not any(name in targets for name in offered):
        inside = {f"{BACKBONE}{name}": value for name, value in offered.items()}
        offered = inside if any(name in targets for name in inside) else offered
    heads = _head_names(net) if new_head else ()
    loaded: dict[str, torch.Tensor] = {}
    skipped_shape: list[tuple[str, Shape, Shape]] = []
    converted: list[str] = []
    skipped_head = [name for name in targets if name.startswith(heads)] if heads else []
    for name, target in targets.items():
        if name not in offered or name in skipped_head:
            continue
        value = offered[name]
        if value.shape != target.shape and new_head:
            value, note = _fitted(net, name, value, target)
            converted += [note] if note else []
        if value.shape == target.shape:
            loaded[name] = value
        else:
            skipped_shape.append((name, tuple(value.shape), tuple(target.shape)))
    extra = [name for name in offered if name not in targets and not (heads and name.startswith(heads))]
    auxiliary = [name for name in extra if AUXILIARY.match(name)]
    report = LoadReport(
        loaded=tuple(loaded),
        skipped_head=tuple(skipped_head),
        skipped_shape=tuple(skipped_shape),
        skipped_auxiliary=tuple(auxiliary),
        unexpected=tuple(name for name in extra if name not in auxiliary),
        missing=tuple(name for name in targets if name not in {*offered, *skipped_head} and not _is_counter(name)),
        converted=tuple(converted),
    )
    _require_success(net, report, offered, targets, new_head)
    with torch.no_grad():
        for name, value in loaded.items():
            targets[name].copy_(value)
    return report


def _require_success(
    net: nn.Module, report: LoadReport, offered: Iterable[str], targets: Iterable[str], new_head: bool
) -> None:
    parameters = {_clean_name(name) for name, _ in net.named_parameters()}
    if not parameters.intersection(report.loaded):
        raise NetError(
            f"the weights fit nothing in {type(net).__name__}: the file has {_listed(list(offered))}; "
            f"the net has {_listed(list(targets))}"
        )
    if new_head:
        return
    kinds = {
        "missing in the file": report.missing,
        "unexpected in the file": report.unexpected,
        "of another shape": [_shape_text(*entry) for entry in report.skipped_shape],
    }
    problems = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise NetError(
            f"the weights do not match {type(net).__name__}: {'; '.join(problems)}. "
            'train_mode "update" needs all of them; "finetune" takes what fits and a new head'
        )


def _cleaned(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise NetError("the weights are no state dict: a non-empty mapping of names to tensors is needed")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise NetError(
                f"the weights are no state dict: the entry {name!r} is of type {type(value).__name__}, not a tensor"
            )
    return {_clean_name(name): value for name, value in state_dict.items()}


def _clean_name(name: str) -> str:
    """Strip what DistributedDataParallel ("module.") and torch.compile ("_orig_mod.") add, and mend old names."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name[len("module.") :]
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _head_names(net: nn.Module) -> tuple[str, ...]:
    """Give the prefixes of the head: what the net says itself, or its last linear or convolutional layer."""
    for path, module in net.named_modules():
        if (own := getattr(module, "head_names", None)) is not None:
            return tuple(_clean_name(f"{path}.{name}.".lstrip(".")) for name in own)
    layers = [name for name, module in net.named_modules() if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    return (_clean_name(f"{layers[-1]}."),) if layers else ()


def _fitted(net: nn.Module, name: str, value: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Fit a tensor of another shape where there is a sound way, and say so; else give it back as it is."""
    first_conv = first_conv_name(net)
    if first_conv is not None and name == _clean_name(f"{first_conv}.weight") and value.ndim == 4:
        fitted = fit_input_channels(value, target.shape[1])
        if fitted is not None and fitted.shape == target.shape:
            way = "summed over the input channels" if target.shape[1] == 1 else "repeated, a third each"
            return fitted, f"{name}: {value.shape[1]} input channels became {target.shape[1]}, {way}"
    if name == "encoder.pos_embedding" and isinstance(net, VisionTransformer):
        try:
            state = OrderedDict({name: value})
            fitted = interpolate_embeddings(net.image_size, net.patch_size, state)[name]
        except ValueError:  # not a square of patches: reported as of another shape
            return value, ""
        if fitted.shape == target.shape:
            return fitted, f"{name}: interpolated from {value.shape[1] - 1} to {target.shape[1] - 1} patches"
    return value, ""


def _is_counter(name: str) -> bool:
    """Tell batch norm's counter, which files from before torch 0.4.1 lack; torch's own loading excuses that too."""
    return name.endswith("num_batches_tracked")


def _shape_text(name: str, got: Shape, wanted: Shape) -> str:
    return f"{name} (file {got}, net {wanted})"


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:SHOWN]) + (f", ... and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
