"""The order by similarity: similar images stand beside each other, or the most similar to one come first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_CHAINED = 2000  # images that are chained one by one; more are halved along the direction in which they differ most
ROUNDS = 20  # of the power iteration that finds this direction


class Similarity:
    """The features (N, D) of the images of N records, float32 rows of length 1, whose products are their similarity."""

    def __init__(self, features: np.ndarray, records: Sequence[int]) -> None:
        self._features, self._records = features, np.asarray(records, np.int64)

    def chained(self) -> list[int]:
        """Return the records so that neighbours are similar: from one image to the nearest that is left, and so on."""
        chain: list[int] = []
        for rows in _parts(self._features, np.arange(len(self._records))):
            before = self._features[chain[-1]] if chain else self._features[rows[0]]
            chain += _chain(self._features, rows, before)
        return self._records[chain].tolist()

    def nearest(self, record: int) -> list[int]:
        """Return the records, the most similar to one first, itself before all; [] where it has no features."""
        (found,) = np.nonzero(self._records == record)
        if not len(found):
            return []
        products = self._features @ self._features[found[0]]  # (N,)
        products[found[0]] = np.inf
        return self._records[np.argsort(-products, kind="stable")].tolist()


def _parts(features: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Return rows in parts of at most MOST_CHAINED, neighbouring parts similar."""
    if len(rows) <= MOST_CHAINED:
        return [rows] if len(rows) else []
    centred = features[rows] - features[rows].mean(axis=0)  # (n, D)
    direction = centred[0]
    for _ in range(ROUNDS):
        direction = centred.T @ (centred @ direction)
        direction = direction / max(float(np.linalg.norm(direction)), 1e-12)
    order = rows[np.argsort(centred @ direction, kind="stable")]
    half = len(order) // 2
    return [*_parts(features, order[:half]), *_parts(features, order[half:])]


def _chain(features: np.ndarray, rows: np.ndarray, before: np.ndarray) -> list[int]:
    """Return rows, the one nearest to the features `before` (D,) first, then each time the nearest that is left."""
    own = features[rows]
    products = own @ own.T  # (n, n)
    place = int(np.argmax(own @ before))
    chain = [place]
    for _ in range(len(rows) - 1):
        products[:, place] = -np.inf  # taken
        place = int(np.argmax(products[place]))
        chain.append(place)
    return rows[chain].tolist()
