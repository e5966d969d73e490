"""Training views of an image with its boxes: what moves one moves the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from data_loader import box_geometry
from data_loader.augment import (
    AugmentSettings,
    colour_transforms,
    padded_to,
    random_crop_box,
    random_quarter_turns,
    transformed,
    turned,
)
from data_loader.band_image import Decoded, as_array, image_of
from data_loader.preprocess import RESAMPLING, Preprocess

LABEL = 4  # the column of rows (M, 6) with the class

OTHERS = 3  # images of a mosaic beside its own
MIXUP_BETA = 1.5  # both parameters of the distribution of a blend's shares (Zhang et al. 2019, section 3.1)
LEAST_PART = 0.25  # of a side: the lines between a mosaic's images lie no nearer to its border

Box = tuple[int, int, int, int]  # left, top, right, bottom
Size = tuple[int, int]  # width, height


class BoxView:
    """A decoded image and the rows (M, 6) of its boxes -> uint8 (H, W, C) of the net's input size, and its rows.

    The crop is drawn as `TrainingView` draws it; a share `balanced_crops` of them lies around an object. An object
    that is mostly cut off is ignored. In the first `mosaic_epochs` epochs (0: in all) a share `mosaic` of the views are
    made of four images (Bochkovskiy et al. 2020, https://arxiv.org/abs/2004.10934, section 3.3); of the others a share
    `mixup_boxes` of two, blended with the boxes of both (Zhang et al. 2019, https://arxiv.org/abs/1902.04103, section
    3.1). Departures: both have the net's input size, and the loss of a box is not weighted by its image's share.
    """

    def __init__(self, preprocess: Preprocess, settings: AugmentSettings) -> None:
        self.preprocess, self.settings = preprocess, settings
        self.on_image = colour_transforms(settings, preprocess)

    def __call__(self, image: Decoded, rows: np.ndarray, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return one view, from torch's CPU random numbers; where flips alternate, `mirrored` is this image's turn."""
        return self._changed(*self._crop(image, rows, self._size), mirrored)

    def partners(self, epoch: int, count: int) -> list[int]:
        """Return which of `count` images come into this view besides its own, from torch's CPU random numbers."""
        settings = self.settings
        is_mosaic = (not settings.mosaic_epochs or epoch < settings.mosaic_epochs) and _chance(settings.mosaic)
        others = OTHERS if is_mosaic else int(_chance(settings.mixup_boxes))
        return torch.randint(count, (others,)).tolist() if others else []

    def joined(self, parts: Sequence[tuple[Decoded, np.ndarray]], mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return one view of an image and its `partners`, and the rows of all, from torch's random numbers."""
        return (self.mosaic if len(parts) == 1 + OTHERS else self.mixup)(parts, mirrored)

    def mixup(self, parts: Sequence[tuple[Decoded, np.ndarray]], mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return one view of two images, a crop of each blended with the other, and the rows of both."""
        crops, rows = zip(*(self._crop(image, own, self._size) for image, own in parts), strict=True)
        share = float(torch.distributions.Beta(MIXUP_BETA, MIXUP_BETA).sample())
        first, second = (as_array(crop).astype(np.float32) for crop in crops)
        blended = np.rint(share * first + (1 - share) * second).astype(np.uint8)
        return self._changed(image_of(blended), np.concatenate(rows), mirrored)

    def mosaic(self, parts: Sequence[tuple[Decoded, np.ndarray]], mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return one view of four images and their rows, a crop of each in a corner, from torch's random numbers."""
        width, height = self._size
        x, y = (round(side * (LEAST_PART + (1 - 2 * LEAST_PART) * float(torch.rand(())))) for side in self._size)
        corners = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        whole, found = np.zeros((height, width, self.preprocess.channels), np.uint8), []
        for (image, rows), (left, top, right, bottom) in zip(parts, corners, strict=True):
            crop, moved = self._crop(image, rows, (right - left, bottom - top))
            whole[top:bottom, left:right] = as_array(crop)
            found.append(box_geometry.affine(moved, (1.0, 1.0), (float(left), float(top))))
        return self._changed(image_of(whole), np.concatenate(found), mirrored)

    @property
    def _size(self) -> Size:
        return self.preprocess.width, self.preprocess.height

    def _changed(self, image: Decoded, rows: np.ndarray, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Flip, turn and colour what has the net's input size."""
        settings, size = self.settings, self._size
        if mirrored if settings.horizontal_flip_alternates else _chance(settings.horizontal_flip):
            image, rows = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), box_geometry.mirrored(rows, size[0])
        if _chance(settings.vertical_flip):
            image, rows = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), box_geometry.flipped(rows, size[1])
        if settings.quarter_turns:
            turns = random_quarter_turns()
            image, rows = turned(image, turns), box_geometry.turned(rows, turns, size)
        return transformed(image, self.on_image), rows

    def _crop(self, image: Decoded, rows: np.ndarray, size: Size) -> tuple[Decoded, np.ndarray]:
        """Return a part of the image resized to a size, as stretched as in the net's input, and the rows in it."""
        preprocess, whole = self.preprocess, self._size
        low, high = self.settings.random_crop_scale
        stretch_low, stretch_high = self.settings.random_crop_ratio
        if low == high == 1 and stretch_low == stretch_high == 1 and size == whole:
            return image_of(preprocess.fit(image)), box_geometry.fitted(preprocess, rows, image.size)
        aspect = size[0] / size[1]
        if preprocess.resize == "letterbox":
            image, rows = _padded(image, rows, whole[0] / whole[1])
        elif preprocess.resize == "squash":
            aspect *= (image.width / image.height) / (whole[0] / whole[1])
        box = random_crop_box(image.size, (low, high), (aspect * stretch_low, aspect * stretch_high))
        if len(rows) and _chance(self.settings.balanced_crops):
            box = _moved_to_an_object(box, rows, image.size)
        left, top, right, bottom = box
        scale = size[0] / (right - left), size[1] / (bottom - top)
        moved = box_geometry.affine(rows, scale, (-left * scale[0], -top * scale[1]))
        cropped = image.crop(box).resize(size, RESAMPLING[preprocess.interpolation])
        return cropped, box_geometry.cut(moved, size)


def _padded(image: Decoded, rows: np.ndarray, aspect: float) -> tuple[Decoded, np.ndarray]:
    """Return an image padded with black to an aspect, and its rows."""
    padded = padded_to(image, aspect)
    shift = round((padded.width - image.width) * 0.5), round((padded.height - image.height) * 0.5)  # as ImageOps.pad
    return padded, box_geometry.affine(rows, (1.0, 1.0), (float(shift[0]), float(shift[1])))


def _moved_to_an_object(box: Box, rows: np.ndarray, size: tuple[int, int]) -> Box:
    """Return a box of the same size that holds an object's middle, of each class in the image equally often.

    Where it lies in the box is random, but the whole object is in it if there is room.
    """
    labels = np.unique(rows[:, LABEL])
    members = np.flatnonzero(rows[:, LABEL] == labels[int(torch.randint(len(labels), ()))])
    chosen = rows[members[int(torch.randint(len(members), ()))]]
    corner = []
    for axis in (0, 1):
        side, low, high = box[axis + 2] - box[axis], float(chosen[axis]), float(chosen[axis + 2])
        first, last = sorted((high - side, low))  # the crop's edge where the object touches one side or the other
        place = round(first + float(torch.rand(())) * (last - first))
        corner.append(min(max(place, 0), size[axis] - side))
    left, top = corner
    return left, top, left + box[2] - box[0], top + box[3] - box[1]


def _chance(probability: float) -> bool:
    return bool(probability) and float(torch.rand(())) < probability
