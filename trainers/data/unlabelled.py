"""Batches of the images without labels that are learnt from beside the labelled ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from data_loader.bad_images import checked
from data_loader.epoch_plan import EndlessBatches, Step
from data_loader.loaders import ImageDataset, end_processes, training_loader
from trainers.runtime.device import Runtime


class UnlabelledBatches:
    """One process's images for each batch of labelled ones, `per_labelled` times as many, in two views each.

    All images come once before one comes again, over the epochs; which, and how their views are drawn, follows from the
    seed and the number of labelled images before them.
    """

    def __init__(self, data: ImageDataset, per_labelled: int, workers: int, runtime: Runtime) -> None:
        self.data = data
        world = runtime.world
        self._part = EndlessBatches(len(data), data.seed, per_labelled, world.rank, world.size)
        self._loader = training_loader(data, self._part, workers, pin_memory=runtime.device.type == "cuda")

    def training(self, labelled_before: int, steps: list[Step]) -> Iterator[torch.Tensor]:
        """Return for each labelled batch uint8 views (2 M, C, H, W), an image's weak and strong one side by side.

        `labelled_before` counts the labelled images of all epochs before. Raises BadImageError.
        """
        self._part.set_steps(labelled_before, steps)
        batches = iter(self._loader)  # now, and not within a step: torch draws a random number for it
        return (checked(batch)["image"] for batch in batches)

    def close(self) -> None:
        """End the loader processes."""
        end_processes(self._loader)
