"""The optimizer, the parameters that it trains, and the average of their values."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase

import torch
from torch import nn

from common.errors import UserError
from trainers.optim.param_groups import parameter_groups


class FreezeError(UserError):
    """A pattern of `freeze` that names nothing, or patterns that leave nothing to train."""


def freeze_parameters(net: nn.Module, patterns: list[str]) -> list[str]:
    """Freeze the parameters whose name, or whose module's name, fits a pattern; return their names.

    Raises FreezeError for a pattern that fits none, and where no parameter is left to train.
    """
    names = [name for name, _ in net.named_parameters()]
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in names):
            heads = sorted({name.partition(".")[0] for name in names})
            raise FreezeError(f'freeze: "{pattern}" fits no parameter; the net\'s parts are {", ".join(heads)}')
    frozen = [name for name in names if any(_fits(name, pattern) for pattern in patterns)]
    if len(frozen) == len(names):
        raise FreezeError(f"freeze: {', '.join(patterns)} leaves no parameter to train")
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    return frozen


def hold_frozen_in_eval(net: nn.Module) -> None:
    """Put the parts whose parameters are all frozen into eval mode: batch norm keeps its statistics, nothing drops."""
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def hold_norms_in_eval(net: nn.Module) -> None:
    """Put the batch norms into eval mode: they use the means and variances that they have, and keep them.

    Of a net around a `backbone` the backbone's alone: the others have nothing yet that is worth keeping.
    """
    for module in getattr(net, "backbone", net).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def build_optimizer(
    net: nn.Module,
    kind: str,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    decay_norm_and_bias: bool,
    layer_decay: float = 1.0,
    fused: bool = True,
    companion: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """Return SGD or AdamW over the parameter groups of the net, and of the companion that is trained beside it.

    Not `fused` with a gradient scaler: a first step that overflows leaves fused SGD's momentum uninitialised.
    """
    parts = [net]
    if companion is not None and any(parameter.requires_grad for parameter in companion.parameters()):
        parts.append(companion)
    groups = []
    for part in parts:
        decay = layer_decay if isinstance(part, type(net)) else 1.0  # of another net of the kind
        groups += parameter_groups(
            part, learning_rate, weight_decay, no_decay_norm_bias=not decay_norm_and_bias, layer_decay=decay
        )
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov and momentum > 0, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the last layer, and of every group its share of it; some groups keep theirs."""
    for group in optimizer.param_groups:
        if not group["constant_rate"]:
            group["lr"] = rate * group["rate_factor"]


class AveragedNet:
    """The exponential moving average of a net's weights and buffers, in a net of its own.

    The decay starts lower, min(decay, (1 + n) / (10 + n)) after n updates, so that a short run's average is not
    still made of its random start (as TensorFlow's ExponentialMovingAverage does with num_updates).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, updates: int) -> None:
        """Move the average towards `net`, after `updates` earlier moves."""
        share = 1 - min(self.decay, (1 + updates) / (10 + updates))
        pairs = list(zip(_tensors(self.net), _tensors(net), strict=True))
        floats = [(mean, value) for mean, value in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floats], [value for _, value in floats], share)
        for mean, value in pairs:
            if not mean.is_floating_point():  # batch norm's counter
                mean.copy_(value)


def _tensors(net: nn.Module) -> list[torch.Tensor]:
    return [*net.parameters(), *net.buffers()]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
