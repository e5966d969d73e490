"""Large images seen in overlapping tiles of a net's input size, whose logits are joined: validation and inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np


def blended_logits(
    net: Callable[[np.ndarray], np.ndarray],
    rows: Callable[[int, int], np.ndarray],
    size: tuple[int, int],
    tile: tuple[int, int],
    overlap: float,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Yield logits (K, rows, W) from the top of an image of (width, height) to its bottom.

    `rows(first, end)` gives some of its rows (n, W, C), `net` the logits (N, K, h, w) of tiles (N, h, w, C) of the
    (width, height) `tile`. Tiles overlap by that share at least; where they do, their logits are averaged with weights
    that fall towards a tile's border. An image smaller than a tile is continued with its border pixels.
    """
    (width, height), (tile_w, tile_h) = size, tile
    lefts, tops = starts(width, tile_w, overlap), starts(height, tile_h, overlap)
    across, down = blend_weights(tile_w, lefts), blend_weights(tile_h, tops)
    total_x = _total(across, lefts, tile_w)
    sums, total_y = np.zeros(0, np.float32), np.zeros(tile_h, np.float32)
    for number, top in enumerate(tops):
        band = padded(rows(top, min(top + tile_h, height)), tile_w, tile_h)
        for first in range(0, len(lefts), batch_size):
            part = lefts[first : first + batch_size]
            tiles = np.stack([band[:, left : left + tile_w] for left in part])
            for left, weight, logits in zip(part, across[first : first + batch_size], net(tiles), strict=True):
                if not sums.size:
                    sums = np.zeros((len(logits), tile_h, max(width, tile_w)), np.float32)
                sums[:, :, left : left + tile_w] += logits * (down[number][:, None] * weight)
        total_y += down[number]
        done = (tops[number + 1] if number + 1 < len(tops) else top + tile_h) - top  # rows that no later tile touches
        yield (sums[:, :done] / (total_y[:done, None] * total_x))[:, : height - top, :width]
        sums[:, : tile_h - done], sums[:, tile_h - done :] = sums[:, done:].copy(), 0
        total_y[: tile_h - done], total_y[tile_h - done :] = total_y[done:].copy(), 0


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along a side, evenly spread; neighbours overlap by that share of a tile at least."""
    if length <= tile:
        return [0]
    step = max(1, math.floor(tile * (1 - overlap)))
    count = math.ceil((length - tile) / step) + 1
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def blend_weights(tile: int, begins: Sequence[int]) -> list[np.ndarray]:
    """Return the weights (tile,) of each tile along a side: 1, and falling linearly over what it shares."""
    weights = [np.ones(tile, np.float32) for _ in begins]
    for number in range(len(begins) - 1):
        shared = begins[number] + tile - begins[number + 1]
        if shared > 0:
            ramp = (np.arange(shared, dtype=np.float32) + 0.5) / shared
            weights[number][-shared:] = np.minimum(weights[number][-shared:], ramp[::-1])
            weights[number + 1][:shared] = np.minimum(weights[number + 1][:shared], ramp)
    return weights


def _total(weights: Sequence[np.ndarray], begins: Sequence[int], tile: int) -> np.ndarray:
    total = np.zeros(begins[-1] + tile, np.float32)
    for begin, weight in zip(begins, weights, strict=True):
        total[begin : begin + tile] += weight
    return total


def padded(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Continue pixels (h, w, C) to the right and below with their border, to a tile's size at least."""
    more = max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1])
    return np.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge") if any(more) else pixels
