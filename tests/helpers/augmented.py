"""Textured images, and how distributions of augmented ones are compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_loader.augment import AugmentSettings

stats = pytest.importorskip("scipy.stats")
UNLIKELY = 1e-4  # a p-value that no pair of equal distributions shows here; each seed is fixed
EVERYTHING = AugmentSettings(
    random_crop_scale=(0.3, 1.0),
    random_crop_ratio=(0.75, 4 / 3),
    horizontal_flip=0.3,
    vertical_flip=0.2,
    translate=0.1,
    color_jitter=(0.4, 0.8, 0.9, 0.15),
    color_jitter_probability=0.7,
    random_grayscale=0.3,
    gaussian_blur=0.5,
    random_erasing=0.4,
)


def textured(height: int = 32, width: int = 32, channels: int = 3, count: int = 1) -> torch.Tensor:
    """Images (N, C, H, W) of smooth patches of many colours, no side like another, with some noise."""
    generator = torch.Generator().manual_seed(7)
    patches = torch.rand(count, channels, 5, 4, generator=generator)
    tints = torch.tensor([0.9, 0.6, 0.4])[:channels].view(1, channels, 1, 1)
    slope = torch.linspace(0.4, 1, width) * torch.linspace(1, 0.5, height)[:, None]
    smooth = torch.nn.functional.interpolate(patches, (height, width), mode="bilinear") * tints * slope
    noise = torch.rand(count, channels, height, width, generator=generator) * 0.2
    return ((smooth + noise + 0.05) * 220).clamp(0, 255).to(torch.uint8)


def noise(count: int, channels: int = 3) -> torch.Tensor:
    """Images of evenly drawn colours, with pure and grey ones among them."""
    pixels = torch.randint(0, 256, (count, channels, 48, 40), generator=torch.Generator().manual_seed(3))
    pixels[:, :, :8] = pixels[:, :, :8] // 128 * 255
    pixels[:, :, 8:16] = pixels[:, :1, 8:16]
    return pixels.to(torch.uint8)


def compare(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    """Assert that every statistic has one distribution in both, and one mean and spread within 4 standard errors."""
    for name in first:
        a, b = (np.asarray(values[name], dtype=float) for values in (first, second))
        assert stats.ks_2samp(a, b).pvalue > UNLIKELY, f"the distributions of {name} differ"
        middle = np.concatenate([a, b]).mean()
        for moment in (1, 2):
            x, y = (a - middle) ** moment, (b - middle) ** moment
            error = np.sqrt(x.var() / len(x) + y.var() / len(y))
            assert abs(x.mean() - y.mean()) <= 4 * error + 1e-9, f"moment {moment} of {name} differ"


def seen_in(views: torch.Tensor) -> dict[str, np.ndarray]:
    """Statistics (N,) of views (N, C, H, W), one at least for each operation."""
    pixels = views.float()
    grey = pixels.mean(1)  # (N, H, W)
    red, green, blue = pixels[:, 0], pixels[:, -2 % pixels.shape[1]], pixels[:, -1]
    numbers = {
        "red": red.mean((1, 2)),
        "green": green.mean((1, 2)),
        "blue": blue.mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "contrast to brightness": grey.std((1, 2)) / (grey.mean((1, 2)) + 1),
        "colourfulness": (pixels.amax(1) - pixels.amin(1)).mean((1, 2)),
        "saturation": (1 - pixels.amin(1) / (pixels.amax(1) + 1)).mean((1, 2)),
        "red against green": (red - green).mean((1, 2)),
        "green against blue": (green - blue).mean((1, 2)),
        "left against right": (grey[:, :, :16] - grey[:, :, 16:]).mean((1, 2)),
        "top against bottom": (grey[:, :16] - grey[:, 16:]).mean((1, 2)),
        "roughness": grey.diff(dim=2).abs().mean((1, 2)),
        "roughness to contrast": grey.diff(dim=2).abs().mean((1, 2)) / (grey.std((1, 2)) + 1),
        "erased": (grey == 0).float().mean((1, 2)),
    }
    return {name: values.numpy() for name, values in numbers.items()}
