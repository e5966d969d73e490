"""Masks as pictures: classes in their colours, over an image or beside it, and where a prediction is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visualization.raster import MUTED, WRONG

IGNORED = (0, 0, 0)  # pixels of no class
GAP_PX = 4


def colour_table(colors: Sequence[Sequence[int]]) -> np.ndarray:
    """Return colours (256, 3) uint8 by class index; what is no class is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = np.asarray(colors, np.uint8).reshape(-1, 3)
    return table


def coloured(indices: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return class indices (H, W) in their colours, uint8 (H, W, 3)."""
    return table[indices]


def error_image(truth: np.ndarray, prediction: np.ndarray, image: np.ndarray, void: int) -> np.ndarray:
    """Return an image uint8 (H, W, 3), pale, with wrong pixels red and ignored ones black. truth, prediction (H, W)."""
    pale = 255 - (255 - rgb(image).mean(axis=2, keepdims=True)) * 0.35  # (H, W, 1)
    shown = np.repeat(pale.round().astype(np.uint8), 3, axis=2)
    shown[truth != prediction] = WRONG
    shown[truth == void] = IGNORED
    return shown


def strip(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Return panels (H, W, 1 or 3) of one height side by side, with gaps between them."""
    gap = np.full((panels[0].shape[0], GAP_PX, 3), MUTED, np.uint8)
    parts = [rgb(panels[0])]
    for panel in panels[1:]:
        parts += [gap, rgb(panel)]
    return np.concatenate(parts, axis=1)


def rgb(image: np.ndarray) -> np.ndarray:
    """Return an image uint8 (H, W, 1 or 3) with three channels."""
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
