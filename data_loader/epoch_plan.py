"""The plan of an epoch: the order of its images, its cut into steps, and the seeds of what is random in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_loader.augment import mixed_seed

Key = tuple[int, int]  # (epoch, index of the sample)


@dataclass(frozen=True)
class Step:
    """One optimizer step: its batches' places in the epoch's order, [start, stop) over all processes."""

    batches: tuple[tuple[int, int], ...]

    @property
    def num_samples(self) -> int:
        """Images of the step over all batches and processes."""
        return self.batches[-1][1] - self.batches[0][0]


def plan_epoch(
    num_samples: int, batch_size: int, world_size: int = 1, accumulation_steps: int = 1, start: int = 0
) -> list[Step]:
    """Cut an epoch's order, from place `start` on, into optimizer steps; every image is used exactly once.

    A rest too small for batch norm (fewer than two images a process) joins the batch before it; but for such a rest,
    the cut depends on batch_size * world_size alone, so that several processes do what one with a bigger batch does.
    A rest after `start` that has no batch before it, which only a changed batch size can leave, is given up.
    """
    whole = batch_size * world_size
    smallest = world_size * min(2, batch_size)
    if num_samples - start < smallest:
        return []
    edges = [*range(start, num_samples, whole), num_samples]
    if len(edges) > 2 and edges[-1] - edges[-2] < smallest:
        del edges[-2]
    batches = list(itertools.pairwise(edges))
    groups = [batches[first : first + accumulation_steps] for first in range(0, len(batches), accumulation_steps)]
    return [Step(tuple(group)) for group in groups]


def epoch_order(
    num_samples: int, epoch: int, seed: int, *, shuffle: bool = True, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return the order of an epoch's images as indices (N,), the same on every process.

    With the `groups` of the samples (N,) every group is drawn equally often: images of a rare one come several times,
    and some others not at all.
    """
    generator = np.random.default_rng([seed, epoch, 0])
    if groups is None:
        return generator.permutation(num_samples) if shuffle else np.arange(num_samples)
    numbers = np.unique(groups)
    share = -(-num_samples // len(numbers))
    drawn = []
    for number in numbers:
        members = np.flatnonzero(groups == number)
        rounds = [generator.permutation(members) for _ in range(-(-share // len(members)))]
        drawn.append(np.concatenate(rounds)[:share])
    return generator.permutation(np.concatenate(drawn))[:num_samples]


class EpochBatches:
    """The batch sampler of one process: its part of every batch, as (epoch, index) keys. Set the epoch first."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.order: np.ndarray = np.empty(0, np.int64)
        self.steps: list[Step] = []

    def set_epoch(self, epoch: int, order: np.ndarray, steps: list[Step]) -> None:
        """Set the epoch, order and steps of the next iteration."""
        self.epoch, self.order, self.steps = epoch, order, steps

    def __iter__(self) -> Iterator[list[Key]]:
        for part in self.parts():
            yield [(self.epoch, int(index)) for index in part]

    def parts(self) -> list[np.ndarray]:
        """Return the indices of this process's images in each batch."""
        edges = [edge for step in self.steps for edge in step.batches]
        return [np.array_split(self.order[start:stop], self.world_size)[self.rank] for start, stop in edges]

    def __len__(self) -> int:
        return sum(len(step.batches) for step in self.steps)


class EndlessBatches:
    """The batch sampler of one process for images without end, as (round, index) keys: each comes once a round.

    A batch of labelled images at places [start, stop) has the `per_labelled` times as many images at the places
    [start, stop) * per_labelled of the rounds' orders, one behind the other. Set the steps first.
    """

    def __init__(self, num_samples: int, seed: int, per_labelled: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_samples, self.seed, self.per_labelled = num_samples, seed, per_labelled
        self.rank, self.world_size = rank, world_size
        self.edges: list[tuple[int, int]] = []
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))  # of the round asked for last

    def set_steps(self, before: int, steps: list[Step]) -> None:
        """Set the steps of the next iteration, `before` labelled images behind the start of the training."""
        self.edges = [(before + start, before + stop) for step in steps for start, stop in step.batches]

    def __iter__(self) -> Iterator[list[Key]]:
        for start, stop in self.edges:
            places = np.arange(start * self.per_labelled, stop * self.per_labelled)
            yield [self._key(place) for place in np.array_split(places, self.world_size)[self.rank].tolist()]

    def __len__(self) -> int:
        return len(self.edges)

    def _key(self, place: int) -> Key:
        number, rest = divmod(place, self.num_samples)
        if self._order[0] != number:
            self._order = number, epoch_order(self.num_samples, number, self.seed)
        return number, int(self._order[1][rest])


def net_seed(seed: int) -> int:
    """Return the seed of the initial weights."""
    return mixed_seed(seed, 1)


def unlabelled_seed(seed: int) -> int:
    """Return the seed of the order and the views of images without labels."""
    return mixed_seed(seed, 4)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of everything random in one step on one process (dropout, mixup): nothing is left to be saved."""
    return mixed_seed(seed, 2, step, rank)
