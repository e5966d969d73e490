"""Metadata and stand-in nets of masks, pairs and boxes, for the service's tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from artifacts.metadata import ModelMetadata
from data_loader.mask_classes import MaskClass
from data_loader.preprocess import Preprocess

CLASSES = (
    MaskClass("<i>ground", 0, (0, 0, 0), "地面"),
    MaskClass("road", 3, (200, 0, 0), "道路"),
    MaskClass("water", 7, (0, 0, 200), "水体"),
)
METADATA = ModelMetadata(
    tuple(found.name for found in CLASSES),
    Preprocess(16, 16, mean=(0, 0, 0), std=(1, 1, 1)),
    {"module": "m", "name": "n", "args": {}},
    task="segmentation",
    output="mask_logits",
    mask_classes=CLASSES,
)


class ColourBackend:
    """Logits (N, 3, H, W) of ground, road and water: how green, red and blue a pixel is."""

    name, device = "fake", "cpu"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(images[:, [1, 0, 2]] * 9)


class ChangeBackend:
    """Logits (N, 2, H, W) of "same", which is 0.5, and of the red that the second image has more."""

    name, device = "fake", "cpu"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        more = images[:, 3] - images[:, 0]
        return np.stack([np.full_like(more, 0.5), more], axis=1) * 9


PAIRS = replace(
    METADATA,
    class_names=("same", "changed"),
    preprocess=Preprocess(16, 16, channels=6, images=2, mean=(0,) * 6, std=(1,) * 6),
    task="change_detection",
    mask_classes=(MaskClass("same", 0, (0, 0, 0), "same"), MaskClass("changed", 255, (200, 0, 0), "changed")),
)


class BoxBackend:
    """One object of class 1, and one of class 2 below it, in each image of 16 x 16."""

    name, device = "fake", "cpu"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        rows = np.array([[4, 4, 12, 8, -9, 2, -9], [2, 10, 14, 15, -9, -9, 1]], np.float32)
        return np.repeat(rows[None], len(images), axis=0)
