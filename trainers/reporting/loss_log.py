"""The losses of training, averaged over the steps of a logging interval."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from trainers.errors import NotFiniteError
from trainers.reporting.tensorboard_logger import TrainingLogger
from trainers.runtime.distributed import World
from trainers.train_state import Progress
from trainers.train_step import StepLosses


@dataclass(frozen=True)
class Interval:
    """Some steps: their mean terms by name, their mean loss, the last one's learning rate, and images a second."""

    terms: dict[str, float]
    loss: float
    rate: float
    speed: float


class LossLog:
    """Collects the losses of steps on the device; `flush` waits for it, checks and logs them."""

    def __init__(self, world: World, logger: TrainingLogger, progress: Progress) -> None:
        self.world, self.logger, self.progress = world, logger, progress
        self.pending: list[tuple[int, float, StepLosses]] = []  # step, learning rate
        self.start()

    def start(self) -> None:
        """Begin to measure the time of an interval."""
        self._since, self._images = time.perf_counter(), 0

    def add(self, step: int, rate: float, losses: StepLosses, num_images: int) -> None:
        """Add a step, of so many images over all processes."""
        self.pending.append((step, rate, losses))
        self._images += num_images

    def flush(self) -> Interval | None:
        """Log the steps since the last call and enter them into the progress; None where there are none.

        Raises NotFiniteError.
        """
        if not self.pending:
            return None
        sums = torch.stack([losses.sums for *_, losses in self.pending]).double()  # (steps, terms)
        sizes = [len(losses.indices) for *_, losses in self.pending]
        counts = torch.tensor(sizes, dtype=torch.float64, device=sums.device)
        self.world.sum(sums)
        self.world.sum(counts)
        self._log_steps((sums / counts[:, None]).tolist())
        step, rate, losses = self.pending[-1]
        self.pending.clear()
        loss_sum = sums[:, 0].sum()
        loss, means = float(loss_sum / counts.sum()), (sums.sum(dim=0) / counts.sum()).tolist()
        speed = self._enter(step, rate, float(loss_sum), loss)
        return Interval(dict(zip(losses.terms, means, strict=True)), loss, rate, speed)

    def _log_steps(self, means: list[list[float]]) -> None:
        """Log each step's mean terms (steps, terms)."""
        for (step, rate, losses), terms in zip(self.pending, means, strict=True):
            if not math.isfinite(terms[0]):
                indices = self.world.gather(losses.indices.tolist())
                raise NotFiniteError(f"the loss became {terms[0]}", step=step, rate=rate, indices=indices)
            tagged = {f"train/{name}": mean for name, mean in zip(losses.terms, terms, strict=True)}
            self.logger.scalars({**tagged, "train/learning_rate": rate}, step)

    def _enter(self, step: int, rate: float, loss_sum: float, loss: float) -> float:
        """Enter the interval into the progress, and begin the next one; return its images a second."""
        images, seconds = self._images, time.perf_counter() - self._since
        self.start()
        speed = images / max(seconds, 1e-9)
        self.progress.loss_sum += loss_sum
        self.progress.train_seconds += seconds
        self.progress.pictures_trained += images
        self.progress.add_train_point(step, loss, rate)
        self.logger.scalars({"train/images_per_second": speed}, step)
        return speed
