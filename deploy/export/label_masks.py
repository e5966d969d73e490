"""The label images of a verification's images: what an int8 file costs is counted against the truth."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from artifacts.metadata import ModelMetadata
from artifacts.pixel_confusion import mean_iou, pixel_confusion
from data_loader.bands import band_image_size
from data_loader.decoding import image_size
from data_loader.mask_classes import others_beside
from data_loader.mask_folders import LABELS, ONE, TWO
from data_loader.masks import fit_mask, read_mask, upright
from data_loader.preprocess import ImageError


def label_masks(files: Sequence[str], metadata: ModelMetadata) -> np.ndarray | None:
    """Return each image's mask at the net's input size, uint8 (N, H, W); None unless every image has one.

    It is the file of the same stem in labels/ beside the image's folder images/, or A/ of pairs.
    """
    masks = []
    for file in files:
        mask = _mask_of(Path(file), metadata)
        if mask is None:
            return None
        masks.append(mask)
    return np.stack(masks) if masks else None


def confusions(truth: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the pixels of each image by class and predicted class, (N, K, K). truth (N, H, W), logits (N, K, H, W)."""
    pairs = zip(truth, logits, strict=True)
    return np.stack([pixel_confusion(mask, scores.argmax(axis=0), logits.shape[1]) for mask, scores in pairs])


def iou_loss(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Return the mean IoU lost between two nets' confusions of the same images, (N, K, K), and its standard deviation.

    The deviation is the jackknife's over the images (Efron & Stein 1981); of one image alone it is infinite.
    """
    count, sums = len(before), (before.sum(axis=0), after.sum(axis=0))
    loss = mean_iou(sums[0]) - mean_iou(sums[1])
    if count < 2:
        return loss, math.inf
    pairs = zip(before, after, strict=True)
    left_out = np.array([mean_iou(sums[0] - one) - mean_iou(sums[1] - other) for one, other in pairs])
    return loss, math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))


def _mask_of(image: Path, metadata: ModelMetadata) -> np.ndarray | None:
    preprocess = metadata.preprocess
    if image.parent.name != (TWO if preprocess.images == 2 else ONE)[0] or not metadata.mask_classes:
        return None
    path = _by_stem(str(image.parent.parent / LABELS)).get(image.stem)
    if path is None:
        return None
    try:
        size, stored, orientation = (band_image_size if preprocess.has_bands else image_size)(str(image))
        others = others_beside(image.parent.parent, metadata.mask_classes)
        indices = read_mask(path, metadata.mask_classes, preprocess.max_pixels, others).indices
    except ImageError:
        return None
    found = indices.shape[::-1]
    if found not in (size, stored):
        return None
    return fit_mask(preprocess, upright(indices, orientation if found != size else 1))


@functools.lru_cache(maxsize=2)
def _by_stem(folder: str) -> dict[str, str]:
    try:
        return {path.stem: str(path) for path in sorted(Path(folder).iterdir()) if path.is_file()}
    except OSError:
        return {}
