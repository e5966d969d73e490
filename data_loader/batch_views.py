"""Training views of a whole batch at once, on the CPU or a GPU: what `TrainingView` does to one picture at a time.

Every picture draws its own numbers, with the distributions of `TrainingView` for a picture that already has the net's
input size; each operation gives Pillow's or torchvision's pixels, at most 1 of 255 away (hue: 6). Between the
operations pixels are float32 whole numbers 0..255, as each of Pillow's leaves whole numbers behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from configs.schema import ON_CPU_ONLY
from data_loader.augment import AugmentSettings

ERASED_SHARE = (0.02, 0.33)  # of the picture's area: v2.RandomErasing's defaults, after Zhong et al. 2017
ERASED_RATIO = (1 / 3.3, 1 / 0.3)  # width / height
BLUR_SIGMA = (0.1, 2.0)  # in pixels, as `TrainingView` has it
CPU_SHARE = 2**20  # numbers augmented at a time on a CPU: 4 MiB stays in its cache, half the time of a batch of 512


class BatchViewsError(ValueError):
    """Settings that are only known for one picture at a time."""


class BatchViews:
    """Augments a uint8 batch at once; on a GPU nothing waits for the device.

    Crops are resized bilinearly, to `size` (height, width), at most that of the pictures; None: their own.
    Raises BatchViewsError for settings it does not know.
    """

    def __init__(self, settings: AugmentSettings, views: int = 1, size: tuple[int, int] | None = None) -> None:
        single = [name for name in ON_CPU_ONLY if getattr(settings, name)]
        if single:
            raise BatchViewsError(f'{" and ".join(single)}: for one picture at a time; set augment_on to "cpu"')
        self.settings = settings
        self.views = views
        self.size = size

    def __call__(self, images: torch.Tensor, mirrored: torch.Tensor | None = None) -> torch.Tensor:
        """Draw the views of each picture, side by side, from torch's default random numbers of the images' device.

        uint8 (N, C, H, W), C 1 or 3 -> uint8 (N * views, C, *size); rows 2i and 2i + 1 are picture i's for two views.
        `mirrored` (N,) says which pictures are mirrored where flips alternate; None: none of them.
        """
        whole = images.repeat_interleave(self.views, 0)  # (N * views, C, H, W)
        if mirrored is None:
            mirrored = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        turns = mirrored.repeat_interleave(self.views)  # (N * views,)
        share = max(1, CPU_SHARE // images.shape[1:].numel()) if images.device.type == "cpu" else len(whole)
        parts = zip(whole.split(share), turns.split(share), strict=True)
        return torch.cat([self._augmented(part, turn) for part, turn in parts])

    def _augmented(self, images: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        pixels = self._crop_and_flip(images.float(), mirrored)
        if settings.translate:
            down, right = (
                _uniform(-settings.translate * side, settings.translate * side, pixels) for side in pixels.shape[2:]
            )
            pixels = shift(pixels, down.round_(), right.round_())
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
        return pixels.to(torch.uint8)

    def _crop_and_flip(self, pixels: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        settings, (height, width) = self.settings, pixels.shape[2:]
        size = self.size or (height, width)
        scale, ratio = settings.random_crop_scale, settings.random_crop_ratio
        cropping = not scale[0] == scale[1] == ratio[0] == ratio[1] == 1
        alternates = settings.horizontal_flip_alternates
        flipping = alternates or settings.horizontal_flip or settings.vertical_flip
        if not (cropping or flipping or size != (height, width)):
            return pixels
        boxes = _same_box(pixels, 0, 0, height, width)
        if cropping:
            boxes = crop_boxes(pixels, (scale[0], scale[1]), (ratio[0] * width / height, ratio[1] * width / height))
        mirrored = mirrored if alternates else _chance(settings.horizontal_flip, pixels)
        upside_down = _chance(settings.vertical_flip, pixels)
        if size == (height, width):
            return crop_and_flip(pixels, boxes, mirrored, upside_down)
        return crop_to_size(pixels, boxes, mirrored, upside_down, size)

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


def crop_boxes(pixels: torch.Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> torch.Tensor:
    """Draw a box (N, 4) (top, left, height, width) a picture, as `random_crop_box` does; ratio is width / height."""
    height, width = pixels.shape[2:]
    boxes, found = _draw_boxes(pixels, scale, ratio, least=1, most=(height, width))
    bounded = min(max(width / height, ratio[0]), ratio[1])
    box_width, box_height = min(width, round(height * bounded)), min(height, round(width / bounded))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return torch.where(found[:, None], boxes, _same_box(pixels, top, left, box_height, box_width))


def erased_boxes(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the boxes (N, 4) that random erasing blanks, and which pictures (N,) got one, as v2.RandomErasing does."""
    height, width = pixels.shape[2:]
    return _draw_boxes(pixels, ERASED_SHARE, ERASED_RATIO, least=0, most=(height - 1, width - 1))


def crop_and_flip(
    pixels: torch.Tensor, boxes: torch.Tensor, mirrored: torch.Tensor, upside_down: torch.Tensor
) -> torch.Tensor:
    """Resize each box (N, 4) back to (H, W) bilinearly, as Pillow does with a box, and flip the chosen (N,).

    A box of the picture only magnifies, so Pillow's filter is as narrow as grid_sample's; both look beyond the box.
    """
    height, width = pixels.shape[2:]
    top, left, box_height, box_width = boxes.T[:, :, None]  # (N, 1) each
    x = _centres(width, pixels.device) * (1 - 2 * mirrored[:, None].float())  # (N, W), in half boxes from its middle
    y = _centres(height, pixels.device) * (1 - 2 * upside_down[:, None].float())  # (N, H)
    x = (left * 2 + box_width * (x + 1)) / width - 1  # in half pictures, as grid_sample wants it
    y = (top * 2 + box_height * (y + 1)) / height - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)  # (N, H, W, 2)
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False).round_()


def crop_to_size(
    pixels: torch.Tensor,
    boxes: torch.Tensor,
    mirrored: torch.Tensor,
    upside_down: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor:
    """Resize each box (N, 4) to `size` with Pillow's bilinear filter, which widens where it reduces, and flip.

    One direction after the other, rounded in between, as Pillow does it.
    """
    top, left, box_height, box_width = boxes.T
    across = _filter(pixels.shape[3], size[1], left, box_width, mirrored)  # (N, w, W)
    down = _filter(pixels.shape[2], size[0], top, box_height, upside_down)  # (N, h, H)
    narrow = (pixels @ across.mT[:, None]).round_()  # (N, C, H, w)
    return (down[:, None] @ narrow).round_()  # (N, C, h, w)


def shift(pixels: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Move each picture by its own whole numbers of pixels (N,), and fill with black, as v2.RandomAffine does."""
    rows, in_rows = _moved(pixels.shape[2], down)  # (N, H) each
    columns, in_columns = _moved(pixels.shape[3], right)  # (N, W)
    moved = pixels.gather(2, rows[:, None, :, None].expand_as(pixels))
    moved = moved.gather(3, columns[:, None, None, :].expand_as(pixels))
    return moved.masked_fill_(~(in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)  # mask (N, 1, H, W)


def adjust_brightness(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend with black: 0 is black, 1 the picture. factors (N,)."""
    return _blend(torch.zeros_like(pixels[:1, :1, :1, :1]), pixels, factors)


def adjust_contrast(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend with the picture's mean grey, a whole number as in Pillow. factors (N,)."""
    mean = _grey(pixels).mean((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    return _blend((mean + 0.5).floor_(), pixels, factors)


def adjust_saturation(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend with the grey picture. pixels (N, 3, H, W), factors (N,)."""
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


def _filter(length: int, size: int, start: torch.Tensor, extent: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Weights (N, size, length) of a resize of [start, start + extent): triangles of a pixel's width, the wider one's.

    What of a triangle lies beyond the picture is left out, and the rest adds up to 1.
    """
    step = (extent / size)[:, None, None]  # (N, 1, 1): source pixels to one of the result
    places = _centres(size, start.device) * (1 - 2 * flipped[:, None].float())  # (N, size), in half boxes
    middles = (start[:, None] + extent[:, None] * (places + 1) / 2)[:, :, None]  # (N, size, 1)
    centres = torch.arange(length, device=start.device) + 0.5  # (length,)
    weights = (1 - (centres - middles).abs() / step.clamp(min=1)).clamp_(min=0)
    return weights / weights.sum(2, keepdim=True)


def _moved(length: int, distances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where along a side each of its pixels comes from (N, length), and whether that lies inside the picture."""
    sources = torch.arange(length, device=distances.device) - distances[:, None].long()
    places = sources.clamp(0, length - 1)
    return places, places == sources


def _on_chosen(
    operation: Callable[..., torch.Tensor], pixels: torch.Tensor, chosen: torch.Tensor, *parameters: torch.Tensor
) -> torch.Tensor:
    """Apply an operation to the chosen (N,) pictures, each with its own parameters (N,); may overwrite `pixels`."""
    if pixels.device.type != "cpu":  # counting the chosen would wait for the device: all are computed, the rest dropped
        return torch.where(chosen[:, None, None, None], operation(pixels, *parameters), pixels)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return pixels
    return pixels.index_copy_(0, rows, operation(pixels[rows], *(values[rows] for values in parameters)))


def _draw_boxes(
    pixels: torch.Tensor, scale: tuple[float, float], ratio: tuple[float, float], least: int, most: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of ten tries that fits (N, 4), and whether one did (N,)."""
    tries, (height, width) = (len(pixels), 10), pixels.shape[2:]
    area = height * width * pixels.new_empty(tries).uniform_(*scale)
    aspect = pixels.new_empty(tries).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp_()
    box_width, box_height = (area * aspect).sqrt_().round_(), (area / aspect).sqrt_().round_()  # (N, 10)
    fits = (box_width.clamp(least, most[1]) == box_width) & (box_height.clamp(least, most[0]) == box_height)
    first = fits.float().argmax(1, keepdim=True)
    box_height, box_width = box_height.gather(1, first)[:, 0], box_width.gather(1, first)[:, 0]
    top = (_uniform(0, 1, pixels) * (height - box_height + 1)).floor_()
    left = (_uniform(0, 1, pixels) * (width - box_width + 1)).floor_()
    return torch.stack((top, left, box_height, box_width), 1), fits.any(1)


def _same_box(pixels: torch.Tensor, *box: int) -> torch.Tensor:
    """One box for all, (N, 4); filled on the device, as a copy of a list would make the CPU wait."""
    return torch.stack([pixels.new_full((len(pixels),), edge) for edge in box], 1)


def _blend(reference: torch.Tensor, pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Pillow's Image.blend, which cuts the result to 0..255 and drops the fraction."""
    return torch.lerp(reference, pixels, factors[:, None, None, None]).clamp_(0, 255).floor_()


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """Luma (N, 1, H, W) in Pillow's fixed point; all sums stay below 2 ** 24, so float32 holds them exactly."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.split(1, 1)
    return (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).div_(65536).floor_()


def _to_hsv(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hue, saturation and value, (N, 1, H, W) whole numbers 0..255 each."""
    red, green, blue = pixels.split(1, 1)
    high, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    chroma = high - low
    span = chroma.clamp(min=1)
    # Which channel is highest, 0 where it is: whole numbers, and many times faster on a CPU than torch.where.
    not_red, not_green = (high - red).clamp_(max=1), (high - green).clamp_(max=1)
    sixths = torch.lerp((blue - red).div_(span).add_(2), (red - green).div_(span).add_(4), not_green)
    turns = torch.lerp((green - blue).div_(span), sixths, not_red).div_(6)  # -1 / 6..5 / 6
    return turns.sub_(turns.floor()).mul_(255).floor_(), chroma.mul_(255).div_(high.clamp(min=1)).floor_(), high


def _centres(size: int, device: torch.device) -> torch.Tensor:
    """Pixel centres between the edges -1 and 1, (size,)."""
    return (torch.arange(size, device=device) * 2 + 1) / size - 1


def _uniform(low: float, high: float, pixels: torch.Tensor) -> torch.Tensor:
    """One number a picture, (N,)."""
    return torch.empty(len(pixels), device=pixels.device).uniform_(low, high)


def _chance(probability: float, pixels: torch.Tensor) -> torch.Tensor:
    return torch.rand(len(pixels), device=pixels.device) < probability
