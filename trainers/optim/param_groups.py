"""Parameter groups: which parameters decay and at which rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nets.support.errors import NetError

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(
    net: nn.Module, learning_rate: float, weight_decay: float, *, no_decay_norm_bias: bool = False
) -> list[dict[str, Any]]:
    """Split the trainable parameters into an optimizer's groups, each parameter in exactly one.

    GeM's exponents get no weight decay (Radenovic et al. 2018, their published training); `no_decay_norm_bias` also
    frees biases and norm layers, all that has fewer than two dimensions. The parts that a net names in `constant_rate`
    stand in groups of their own, marked "constant_rate". Raises NetError where nothing is trainable.
    """
    from nets.support.gem import GeM

    exponents = {id(module.p) for module in net.modules() if isinstance(module, GeM)}
    constant = tuple(f"{part}." for part in getattr(net, "constant_rate", ()))
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}  # by (constant rate, free of decay)
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            is_free = id(parameter) in exponents or (no_decay_norm_bias and parameter.ndim < 2)
            groups.setdefault((name.startswith(constant) if constant else False, is_free), []).append(parameter)
    if not groups:
        raise NetError("the net has no trainable parameter: requires_grad is False on all of them")
    return [
        {
            "params": parameters,
            "lr": learning_rate,
            "weight_decay": 0.0 if is_free else weight_decay,
            "constant_rate": is_constant,
        }
        for (is_constant, is_free), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]
