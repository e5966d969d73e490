"""The order of an epoch by shards: few of them are read at a time, and none comes back in the same epoch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from data_loader.packs import container_of


class ShardOrder:
    """The order of the images of packs: the shards in an order drawn for each epoch, cut into windows, and the images
    shuffled within a window. It follows from the seed, the epoch and the shards alone.

    `paths` (N,) are the images' names, and a window has `window` shards.
    """

    def __init__(self, paths: Sequence[str], window: int, seed: int, *, shuffle: bool = True) -> None:
        self.window, self.seed, self.shuffle = window, seed, shuffle
        numbers: dict[str, int] = {}
        of_images = np.array([numbers.setdefault(container_of(path), len(numbers)) for path in paths], np.int64)  # (N,)
        self.shards = tuple(numbers)
        self._members = np.split(np.argsort(of_images, kind="stable"), np.cumsum(np.bincount(of_images))[:-1])
        self._drawn = functools.lru_cache(maxsize=2)(self._draw)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch's images as indices (N,)."""
        generator, shards = self._shards(epoch)
        parts = [
            np.concatenate([self._members[shard] for shard in shards[first : first + self.window]])
            for first in range(0, len(shards), self.window)
        ]
        return np.concatenate([generator.permutation(part) if self.shuffle else part for part in parts])

    def needed(self, epoch: int, place: int) -> tuple[str, ...]:
        """Return the shards of the window that a place of an epoch's order lies in, and those of the next one."""
        windows, ends = self._drawn(epoch)
        number = int(np.searchsorted(ends, place, side="right"))
        following = windows[number + 1] if number + 1 < len(windows) else self._drawn(epoch + 1)[0][0]
        return windows[number] + following

    def _draw(self, epoch: int) -> tuple[list[tuple[str, ...]], np.ndarray]:
        """Return the shards of each window of an epoch (W,), and the places where the windows end (W,)."""
        shards = self._shards(epoch)[1]
        cut = [shards[first : first + self.window] for first in range(0, len(shards), self.window)]
        sizes = [sum(len(self._members[shard]) for shard in window) for window in cut]
        return [tuple(self.shards[shard] for shard in window) for window in cut], np.cumsum(sizes)

    def _shards(self, epoch: int) -> tuple[np.random.Generator, np.ndarray]:
        """Return the numbers of an epoch's shards in their order (S,), and what draws the rest of its order."""
        generator = np.random.default_rng([self.seed, epoch, 0])
        count = len(self.shards)
        return generator, generator.permutation(count) if self.shuffle else np.arange(count)
