"""The learning rate as a function of the place in the training, so that a checkpoint needs no state of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from configs.schema import Config

WARMUP_START = 0.01  # share of the rate that the warm-up begins with


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then the classic step decay, a cosine, a line down, or a constant rate.

    kind "step" multiplies the rate by `decay` every `decay_epochs` epochs; "cosine" falls from `rate` to `min_rate`
    over what is left after the warm-up (Loshchilov & Hutter 2017, eq. 5, without restarts); so does "linear" in a
    straight line: with a warm-up the triangular rate of fast CIFAR-10 recipes. The place is counted in epochs, not in
    steps, so that another batch size or number of processes after a resume does not shift it.
    """

    kind: str
    rate: float
    num_epochs: int
    decay: float = 0.1
    decay_epochs: int = 30
    min_rate: float = 0.0
    warmup_epochs: float = 0.0

    def at(self, epochs: float) -> float:
        """Return the rate after so many epochs, 4.5 being the middle of the fifth."""
        if epochs < self.warmup_epochs:
            return self.rate * (WARMUP_START + (1 - WARMUP_START) * epochs / self.warmup_epochs)
        if self.kind == "step":
            return float(self.rate * self.decay ** (int(epochs) // self.decay_epochs))
        if self.kind == "constant":
            return self.rate
        share = min(1.0, (epochs - self.warmup_epochs) / max(self.num_epochs - self.warmup_epochs, 1e-9))
        left = 1 - share if self.kind == "linear" else (1 + math.cos(math.pi * share)) / 2
        return self.min_rate + (self.rate - self.min_rate) * left


def schedule_of(config: Config, world_size: int) -> Schedule:
    """Return the schedule that a config asks for, on so many processes."""
    rate = scaled_rate(config, world_size)
    return Schedule(
        config.learning_rate_schedule,
        rate,
        num_epochs=config.num_epochs,
        decay=config.learning_rate_decay,
        decay_epochs=config.learning_rate_decay_epoch,
        min_rate=config.min_learning_rate * rate / config.learning_rate,
        warmup_epochs=config.warmup_epochs,
    )


def scaled_rate(config: Config, world_size: int) -> float:
    """Return the learning rate for the images of a step; `learning_rate_batch` is the number that the config means."""
    if not config.learning_rate_batch:
        return config.learning_rate
    images = config.batch_size * config.accumulation_steps * world_size
    return config.learning_rate * images / config.learning_rate_batch
