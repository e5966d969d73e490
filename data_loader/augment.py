"""Training views: the random crop, colours and erasing of one image; and mixup and cutmix of a batch.

What happens to an image follows from (seed, epoch, index) alone, so the number of loader processes changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from data_loader.band_image import BandImage, Decoded, Kind, image_of, padded
from data_loader.preprocess import RESAMPLING, Preprocess, as_array

QUARTER_TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}


MOVES = (  # the settings that move what is in an image, and change no colour
    *("random_crop_scale", "random_crop_ratio", "horizontal_flip", "horizontal_flip_alternates", "vertical_flip"),
    *("rotation_degrees", "translate", "quarter_turns"),
)


@dataclass(frozen=True)
class AugmentSettings:
    """How strongly to augment; the fields are the config's keys of the same names."""

    random_crop_scale: Sequence[float] = (1.0, 1.0)
    random_crop_ratio: Sequence[float] = (1.0, 1.0)
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    rotation_degrees: float = 0.0
    translate: float = 0.0
    color_jitter: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_probability: float = 1.0
    random_grayscale: float = 0.0
    gaussian_blur: float = 0.0
    random_erasing: float = 0.0
    auto_augment: str = ""
    horizontal_flip_alternates: bool = False
    quarter_turns: bool = False
    balanced_crops: float = 0.0
    mosaic: float = 0.0
    mosaic_epochs: int = 0
    mixup_boxes: float = 0.0
    copy_paste: float = 0.0


class TrainingView:
    """A decoded image -> an augmented uint8 array (H, W, C) of the net's input size.

    The crop is sampled in the frame that `Preprocess.fit` would give, so that training and validation agree on the
    aspect: of the image itself for "squash", of the net's input for "letterbox" (after padding) and "crop".
    """

    def __init__(self, preprocess: Preprocess, settings: AugmentSettings) -> None:
        self.preprocess = preprocess
        self.settings = settings
        self.on_image = _image_transforms(settings, preprocess)
        self.erase = v2.RandomErasing(p=settings.random_erasing, value=0) if settings.random_erasing else None

    def __call__(self, image: Decoded, mirrored: bool = False) -> np.ndarray:
        """Return one view, from torch's CPU random numbers; where flips alternate, `mirrored` is this image's turn."""
        view = self._crop(image)
        if mirrored and self.settings.horizontal_flip_alternates:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.settings.quarter_turns:
            view = turned(view, random_quarter_turns())
        pixels = transformed(view, self.on_image)
        if self.erase is not None:
            erased = self.erase(torch.from_numpy(pixels).permute(2, 0, 1))  # (C, H, W)
            pixels = erased.permute(1, 2, 0).contiguous().numpy()  # (H, W, C)
        return pixels

    def _crop(self, image: Decoded) -> Decoded:
        preprocess, size = self.preprocess, (self.preprocess.width, self.preprocess.height)
        low, high = self.settings.random_crop_scale
        stretch_low, stretch_high = self.settings.random_crop_ratio
        if low == high == 1 and stretch_low == stretch_high == 1:
            return image_of(preprocess.fit(image))
        aspect = size[0] / size[1]
        if preprocess.resize == "letterbox":
            image = padded_to(image, aspect)
        elif preprocess.resize == "squash":
            aspect = image.width / image.height
        box = random_crop_box(image.size, (low, high), (aspect * stretch_low, aspect * stretch_high))
        return image.crop(box).resize(size, RESAMPLING[preprocess.interpolation])


class TwoViews:
    """A decoded image -> two independent training views, uint8 (2, H, W, C)."""

    def __init__(self, view: TrainingView) -> None:
        self.view = view

    def __call__(self, image: Decoded, mirrored: bool = False) -> np.ndarray:
        """Return both views, from torch's CPU random numbers."""
        return np.stack([self.view(image, mirrored), self.view(image, mirrored)])


class WeakAndStrongView:
    """A decoded image -> two training views, uint8 (2, H, W, C): one that is moved alone, and one changed strongly.

    Both are cropped, flipped and turned as the settings say. The strong one also has the settings' colours, a published
    policy, RandAugment where they name none, and an erased box (Sohn et al. 2020, https://arxiv.org/abs/2001.07685,
    sec. 2.3). Images of bands, for which there is no policy, have colours and the box.
    """

    def __init__(self, preprocess: Preprocess, settings: AugmentSettings) -> None:
        weak = AugmentSettings(**{name: getattr(settings, name) for name in MOVES})
        policy = settings.auto_augment or ("randaugment" if preprocess.image_channels in (1, 3) else "")
        strong = replace(settings, auto_augment=policy, random_erasing=settings.random_erasing or 1.0)
        self.views = TrainingView(preprocess, weak), TrainingView(preprocess, strong)

    def __call__(self, image: Decoded, mirrored: bool = False) -> np.ndarray:
        """Return both views, from torch's CPU random numbers."""
        return np.stack([view(image, mirrored) for view in self.views])


def training_view(preprocess: Preprocess, settings: AugmentSettings, views: int = 1) -> TrainingView | TwoViews:
    """Return what makes one view of a decoded image, or two."""
    view = TrainingView(preprocess, settings)
    return TwoViews(view) if views > 1 else view


class BatchMixer:
    """Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) of a batch, from an explicit generator.

    Returns the mixed images and targets as class probabilities (N, K). Where both are on, one is chosen at random.
    """

    def __init__(self, num_classes: int, mixup_alpha: float, cutmix_alpha: float) -> None:
        self.num_classes = num_classes
        self.alphas = [("mixup", mixup_alpha)] * (mixup_alpha > 0) + [("cutmix", cutmix_alpha)] * (cutmix_alpha > 0)

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return every image mixed with another of the batch. images (N, C, H, W), labels (N,) int64."""
        name, alpha = self.alphas[generator.integers(len(self.alphas))]
        share = float(generator.beta(alpha, alpha))  # of the image itself
        order = torch.from_numpy(generator.permutation(len(labels))).to(labels.device)
        if name == "mixup":
            images = images.lerp(images[order], 1 - share)
        else:
            images, share = _cut_and_paste(images, images[order], share, generator)
        targets = torch.nn.functional.one_hot(labels, self.num_classes).to(images.dtype)  # (N, K)
        return images, targets.lerp(targets[order], 1 - share)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Let torch's CPU random numbers follow from `key` inside, and put their state back afterwards."""
    before = torch.get_rng_state()
    # The default generator itself: torch.manual_seed would also queue a CUDA seed each time.
    torch.default_generator.manual_seed(mixed_seed(*key))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def mixed_seed(*key: int) -> int:
    """Return integers hashed into a 63-bit seed, so that neighbouring keys give unrelated streams."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def mirrored_half(seed: int, count: int) -> np.ndarray:
    """Return which of `count` images, half of them (N,), are mirrored in even epochs; the others are in odd ones.

    Two epochs in a row show every image both ways (Jordan 2024, sec. 3.6, https://arxiv.org/abs/2404.00498).
    """
    return np.random.default_rng(mixed_seed(seed, 3)).permutation(count) % 2 == 0


def random_crop_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Return a random box (left, top, right, bottom): a share `scale` of the area, an aspect width/height in `ratio`.

    Inception's crop (Szegedy et al. 2015) as torchvision draws it: ten tries, then the largest middle box of the ratio,
    which is at least one pixel wide and high.
    """
    probe = torch.empty(1, size[1], size[0], device="meta")
    transform = v2.RandomResizedCrop(1, scale=scale, ratio=ratio)
    drawn = transform.make_params([probe])
    left, top = min(drawn["left"], size[0] - 1), min(drawn["top"], size[1] - 1)
    return left, top, left + max(1, drawn["width"]), top + max(1, drawn["height"])


def random_quarter_turns() -> int:
    """Return a number of quarter turns, 0..3."""
    return int(torch.randint(4, ()))


def turned(image: Decoded, quarter_turns: int) -> Decoded:
    """Return an image turned to the left by so many quarter turns."""
    return image.transpose(QUARTER_TURNS[quarter_turns]) if quarter_turns else image


def transformed(view: Decoded, transforms: Sequence[Callable[..., Any]]) -> np.ndarray:
    """Return a view after torchvision's transforms, uint8 (H, W, C)."""
    changed = for_torchvision(view)
    for transform in transforms:
        changed = transform(changed)
    return from_torchvision(changed)


def for_torchvision(view: Decoded) -> Any:
    """Return a view as torchvision's transforms take it: an image of bands as a tensor (C, H, W) of the class Image."""
    if not isinstance(view, BandImage):
        return view
    return tv_tensors.Image(torch.from_numpy(as_array(view)).permute(2, 0, 1))  # (H, W, C) to (C, H, W)


def from_torchvision(changed: Any) -> np.ndarray:
    """Return what a transform made of `for_torchvision`'s view, uint8 (H, W, C)."""
    if isinstance(changed, Image.Image):
        return as_array(changed)
    pixels: np.ndarray = changed.permute(1, 2, 0).contiguous().numpy()
    return pixels


class BandJitter(torch.nn.Module):
    """ColorJitter's brightness and contrast of an image of bands, uint8 (C, H, W), one factor for all bands.

    Brightness multiplies; contrast multiplies the distance to the image's own mean of each band.
    """

    def __init__(self, brightness: float, contrast: float) -> None:
        super().__init__()
        self.brightness, self.contrast = brightness, contrast

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return it with new values, from torch's CPU random numbers."""
        bright, strong = (
            float(torch.empty(()).uniform_(max(0.0, 1 - width), 1 + width))
            for width in (self.brightness, self.contrast)
        )
        values = image.as_subclass(torch.Tensor).float() * bright  # (C, H, W)
        means = values.mean(dim=(1, 2), keepdim=True)
        return tv_tensors.Image(((values - means) * strong + means).round().clamp(0, 255).byte())


def _image_transforms(settings: AugmentSettings, preprocess: Preprocess) -> Sequence[Callable[..., Any]]:
    return [*_moves(settings), *colour_transforms(settings, preprocess)]


def _moves(settings: AugmentSettings) -> Sequence[Callable[..., Any]]:
    chosen: list[Callable[..., Any]] = []
    if settings.horizontal_flip and not settings.horizontal_flip_alternates:
        chosen.append(v2.RandomHorizontalFlip(settings.horizontal_flip))
    if settings.vertical_flip:
        chosen.append(v2.RandomVerticalFlip(settings.vertical_flip))
    if settings.rotation_degrees or settings.translate:
        shift = (settings.translate, settings.translate)
        bilinear = v2.InterpolationMode.BILINEAR
        chosen.append(v2.RandomAffine(settings.rotation_degrees, translate=shift, interpolation=bilinear))
    return chosen


def colour_transforms(settings: AugmentSettings, preprocess: Preprocess) -> Sequence[Callable[..., Any]]:
    """Return the transforms of one image that change its colours, not its places (but for a published policy).

    Images of bands have neither saturation nor hue, and no grey; a policy is refused for them by the config's rules.
    """
    chosen: list[Callable[..., Any]] = []
    if settings.auto_augment:
        chosen.append({"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}[settings.auto_augment]())
    if any(settings.color_jitter):
        brightness, contrast, saturation, hue = settings.color_jitter
        if preprocess.image_channels == 1:  # grey has neither saturation nor hue
            saturation = hue = 0.0
        jitter: Callable[..., Any] = v2.ColorJitter(brightness, contrast, saturation, hue)
        if preprocess.image_channels not in (1, 3):
            jitter = BandJitter(brightness, contrast)
        if settings.color_jitter_probability < 1:
            jitter = v2.RandomApply([jitter], settings.color_jitter_probability)
        chosen.append(jitter)
    if settings.random_grayscale and preprocess.image_channels == 3:
        chosen.append(v2.RandomGrayscale(settings.random_grayscale))
    if settings.gaussian_blur:
        kernel = max(3, min(preprocess.height, preprocess.width) // 10 | 1)
        chosen.append(v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], settings.gaussian_blur))
    return chosen


def padded_to(image: Kind, aspect: float, fill: int | None = None) -> Kind:
    """Return an image padded with black, or `fill`, as `ImageOps.pad` does, to width / height = aspect."""
    width, height = max(image.width, round(image.height * aspect)), max(image.height, round(image.width / aspect))
    return image if (width, height) == image.size else padded(image, (width, height), Image.Resampling.BICUBIC, fill)


def _cut_and_paste(
    images: torch.Tensor, others: torch.Tensor, share: float, generator: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """Paste a box of 1 - share of the area at a random centre; return the share that is really left."""
    height, width = images.shape[2:]
    cut = math.sqrt(1 - share)
    centre_y, centre_x = generator.integers(height), generator.integers(width)
    half_y, half_x = cut * height / 2, cut * width / 2
    top, bottom = max(0, round(centre_y - half_y)), min(height, round(centre_y + half_y))
    left, right = max(0, round(centre_x - half_x)), min(width, round(centre_x + half_x))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
