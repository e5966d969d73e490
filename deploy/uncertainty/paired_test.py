"""Two nets on the same labelled images: is one better, and is it worse for a class? Exact tests of the images that
only one of them has right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pairing:
    """Images that both nets saw: `gained` are right with the new net alone, `lost` with the old one alone."""

    images: int
    old_right: int
    new_right: int
    gained: int
    lost: int

    @classmethod
    def of(cls, old_right: np.ndarray, new_right: np.ndarray) -> Pairing:
        """Count two bool arrays (N,), image by image."""
        gained, lost = int((new_right & ~old_right).sum()), int((old_right & ~new_right).sum())
        return cls(len(old_right), int(old_right.sum()), int(new_right.sum()), gained, lost)

    @property
    def p_better(self) -> float:
        """The probability of so many gained images, or more, where both nets are equally good (McNemar 1947, exact)."""
        return sign_test(self.gained, self.lost)

    @property
    def p_worse(self) -> float:
        """The probability of so many lost images, or more, where both nets are equally good."""
        return sign_test(self.lost, self.gained)


def pair_by_class(
    labels: np.ndarray, old_right: np.ndarray, new_right: np.ndarray, num_classes: int
) -> tuple[Pairing, ...]:
    """Return the pairing of each class's images by their labels (N,); right is bool (N,)."""
    return tuple(Pairing.of(old_right[labels == label], new_right[labels == label]) for label in range(num_classes))


def sign_test(wins: int, losses: int) -> float:
    """Return P(wins or more of wins + losses fair coins): the exact one-sided p-value; 1 without any."""
    count = wins + losses
    logarithms = [
        math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) - count * math.log(2)
        for i in range(wins, count + 1)
    ]
    return min(math.fsum(map(math.exp, logarithms)), 1.0)


def holm(p_values: list[float], level: float) -> list[bool]:
    """Return which hypotheses are rejected where the probability of any wrong rejection is at most `level`.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the smallest p-value is held against
    level / m, the next against level / (m - 1), and so on to the first that is not below.
    """
    rejected = [False] * len(p_values)
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > level / (len(p_values) - step):
            break
        rejected[index] = True
    return rejected
