"""The rates of dropout and of stochastic depth."""

from __future__ import annotations

import torch
from torch import nn

from nets.support.errors import NetError


def require_rate(name: str, rate: float) -> None:
    """Raise NetError unless a drop probability is at least 0 and below 1."""
    if not 0 <= rate < 1:
        raise NetError(f"{name} must be at least 0 and below 1, got {rate}")


class StochasticDepth(nn.Module):
    """Leave out the residual branch of each image (N, C, H, W) at a rate, in training, and scale what is left.

    Huang et al. 2016, https://arxiv.org/abs/1603.09382: torchvision's in its mode "row", with its draws. torch.fx can
    trace it, for nets around the backbone.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        kept = torch.empty_like(branch[:, :1, :1, :1]).bernoulli_(1 - self.rate)  # (N, 1, 1, 1)
        return branch * kept.div_(1 - self.rate)
