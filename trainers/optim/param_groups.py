"""Parameter groups: which parameters decay and at which rate."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nets.support.errors import NetError

if TYPE_CHECKING:
    from torch import nn

BACKBONE = "backbone."
BLOCK = re.compile(r"\d+|(encoder_layer_|denselayer)\d+")  # a block's own name in a sequence of blocks


def parameter_groups(
    net: nn.Module,
    learning_rate: float,
    weight_decay: float,
    *,
    no_decay_norm_bias: bool = False,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Split the trainable parameters into an optimizer's groups, each parameter in exactly one.

    GeM's exponents get no weight decay (Radenovic et al. 2018, their published training); `no_decay_norm_bias` also
    frees biases and norm layers, all that has fewer than two dimensions. The parts that a net names in `constant_rate`
    stand in groups of their own, marked "constant_rate". A layer's rate is `layer_decay` times that of the next one
    (Howard & Ruder 2018, https://arxiv.org/abs/1801.06146); "rate_factor" is its share of the last layer's.
    Raises NetError where nothing is trainable.
    """
    from nets.support.gem import GeM

    exponents = {id(module.p) for module in net.modules() if isinstance(module, GeM)}
    constant = tuple(f"{part}." for part in getattr(net, "constant_rate", ()))
    numbers = layer_numbers(net) if layer_decay < 1 else {}
    last = max(numbers.values(), default=0)
    groups: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}  # by (layer, constant rate, free of decay)
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            is_free = id(parameter) in exponents or (no_decay_norm_bias and parameter.ndim < 2)
            is_constant = name.startswith(constant) if constant else False
            groups.setdefault((numbers.get(name, last), is_constant, is_free), []).append(parameter)
    if not groups:
        raise NetError("the net has no trainable parameter: requires_grad is False on all of them")
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (last - number),
            "rate_factor": layer_decay ** (last - number),
            "weight_decay": 0.0 if is_free else weight_decay,
            "constant_rate": is_constant,
        }
        for (number, is_constant, is_free), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def layer_numbers(net: nn.Module) -> dict[str, int]:
    """Return the number of each parameter's layer by the parameter's name, from 0 at the input.

    A layer is a block of a sequence, or another part of the net, with the norms behind it. What is outside the
    `backbone` of a net around one is its last layer.
    """
    parameters = dict(net.named_parameters())
    has_backbone = any(name.startswith(BACKBONE) for name in parameters)
    layers: dict[str, list[str]] = {}
    for name in parameters:
        is_around = has_backbone and not name.startswith(BACKBONE)
        layers.setdefault("" if is_around else _layer_name(name.removeprefix(BACKBONE)), []).append(name)
    around = layers.pop("", [])
    numbers: dict[str, int] = {}
    number = -1
    for names in layers.values():
        if number < 0 or any(parameters[name].ndim > 1 for name in names):
            number += 1
        numbers |= dict.fromkeys(names, number)
    return numbers | dict.fromkeys(around, number + 1)


def _layer_name(parameter: str) -> str:
    """Return "layer1.0" for "layer1.0.conv1.weight", and "conv1" for "conv1.weight"."""
    parts = parameter.split(".")[:-1] or [parameter]
    places = [place for place, part in enumerate(parts) if BLOCK.fullmatch(part)]
    if not places:
        return ".".join(parts)
    end = places[0]
    while end + 1 in places:  # a block of a stage: features.3.1
        end += 1
    return ".".join(parts[: end + 1])
