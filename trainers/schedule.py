"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then the classic step decay, a cosine, or a constant rate.

    kind "step" multiplies the rate by `decay` every `decay_epochs` epochs; "cosine" falls from `rate` to `min_rate`
    over what is left after the warm-up (Loshchilov & Hutter 2017, eq. 5, without restarts).
    """

    kind: str
    rate: float
    steps_per_epoch: int
    num_epochs: int
    decay: float = 0.1
    decay_epochs: int = 30
    min_rate: float = 0.0
    warmup_epochs: float = 0.0

    def at(self, step: int) -> float:
        """Give the rate of optimizer step `step`, counted from 0."""
        warmup = round(self.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return self.rate * (step + 1) / (warmup + 1)
        if self.kind == "step":
            return self.rate * self.decay ** (step // self.steps_per_epoch // self.decay_epochs)
        if self.kind == "cosine":
            total = max(1, self.num_epochs * self.steps_per_epoch - warmup)
            share = min(1.0, (step - warmup) / total)
            return self.min_rate + (self.rate - self.min_rate) * (1 + math.cos(math.pi * share)) / 2
        return self.rate
