"""Small PIM nets whose outputs differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nets.pim_module import PIM


def build(model_type: str = "resnet18", side: int = 64, **args: Any) -> PIM:
    net = PIM(model_type, 5, 3, side, side, **{"fpn_size": 16, **args})
    return enlivened(net)


def enlivened(net: PIM) -> PIM:
    """Make nothing start at zero, and the positions' classes differ enough to be ranked."""
    with torch.no_grad():
        if net.combiner is not None:
            net.combiner.alpha.fill_(0.7)
            net.combiner.adjacency.normal_()
            net.combiner.norm.weight.uniform_(0.5, 1.5)
        for head in net.heads:
            head[1].weight.uniform_(0.5, 1.5)
            head[3].weight.mul_(8)
    return net


def settle(net: PIM, images: torch.Tensor) -> None:
    """Have every batch norm know this batch: fresh statistics fit no depth."""
    norms = [module for module in net.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
