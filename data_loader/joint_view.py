"""Training views of images with their mask: what moves one moves all; colours are each image's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from data_loader.augment import (
    AugmentSettings,
    colour_transforms,
    for_torchvision,
    from_torchvision,
    padded_to,
    random_crop_box,
    random_quarter_turns,
    turned,
)
from data_loader.band_image import Decoded, image_of
from data_loader.mask_classes import VOID
from data_loader.masks import fit_mask
from data_loader.preprocess import RESAMPLING, Preprocess, as_array, joined

Box = tuple[int, int, int, int]  # left, top, right, bottom


class JointView:
    """Decoded images of one place and their mask -> uint8 (H, W, C) of the net's input size, and the mask (H, W).

    The crop is drawn as `TrainingView` draws it, and is the same part of every image. Masks are resized by nearest
    neighbour alone; what lies beside the images is VOID. Of a pair each image gets colours, blur and grey by itself.
    On a share `copy_paste` of the views lie the pixels of half the classes of another image's view, of both of a pair
    (ClassMix: Olsson et al. 2021, https://arxiv.org/abs/2007.07936, section 3.1, there between unlabelled images).
    """

    def __init__(self, preprocess: Preprocess, settings: AugmentSettings) -> None:
        self.preprocess, self.settings = preprocess, settings
        self.on_image = colour_transforms(settings, preprocess)
        self.affine = None
        if settings.rotation_degrees or settings.translate:
            self.affine = v2.RandomAffine(
                settings.rotation_degrees,
                translate=(settings.translate, settings.translate),
                interpolation=v2.InterpolationMode.BILINEAR,  # of images; masks are always nearest
                fill={Image.Image: 0, tv_tensors.Image: 0, tv_tensors.Mask: VOID},
            )

    def __call__(
        self, images: Sequence[Decoded], mask: Image.Image, mirrored: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return one view, from torch's CPU random numbers; where flips alternate, `mirrored` is this image's turn."""
        settings = self.settings
        views = self._crop(images, mask)
        flips = mirrored if settings.horizontal_flip_alternates else _chance(settings.horizontal_flip)
        if flips:
            views = [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in views]
        if _chance(settings.vertical_flip):
            views = [view.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for view in views]
        if settings.quarter_turns:
            turns = random_quarter_turns()
            views = [turned(view, turns) for view in views]
        seen, labels = [for_torchvision(view) for view in views[:-1]], as_array(views[-1])[:, :, 0]  # (H, W)
        if self.affine is not None:
            *seen, moved = self.affine(*seen, tv_tensors.Mask(torch.from_numpy(labels)[None]))  # (1, H, W)
            labels = moved[0].numpy()
        return joined([self._coloured(image) for image in seen]), labels

    def partners(self, epoch: int, count: int) -> list[int]:
        """Return the other image of `count` whose pixels are pasted onto a view, or none; from torch's numbers."""
        return torch.randint(count, (1,)).tolist() if _chance(self.settings.copy_paste) else []

    def joined(
        self, parts: Sequence[tuple[Sequence[Decoded], Image.Image]], mirrored: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a view of the first images and mask with pixels of the second ones, and the mask (H, W) of both."""
        (pixels, labels), (other, others) = (self(images, mask, mirrored) for images, mask in parts)
        present = np.flatnonzero(np.bincount(others.ravel(), minlength=VOID + 1)[:VOID])
        chosen = present[torch.randperm(len(present)).numpy()[: (len(present) + 1) // 2]]
        over = np.isin(others, chosen)  # (H, W)
        return np.where(over[:, :, None], other, pixels), np.where(over, others, labels)

    def _coloured(self, image: Any) -> np.ndarray:
        for transform in self.on_image:
            image = transform(image)
        return from_torchvision(image)

    def _crop(self, images: Sequence[Decoded], mask: Image.Image) -> list[Decoded]:
        """Return the same part of all, the mask last, resized to the net's input."""
        preprocess, size = self.preprocess, (self.preprocess.width, self.preprocess.height)
        low, high = self.settings.random_crop_scale
        stretch_low, stretch_high = self.settings.random_crop_ratio
        if low == high == 1 and stretch_low == stretch_high == 1:
            fitted = [image_of(preprocess.fit(image)) for image in images]
            return [*fitted, Image.fromarray(fit_mask(preprocess, mask))]
        aspect = size[0] / size[1]
        if preprocess.resize == "letterbox":
            images, mask = [padded_to(image, aspect) for image in images], padded_to(mask, aspect, VOID)
        elif preprocess.resize == "squash":
            aspect = mask.width / mask.height
        box = random_crop_box(mask.size, (low, high), (aspect * stretch_low, aspect * stretch_high))
        if _chance(self.settings.balanced_crops):
            box = _moved_to_a_class(box, mask)
        resample = RESAMPLING[preprocess.interpolation]
        crops = [image.crop(_scaled(box, mask.size, image.size)).resize(size, resample) for image in images]
        return [*crops, mask.crop(box).resize(size, Image.Resampling.NEAREST)]


def _moved_to_a_class(box: Box, mask: Image.Image) -> Box:
    """Return a box of the same size around a pixel of a class, each class in the mask equally often."""
    labels = np.asarray(mask).ravel()  # (H * W,)
    present = np.flatnonzero(np.bincount(labels, minlength=VOID + 1)[:VOID])
    if not len(present):
        return box
    chosen = present[int(torch.randint(len(present), ()))]
    places = np.flatnonzero(labels == chosen)
    y, x = divmod(int(places[int(torch.randint(len(places), ()))]), mask.width)
    width, height = box[2] - box[0], box[3] - box[1]
    left = min(max(x - width // 2, 0), mask.width - width)
    top = min(max(y - height // 2, 0), mask.height - height)
    return left, top, left + width, top + height


def _scaled(box: Box, size: tuple[int, int], other: tuple[int, int]) -> Box:
    """Return a box in an image of another size, such as a JPEG that was decoded at half its size."""
    if size == other:
        return box
    across, down = other[0] / size[0], other[1] / size[1]
    left, top = min(round(box[0] * across), other[0] - 1), min(round(box[1] * down), other[1] - 1)
    return left, top, max(left + 1, round(box[2] * across)), max(top + 1, round(box[3] * down))


def _chance(probability: float) -> bool:
    return bool(probability) and float(torch.rand(())) < probability
