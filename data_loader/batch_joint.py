"""Training views of a whole batch of images with masks, on the CPU or a GPU: as `JointView` one sample at a time."""

from __future__ import annotations

import torch

from data_loader.augment import AugmentSettings
from data_loader.batch_augment import BatchViews, cropped, random_turns, shift, turned
from data_loader.batch_crops import nearest_crops
from data_loader.mask_classes import VOID


class JointBatchViews(BatchViews):
    """Augments a uint8 batch and its masks: what moves an image moves its mask, and both images of a pair.

    Masks are resized by nearest neighbour alone; what lies beside an image is VOID. Of `images` in a sample each gets
    colours, blur and grey by itself. Raises BatchViewsError as BatchViews does.
    """

    def __init__(self, settings: AugmentSettings, images: int = 1, size: tuple[int, int] | None = None) -> None:
        super().__init__(settings, size=size)
        self.images = images
        names = ("color_jitter", "color_jitter_probability", "random_grayscale", "gaussian_blur")
        self.colours = BatchViews(AugmentSettings(**{name: getattr(settings, name) for name in names}))

    def of_batch(
        self, images: torch.Tensor, targets: torch.Tensor, mirrored: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of images (N, images * C, H, W) and of their masks (N, H, W), both uint8."""
        if mirrored is None:
            mirrored = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if (places := self.places(images, mirrored)) is not None:
            images, targets = cropped(images, *places), nearest_crops(targets, *places)
        if self.settings.quarter_turns:
            turns = random_turns(images)
            images, targets = turned(images, turns), turned(targets[:, None], turns)[:, 0]
        if self.settings.translate:
            distances = self.distances(images)
            images, targets = shift(images, *distances), shift(targets[:, None], *distances, VOID)[:, 0]
        each = self.colours(images.unflatten(1, (self.images, -1)).flatten(0, 1))  # (N * images, C, H, W)
        return each.unflatten(0, (-1, self.images)).flatten(1, 2), targets
