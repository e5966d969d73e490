"""Finds duplicates and near-duplicates without comparing each image with every other."""

from __future__ import annotations

import itertools

import numpy as np

from tools.doctor.scan import ScannedImages

MAX_BITS = 5  # of 64 that the hashes of near-duplicates may differ in
MIN_CORRELATION = 0.985  # of their small copies; docs/doctor.md lists what these two find and what they miss
WINDOW = 16  # following images that each is compared with, in an order that puts similar ones together
MIN_VARIANCE = 16.0  # below it a small copy is nearly of one colour, and correlates with all such
_BLOCK = 20_000  # pairs that are compared at a time


def duplicate_groups(images: ScannedImages) -> list[list[int]]:
    """Return the rows of each image that is listed more than once, pixel for pixel, in the order of the rows."""
    rows = np.flatnonzero(images.readable())
    _, inverse, counts = np.unique(images.digests[rows], axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    rows = rows[counts[inverse] > 1]
    groups: dict[int, list[int]] = {}
    for row, group in zip(rows.tolist(), inverse[counts[inverse] > 1].tolist(), strict=True):
        groups.setdefault(group, []).append(row)
    return sorted(groups.values())


def near_duplicate_groups(images: ScannedImages, duplicates: list[list[int]]) -> list[list[int]]:
    """Return the rows of near-duplicates in groups: each image is a near-duplicate of another one of its group.

    Of `duplicates` the first is compared, and its copies are in its group.
    """
    copies = {row: group for group in duplicates for row in group}
    repeated = {row for group in duplicates for row in group[1:]}
    rows = np.array([row for row in np.flatnonzero(images.readable()).tolist() if row not in repeated], np.int64)
    leader = {row: row for row in rows.tolist()}

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    groups: dict[int, list[int]] = {}
    for first, second in near_duplicate_pairs(images.hashes, images.small, rows).tolist():
        first, second = sorted((find(first), find(second)))
        leader[second] = first
    for row in rows.tolist():
        groups.setdefault(find(row), []).append(row)
    chosen = [group for group in groups.values() if len(group) > 1]
    return [sorted(copy for row in group for copy in copies.get(row, [row])) for group in chosen]


def near_duplicate_pairs(hashes: np.ndarray, small: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the pairs (P, 2) of rows whose hashes differ by MAX_BITS at most and whose small copies correlate.

    The 64 bits are cut into MAX_BITS + 2 blocks. Where at most MAX_BITS bits differ, two blocks are equal: for each
    two blocks the rows are sorted by them, and neighbours of equal blocks are compared, at most WINDOW of them.
    A pair is compared at the first two blocks that it has in common, so only once.
    """
    if len(rows) < 2:
        return np.empty((0, 2), np.int64)
    edges = np.linspace(0, 64, MAX_BITS + 3).astype(int)
    blocks = np.array([(1 << int(b)) - (1 << int(a)) for a, b in itertools.pairwise(edges)], np.uint64)
    moments = _moments(small, rows)
    found = []
    for i, j in itertools.combinations(range(len(blocks)), 2):
        keys = hashes[rows] & (blocks[i] | blocks[j])
        order = np.lexsort((hashes[rows], keys))
        keys = keys[order]
        for shift in range(1, min(WINDOW, len(rows) - 1) + 1):
            neighbours = np.flatnonzero(keys[shift:] == keys[:-shift])
            if not len(neighbours):
                break
            pairs = np.stack([order[neighbours], order[neighbours + shift]], axis=1)  # (P, 2), indices into `rows`
            differ = hashes[rows[pairs[:, 0]]] ^ hashes[rows[pairs[:, 1]]]
            earlier = [block for number, block in enumerate(blocks[:j]) if number != i]
            is_new = np.all([differ & block != 0 for block in earlier], axis=0) if earlier else True
            pairs = pairs[(np.bitwise_count(differ) <= MAX_BITS) & is_new]
            for start in range(0, len(pairs), _BLOCK):
                part = pairs[start : start + _BLOCK]
                found.append(rows[part[_correlate(small, rows, moments, part)]])
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def _moments(small: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return mean and variance of each row's small copy, (N, 2) float64."""
    moments = np.empty((len(rows), 2))
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        flat = small[part].reshape(len(part), -1).astype(np.float32)
        moments[start : start + _BLOCK] = np.stack([flat.mean(1), flat.var(1)], axis=1)
    return moments


def _correlate(small: np.ndarray, rows: np.ndarray, moments: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return for each pair (P, 2) of indices into `rows` whether its small copies correlate, (P,) bool."""
    first, second = (small[rows[pairs[:, side]]].reshape(len(pairs), -1).astype(np.float32) for side in (0, 1))
    means, variances = moments[pairs, 0], moments[pairs, 1]  # (P, 2)
    covariance = np.einsum("pd,pd->p", first, second) / first.shape[1] - means.prod(1)
    has_contrast = variances.min(1) >= MIN_VARIANCE
    correlates: np.ndarray = has_contrast & (covariance >= MIN_CORRELATION * np.sqrt(variances.prod(1)))
    return correlates
