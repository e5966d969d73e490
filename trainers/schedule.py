"""The learning rate as a function of the place in the training: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARMUP_START = 0.01  # share of the rate that the warm-up begins with


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then the classic step decay, a cosine, or a constant rate.

    kind "step" multiplies the rate by `decay` every `decay_epochs` epochs; "cosine" falls from `rate` to `min_rate`
    over what is left after the warm-up (Loshchilov & Hutter 2017, eq. 5, without restarts). The place is counted in
    epochs, not in steps, so that another batch size or number of processes after a resume does not shift it.
    """

    kind: str
    rate: float
    num_epochs: int
    decay: float = 0.1
    decay_epochs: int = 30
    min_rate: float = 0.0
    warmup_epochs: float = 0.0

    def at(self, epochs: float) -> float:
        """Give the rate after so many epochs, 4.5 being the middle of the fifth."""
        if epochs < self.warmup_epochs:
            return self.rate * (WARMUP_START + (1 - WARMUP_START) * epochs / self.warmup_epochs)
        if self.kind == "step":
            return float(self.rate * self.decay ** (int(epochs) // self.decay_epochs))
        if self.kind == "cosine":
            share = (epochs - self.warmup_epochs) / max(self.num_epochs - self.warmup_epochs, 1e-9)
            return self.min_rate + (self.rate - self.min_rate) * (1 + math.cos(math.pi * min(1.0, share))) / 2
        return self.rate
