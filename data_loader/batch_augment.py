"""Training views of a whole batch at once, on the CPU or a GPU: as `TrainingView` augments one image at a time.

Every image draws its own numbers, with the distributions of `TrainingView` for an image that already has the net's
input size; each operation returns Pillow's or torchvision's pixels, at most 1 of 255 away (2: crops that a GPU reduces;
6: hue). Behind the crop, pixels are float32 whole numbers 0..255 between the operations, as Pillow rounds after each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import torch
from torch.nn import functional

from common.errors import UserError
from data_loader.augment import AugmentSettings
from data_loader.batch_crops import (
    crop_boxes,
    crops_on_cpu,
    crops_to_size,
    erased_boxes,
    magnified_crops,
    same_box,
)

BLUR_SIGMA = (0.1, 2.0)  # in pixels, as `TrainingView` has it
CPU_SHARE = 2**20  # numbers augmented at a time on a CPU: 4 MiB stays in its cache, half the time of a batch of 512


IMPLEMENTED = {  # the fields of AugmentSettings that are done here; any other is refused where it is set
    *("random_crop_scale", "random_crop_ratio", "horizontal_flip", "horizontal_flip_alternates", "vertical_flip"),
    *("quarter_turns", "translate", "color_jitter", "color_jitter_probability", "random_grayscale", "gaussian_blur"),
    "random_erasing",
}


class BatchViewsError(UserError):
    """Settings that are only implemented for one image at a time."""


class BatchViews:
    """Augments a uint8 batch at once; on a GPU nothing waits for the device.

    Crops are resized bilinearly, to `size` (height, width), at most that of the images; None: their own.
    Raises BatchViewsError for settings that are not in IMPLEMENTED.
    """

    def __init__(self, settings: AugmentSettings, views: int = 1, size: tuple[int, int] | None = None) -> None:
        others = [field for field in fields(settings) if field.name not in IMPLEMENTED]
        if single := [field.name for field in others if getattr(settings, field.name) != field.default]:
            raise BatchViewsError(f'{" and ".join(single)}: for one image at a time; set augment_on to "cpu"')
        self.settings = settings
        self.views = views
        self.size = size
        changes = ("translate", "random_grayscale", "gaussian_blur", "random_erasing")
        self.changes_pixels = any(settings.color_jitter) or any(getattr(settings, name) for name in changes)

    def __call__(self, images: torch.Tensor, mirrored: torch.Tensor | None = None) -> torch.Tensor:
        """Draw the views of each image, side by side, from torch's default random numbers of the images' device.

        uint8 (N, C, H, W), C 1 or 3 -> uint8 (N * views, C, *size); rows 2i and 2i + 1 are image i's for two views.
        `mirrored` (N,) says which images are mirrored where flips alternate; None: none of them.
        """
        if self.views > 1:
            images = images.repeat_interleave(self.views, 0)  # (N * views, C, H, W)
        if mirrored is None:
            mirrored = torch.zeros(len(images) // self.views, dtype=torch.bool, device=images.device)
        if (places := self.places(images, mirrored.repeat_interleave(self.views))) is not None:
            images = cropped(images, *places)
        if self.settings.quarter_turns:
            images = turned(images, random_turns(images))
        if not self.changes_pixels:
            return images
        share = max(1, CPU_SHARE // images.shape[1:].numel()) if images.device.type == "cpu" else len(images)
        return torch.cat([self._changed(part) for part in images.split(share)])

    def of_batch(
        self, images: torch.Tensor, targets: torch.Tensor, mirrored: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of a batch's images, and the targets (N, ...) that belong to them: a label is every view's."""
        return self(images, mirrored), targets

    def places(
        self, images: torch.Tensor, mirrored: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int]] | None:
        """Draw boxes (N, 4), which images (N,) are mirrored and which turned upside down, and the views' size.

        None where no image is cropped, flipped or resized.
        """
        settings, (height, width) = self.settings, images.shape[2:]
        size = self.size or (height, width)
        scale, ratio = settings.random_crop_scale, settings.random_crop_ratio
        cropping = not scale[0] == scale[1] == ratio[0] == ratio[1] == 1
        alternates = settings.horizontal_flip_alternates
        flipping = alternates or settings.horizontal_flip or settings.vertical_flip
        if not (cropping or flipping or size != (height, width)):
            return None
        boxes = same_box(images, 0, 0, height, width)
        if cropping:
            boxes = crop_boxes(images, (scale[0], scale[1]), (ratio[0] * width / height, ratio[1] * width / height))
        mirrored = mirrored if alternates else _chance(settings.horizontal_flip, images)
        return boxes, mirrored, _chance(settings.vertical_flip, images), size

    def distances(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw by how many pixels each image moves down and to the right, (N,) whole numbers each."""
        share = self.settings.translate
        down, right = (_uniform(-share * side, share * side, images) for side in images.shape[2:])
        return down.round_(), right.round_()

    def _changed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images moved, coloured, blurred and erased."""
        settings = self.settings
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        if settings.translate:
            pixels = shift(pixels, *self.distances(pixels))
        if any(settings.color_jitter):
            pixels = self._jitter(pixels)
        if settings.random_grayscale and pixels.shape[1] == 3:
            chosen = _chance(settings.random_grayscale, pixels)
            pixels = _on_chosen(lambda some: _grey(some).expand_as(some), pixels, chosen)
        if settings.gaussian_blur:
            sigma = _uniform(*BLUR_SIGMA, pixels)
            pixels = _on_chosen(blur, pixels, _chance(settings.gaussian_blur, pixels), sigma)
        if settings.random_erasing:
            pixels = self._erase(pixels)
        return pixels.to(torch.uint8, memory_format=torch.channels_last)

    def _jitter(self, pixels: torch.Tensor) -> torch.Tensor:
        brightness, contrast, saturation, hue = self.settings.color_jitter
        if pixels.shape[1] == 1:  # grey has neither saturation nor hue
            saturation = hue = 0.0
        ranges: list[tuple[Callable[..., torch.Tensor], float, float]] = [
            (adjust_brightness, max(0, 1 - brightness), 1 + brightness),
            (adjust_contrast, max(0, 1 - contrast), 1 + contrast),
            (adjust_saturation, max(0, 1 - saturation), 1 + saturation),
            (adjust_hue, -hue, hue),
        ]
        steps = [(operation, _uniform(low, high, pixels)) for operation, low, high in ranges if low < high]
        chosen = _chance(self.settings.color_jitter_probability, pixels)
        order = torch.rand(len(pixels), len(steps), device=pixels.device).argsort(1)  # (N, steps), each row shuffled
        for place in range(len(steps)):
            for index, (operation, factors) in enumerate(steps):
                pixels = _on_chosen(operation, pixels, chosen & (order[:, place] == index), factors)
        return pixels

    def _erase(self, pixels: torch.Tensor) -> torch.Tensor:
        boxes, found = erased_boxes(pixels)
        found = found & _chance(self.settings.random_erasing, pixels)
        top, left, height, width = (boxes * found[:, None]).T[:, :, None]  # (N, 1) each
        rows, columns = (torch.arange(size, device=pixels.device) for size in pixels.shape[2:])
        in_rows, in_columns = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
        return pixels.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)  # mask (N, 1, H, W)


def cropped(
    images: torch.Tensor,
    boxes: torch.Tensor,
    mirrored: torch.Tensor,
    upside_down: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Resize each box (N, 4) of uint8 images (N, C, H, W) to `size`, and flip the chosen (N,)."""
    if images.device.type == "cpu":
        return crops_on_cpu(images, boxes, mirrored, upside_down, size)
    crops = magnified_crops if size == tuple(images.shape[2:]) else crops_to_size
    return crops(images.float(), boxes, mirrored, upside_down, size).to(torch.uint8)


def random_turns(images: torch.Tensor) -> torch.Tensor:
    """Draw a number of quarter turns for each image, (N,)."""
    return torch.randint(4, (len(images),), device=images.device)


def turned(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn each square image (N, C, H, H) to the left by its own number of quarter turns (N,)."""
    for number in (1, 2, 3):
        images = torch.where((turns == number)[:, None, None, None], images.rot90(number, (2, 3)), images)
    return images


def shift(pixels: torch.Tensor, down: torch.Tensor, right: torch.Tensor, fill: int = 0) -> torch.Tensor:
    """Move each image by its own whole numbers of pixels (N,); black, or `fill`, comes in, as in v2.RandomAffine."""
    rows, in_rows = _moved(pixels.shape[2], down)  # (N, H) each
    columns, in_columns = _moved(pixels.shape[3], right)  # (N, W)
    moved = pixels.gather(2, rows[:, None, :, None].expand_as(pixels))
    moved = moved.gather(3, columns[:, None, None, :].expand_as(pixels))
    return moved.masked_fill_(~(in_rows[:, :, None] & in_columns[:, None, :])[:, None], fill)  # mask (N, 1, H, W)


def adjust_brightness(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend with black: 0 is black, 1 the image. factors (N,)."""
    return _blend(torch.zeros_like(pixels[:1, :1, :1, :1]), pixels, factors)


def adjust_contrast(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend with the image's mean grey, a whole number as in Pillow. factors (N,)."""
    mean = _grey(pixels).mean((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    return _blend((mean + 0.5).floor_(), pixels, factors)


def adjust_saturation(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend with the grey image. pixels (N, 3, H, W), factors (N,)."""
    return _blend(_grey(pixels), pixels, factors)


def adjust_hue(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Turn the colours by a share -0.5..0.5 of the circle, in Pillow's HSV of 8 bits.

    Pillow has 255 hues in a circle of 256 steps, and cuts instead of rounding; both are kept. Its float arithmetic puts
    1 colour in 500 a step aside, which is 6 of 255 at the most. pixels (N, 3, H, W), factors (N,).
    """
    hue, saturation, value = _to_hsv(pixels)
    hue += torch.trunc(factors * 255)[:, None, None, None]
    hue = hue.sub_((hue / 256).floor_(), alpha=256).mul_(6 / 255)  # 0..6
    channels = [(hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()]
    share = torch.cat(channels, 1).clamp_(0, 1)  # (N, 3, H, W): of the pure colour in red, green and blue
    return share.sub_(1).mul_(saturation.mul_(value).div_(255)).add_(value).add_(0.5).floor_()


def blur(pixels: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur with torchvision's Gaussian kernel of a tenth of the shorter side, mirrored at the edges; sigma (N,)."""
    count, channels, height, width = pixels.shape
    size = max(3, min(height, width) // 10 | 1)
    reach = (size - 1) / (2 * math.sqrt(2))
    steps = torch.linspace(-reach, reach, size, device=pixels.device)
    kernel = torch.softmax(-((steps / sigma[:, None]) ** 2), 1).repeat_interleave(channels, 0)  # (N * C, size)
    padded = functional.pad(pixels, [size // 2] * 4, mode="reflect").flatten(0, 1)[None]  # (1, N * C, H + .., W + ..)
    columns = functional.conv2d(padded, kernel[:, None, :, None], groups=count * channels)
    return functional.conv2d(columns, kernel[:, None, None, :], groups=count * channels).view(pixels.shape).round_()


def _moved(length: int, distances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the source of each pixel along a side (N, length), and whether it lies inside the image."""
    sources = torch.arange(length, device=distances.device) - distances[:, None].long()
    places = sources.clamp(0, length - 1)
    return places, places == sources


def _on_chosen(
    operation: Callable[..., torch.Tensor], pixels: torch.Tensor, chosen: torch.Tensor, *parameters: torch.Tensor
) -> torch.Tensor:
    """Apply an operation to the chosen (N,) images, each with its own parameters (N,); may overwrite `pixels`."""
    if pixels.device.type != "cpu":  # counting the chosen would wait for the device: all are computed, the rest dropped
        return torch.where(chosen[:, None, None, None], operation(pixels, *parameters), pixels)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return pixels
    return pixels.index_copy_(0, rows, operation(pixels[rows], *(values[rows] for values in parameters)))


def _blend(reference: torch.Tensor, pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend as Pillow's Image.blend, which cuts the result to 0..255 and drops the fraction."""
    return torch.lerp(reference, pixels, factors[:, None, None, None]).clamp_(0, 255).floor_()


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """Return luma (N, 1, H, W) in Pillow's fixed point; all sums stay below 2 ** 24, so float32 holds them exactly."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.split(1, 1)
    return (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).div_(65536).floor_()


def _to_hsv(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hue, saturation and value, (N, 1, H, W) whole numbers 0..255 each."""
    red, green, blue = pixels.split(1, 1)
    high, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    chroma = high - low
    span = chroma.clamp(min=1)
    # Which channel is highest, 0 where it is: whole numbers, and many times faster on a CPU than torch.where.
    not_red, not_green = (high - red).clamp_(max=1), (high - green).clamp_(max=1)
    sixths = torch.lerp((blue - red).div_(span).add_(2), (red - green).div_(span).add_(4), not_green)
    turns = torch.lerp((green - blue).div_(span), sixths, not_red).div_(6)  # -1 / 6..5 / 6
    return turns.sub_(turns.floor()).mul_(255).floor_(), chroma.mul_(255).div_(high.clamp(min=1)).floor_(), high


def _uniform(low: float, high: float, pixels: torch.Tensor) -> torch.Tensor:
    """Return one number an image, (N,)."""
    return torch.empty(len(pixels), device=pixels.device).uniform_(low, high)


def _chance(probability: float, pixels: torch.Tensor) -> torch.Tensor:
    return torch.rand(len(pixels), device=pixels.device) < probability
