"""Random crops of a whole batch: their boxes and their pixels, on the CPU or a GPU.

A crop is cut out and then resized with Pillow's bilinear filter, as torchvision does it: nothing beyond it is seen.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

ERASED_SHARE = (0.02, 0.33)  # of the image's area: v2.RandomErasing's defaults, after Zhong et al. 2017
ERASED_RATIO = (1 / 3.3, 1 / 0.3)  # width / height


def crop_boxes(pixels: torch.Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> torch.Tensor:
    """Draw a box (N, 4) (top, left, height, width) an image, as `random_crop_box` does; ratio is width / height."""
    height, width = pixels.shape[2:]
    boxes, found = _draw_boxes(pixels, scale, ratio, least=1, most=(height, width))
    bounded = min(max(width / height, ratio[0]), ratio[1])
    box_width = max(1, min(width, round(height * bounded)))
    box_height = max(1, min(height, round(width / bounded)))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return torch.where(found[:, None], boxes, same_box(pixels, top, left, box_height, box_width))


def erased_boxes(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the boxes (N, 4) that random erasing blanks, and which images (N,) got one, as v2.RandomErasing does."""
    height, width = pixels.shape[2:]
    return _draw_boxes(pixels, ERASED_SHARE, ERASED_RATIO, least=0, most=(height - 1, width - 1))


def same_box(pixels: torch.Tensor, *box: int) -> torch.Tensor:
    """Return one box for all, (N, 4); filled on the device, as a copy of a list would make the CPU wait."""
    return torch.stack([torch.full((len(pixels),), float(edge), device=pixels.device) for edge in box], 1)


def crops_on_cpu(
    images: torch.Tensor,
    boxes: torch.Tensor,
    mirrored: torch.Tensor,
    upside_down: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Resize each box (N, 4) of uint8 (N, C, H, W) to `size`, and flip the chosen (N,): uint8, channels last in memory.

    One after the other by torch's resize of bytes, which has Pillow's arithmetic: 1.2 ms for 32 images of 128 px
    instead of 2.8 by grid_sample in float32.
    """
    count, channels = images.shape[:2]
    views = torch.empty((count, channels, *size), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    flips = zip(mirrored.tolist(), upside_down.tolist(), strict=True)
    for row, ((top, left, height, width), turns) in enumerate(zip(boxes.int().tolist(), flips, strict=True)):
        crop = images[row : row + 1, :, top : top + height, left : left + width]
        view = functional.interpolate(crop, size, mode="bilinear", antialias=True)
        axes = [axis for axis, is_turned in zip((3, 2), turns, strict=True) if is_turned]
        views[row : row + 1] = view.flip(axes) if axes else view
    return views


def nearest_crops(
    masks: torch.Tensor,
    boxes: torch.Tensor,
    mirrored: torch.Tensor,
    upside_down: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Resize each box (N, 4) of masks (N, H, W) to `size` by nearest neighbour, as Pillow does, and flip the chosen.

    A middle on the line between two pixels counts as the later one's; Pillow's sums take either.
    """
    top, left, height, width = boxes.long().T[:, :, None]  # (N, 1) each
    rows = _nearest(size[0], top, height, upside_down)  # (N, h)
    columns = _nearest(size[1], left, width, mirrored)  # (N, w)
    narrow = masks.gather(1, rows[:, :, None].expand(-1, -1, masks.shape[2]))  # (N, h, W)
    return narrow.gather(2, columns[:, None, :].expand(-1, size[0], -1))


def magnified_crops(
    pixels: torch.Tensor,
    boxes: torch.Tensor,
    mirrored: torch.Tensor,
    upside_down: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Resize each box (N, 4) of float32 (N, C, H, W) to `size`, at least the box's own, and flip the chosen (N,).

    A crop that is only magnified is filtered as narrowly by Pillow as by grid_sample.
    """
    top, left, height, width = boxes.T[:, :, None]  # (N, 1) each
    x = _sources(pixels.shape[3], size[1], left, width, mirrored)  # (N, w)
    y = _sources(pixels.shape[2], size[0], top, height, upside_down)  # (N, h)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)  # (N, h, w, 2)
    return functional.grid_sample(pixels, grid, align_corners=False).round_()


def crops_to_size(
    pixels: torch.Tensor,
    boxes: torch.Tensor,
    mirrored: torch.Tensor,
    upside_down: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Resize each box (N, 4) of float32 (N, C, H, W) to `size`, with a filter that widens where it reduces, and flip.

    One direction after the other, rounded in between, as Pillow does it.
    """
    top, left, box_height, box_width = boxes.T
    across = _filter(pixels.shape[3], size[1], left, box_width, mirrored)  # (N, w, W)
    down = _filter(pixels.shape[2], size[0], top, box_height, upside_down)  # (N, h, H)
    narrow = (pixels @ across.mT[:, None]).round_()  # (N, C, H, w)
    return (down[:, None] @ narrow).round_()  # (N, C, h, w)


def _draw_boxes(
    pixels: torch.Tensor, scale: tuple[float, float], ratio: tuple[float, float], least: int, most: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first of ten tries that fits (N, 4), and whether one did (N,)."""
    tries, (height, width) = (len(pixels), 10), pixels.shape[2:]
    area = height * width * torch.empty(tries, device=pixels.device).uniform_(*scale)
    aspect = torch.empty(tries, device=pixels.device).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp_()
    box_width, box_height = (area * aspect).sqrt_().round_(), (area / aspect).sqrt_().round_()  # (N, 10)
    fits = (box_width.clamp(least, most[1]) == box_width) & (box_height.clamp(least, most[0]) == box_height)
    first = fits.float().argmax(1, keepdim=True)
    box_height, box_width = box_height.gather(1, first)[:, 0], box_width.gather(1, first)[:, 0]
    top = (torch.rand(len(pixels), device=pixels.device) * (height - box_height + 1)).floor_()
    left = (torch.rand(len(pixels), device=pixels.device) * (width - box_width + 1)).floor_()
    return torch.stack((top, left, box_height, box_width), 1), fits.any(1)


def _nearest(size: int, start: torch.Tensor, extent: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Return the pixel under the middle of each pixel of a resize of [start, start + extent), (N, size) int64."""
    places = torch.arange(size, device=start.device)
    places = torch.where(flipped[:, None], size - 1 - places, places)
    return start + ((2 * places + 1) * extent).div(2 * size, rounding_mode="floor")


def _sources(length: int, size: int, start: torch.Tensor, extent: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Return the source of each pixel of a resize of [start, start + extent), (N, size), -1..1 as grid_sample takes it.

    start, extent (N, 1); places beyond the box's outer pixels are those pixels'.
    """
    places = _centres(size, start.device) * (1 - 2 * flipped[:, None].float())  # (N, size), in half boxes
    centres = start + extent * (places + 1) / 2  # in pixels; a pixel's centre is at its number + 0.5
    return torch.minimum(torch.maximum(centres, start + 0.5), start + extent - 0.5) * 2 / length - 1


def _filter(length: int, size: int, start: torch.Tensor, extent: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Return weights (N, size, length) of a resize of [start, start + extent): triangles as wide as the wider pixel.

    The part of a triangle beyond the box is left out, and the rest adds up to 1.
    """
    step = (extent / size)[:, None, None]  # (N, 1, 1): source pixels to one of the result
    places = _centres(size, start.device) * (1 - 2 * flipped[:, None].float())  # (N, size), in half boxes
    middles = (start[:, None] + extent[:, None] * (places + 1) / 2)[:, :, None]  # (N, size, 1)
    centres = torch.arange(length, device=start.device) + 0.5  # (length,)
    weights = (1 - (centres - middles).abs() / step.clamp(min=1)).clamp_(min=0)
    first = start[:, None, None]
    weights = weights * ((centres > first) & (centres < first + extent[:, None, None]))
    return weights / weights.sum(2, keepdim=True)


def _centres(size: int, device: torch.device) -> torch.Tensor:
    """Return the pixel centres between the edges -1 and 1, (size,)."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1
