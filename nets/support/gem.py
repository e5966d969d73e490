"""Generalized-mean pooling."""

from __future__ import annotations

import contextlib

import torch
from torch import nn


class GeM(nn.Module):
    """Generalised mean over height and width, (N, C, H, W) to float32 (N, C): mean(clamp(x, eps)^p)^(1/p), eq. 3.

    p is learnable, shape (1,), starts at 3 and stays within `P_RANGE`: 1 is the average, and beyond 6 eps^p
    underflows in float32, whose gradient is NaN. Always computed in float32: in half precision x^3 overflows near
    x = 40 and eps^3 underflows.

    Departure from the published training, which gives p ten times the rate (of a fine-tuning with Adam at 1e-6): with
    SGD from random weights that drives p below 0 and the loss to NaN within six steps at a rate of 0.05, and to the
    plain average at 0.0125. Here p has the net's own rate.
    """

    P_RANGE = (1.0, 6.0)

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.p.clamp_(*self.P_RANGE)  # brought back before use: a clamp in the graph would end its gradient
        with _without_autocast(features.device.type):
            p = self.p.float() if self.training else self.p.float().clamp(*self.P_RANGE)
            powers = features.float().clamp(min=self.eps).pow(p)
            return powers.mean(dim=(2, 3)).pow(1 / p)  # (N, C)


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off where it is on; where it is off, no context, which would end up in exported graphs."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
