"""Boxes moved as their image is: rows (M, 4 or more) that begin with left, top, right and bottom in pixels."""

from __future__ import annotations

import numpy as np

from common.placement import placement
from data_loader.preprocess import Preprocess

LEAST_VISIBLE = 0.3  # share of an object in a crop below which it is ignored: neither to be found nor background
LEAST_SIDE_PX = 1.0  # below which it is not there
IGNORED = 5  # the column of rows (M, 6) that says so

Size = tuple[int, int]  # width, height


def fitted(preprocess: Preprocess, rows: np.ndarray, size: Size) -> np.ndarray:
    """Return the rows (M, 6) of an image of this size where `Preprocess.fit` puts it, cut to the net's input."""
    scale, shift = _moved(preprocess, size)
    return cut(affine(rows, scale, shift), (preprocess.width, preprocess.height))


def affine(rows: np.ndarray, scale: tuple[float, float], shift: tuple[float, float]) -> np.ndarray:
    """Return the rows scaled, then shifted."""
    moved = rows.copy()
    moved[:, :4] = rows[:, :4] * np.tile(scale, 2) + np.tile(shift, 2)
    return moved


def scaled_to(rows: np.ndarray, size: Size, other: Size) -> np.ndarray:
    """Return the rows of an image of one size in the same image of another."""
    return rows if size == other else affine(rows, (other[0] / size[0], other[1] / size[1]), (0.0, 0.0))


def mirrored(rows: np.ndarray, width: int) -> np.ndarray:
    """Return the rows in the image with left and right exchanged."""
    moved = rows.copy()
    moved[:, 0], moved[:, 2] = width - rows[:, 2], width - rows[:, 0]
    return moved


def flipped(rows: np.ndarray, height: int) -> np.ndarray:
    """Return the rows in the image with top and bottom exchanged."""
    moved = rows.copy()
    moved[:, 1], moved[:, 3] = height - rows[:, 3], height - rows[:, 1]
    return moved


def transposed(rows: np.ndarray) -> np.ndarray:
    """Return the rows in the image with rows and columns exchanged."""
    moved = rows.copy()
    moved[:, :4] = rows[:, [1, 0, 3, 2]]
    return moved


def turned(rows: np.ndarray, quarter_turns: int, size: Size) -> np.ndarray:
    """Return the rows in the image of this size turned to the left by so many quarter turns."""
    width, height = size
    if quarter_turns == 1:
        return flipped(transposed(rows), width)
    if quarter_turns == 2:
        return flipped(mirrored(rows, width), height)
    return mirrored(transposed(rows), height) if quarter_turns == 3 else rows


def oriented(boxes: np.ndarray, orientation: int, stored: Size) -> np.ndarray:
    """Return boxes (M, 4) on the stored pixels where the image lies upright; of EXIF's orientations those that turn."""
    width, height = stored
    made = transposed(boxes)  # orientation 5
    if orientation in (6, 7):
        made = mirrored(made, height)
    return flipped(made, width) if orientation in (7, 8) else made


def within(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Return boxes (M, 4) clipped to an image of this size."""
    return np.clip(boxes, 0, np.tile(np.asarray(size, boxes.dtype), 2))


def cut(rows: np.ndarray, size: Size) -> np.ndarray:
    """Return the rows (M, 6) clipped to an image: what is outside is dropped, what mostly is so is ignored."""
    clipped = rows.copy()
    clipped[:, :4] = within(rows[:, :4], size)
    sides, before = clipped[:, 2:4] - clipped[:, :2], rows[:, 2:4] - rows[:, :2]
    shares = sides.prod(axis=1) / np.maximum(before.prod(axis=1), 1e-9)
    clipped[:, IGNORED] = np.maximum(clipped[:, IGNORED], shares < LEAST_VISIBLE)
    return clipped[(sides >= LEAST_SIDE_PX).all(axis=1)]


def unfitted(preprocess: Preprocess, boxes: np.ndarray, size: Size) -> np.ndarray:
    """Return boxes (n, 4) of the net's input in the pixels of the image of this size, clipped to it."""
    scale, shift = _moved(preprocess, size)
    return within((boxes - np.tile(shift, 2)) / np.maximum(np.tile(scale, 2), 1e-9), size)


def _moved(preprocess: Preprocess, size: Size) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the scale (across, down) and the shift (right, down) of an image's pixels in the net's input."""
    place = placement(preprocess.resize, size, (preprocess.width, preprocess.height))
    (left, top, right, bottom), seen = place.inside, place.seen
    scale = (right - left) / (seen[2] - seen[0]), (bottom - top) / (seen[3] - seen[1])
    return scale, (left - seen[0] * scale[0], top - seen[1] * scale[1])
