"""Training views of an image with its boxes: what moves one moves the other."""

from __future__ import annotations

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
from data_loader.band_image import Decoded, image_of
from data_loader.preprocess import RESAMPLING, Preprocess

LABEL = 4  # the column of rows (M, 6) with the class

Box = tuple[int, int, int, int]  # left, top, right, bottom


class BoxView:
    """A decoded image and the rows (M, 6) of its boxes -> uint8 (H, W, C) of the net's input size, and its rows.

    The crop is drawn as `TrainingView` draws it; a share `balanced_crops` of them lies around an object. An object
    that is mostly cut off is ignored.
    """

    def __init__(self, preprocess: Preprocess, settings: AugmentSettings) -> None:
        self.preprocess, self.settings = preprocess, settings
        self.on_image = colour_transforms(settings, preprocess)

    def __call__(self, image: Decoded, rows: np.ndarray, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return one view, from torch's CPU random numbers; where flips alternate, `mirrored` is this image's turn."""
        settings, preprocess = self.settings, self.preprocess
        size = preprocess.width, preprocess.height
        image, rows = self._crop(image, rows)
        if mirrored if settings.horizontal_flip_alternates else _chance(settings.horizontal_flip):
            image, rows = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), box_geometry.mirrored(rows, size[0])
        if _chance(settings.vertical_flip):
            image, rows = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), box_geometry.flipped(rows, size[1])
        if settings.quarter_turns:
            turns = random_quarter_turns()
            image, rows = turned(image, turns), box_geometry.turned(rows, turns, size)
        return transformed(image, self.on_image), rows

    def _crop(self, image: Decoded, rows: np.ndarray) -> tuple[Decoded, np.ndarray]:
        """Return a part of the image resized to the net's input, and the rows of what is in it."""
        preprocess, size = self.preprocess, (self.preprocess.width, self.preprocess.height)
        low, high = self.settings.random_crop_scale
        stretch_low, stretch_high = self.settings.random_crop_ratio
        if low == high == 1 and stretch_low == stretch_high == 1:
            return image_of(preprocess.fit(image)), box_geometry.fitted(preprocess, rows, image.size)
        aspect = size[0] / size[1]
        if preprocess.resize == "letterbox":
            image, rows = _padded(image, rows, aspect)
        elif preprocess.resize == "squash":
            aspect = image.width / image.height
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
