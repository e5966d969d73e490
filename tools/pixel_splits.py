"""Is the target of calibrated masks met? Random splits of images with masks, for tools.calibration_splits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from deploy.inference.uncertainty_scores import UncertaintyError
from deploy.uncertainty.pixel_risk import PixelLogits, accepted_and_wrong, pixel_threshold


def report_pixel_splits(args: argparse.Namespace, images: Sequence[PixelLogits]) -> list[str]:
    """Return what thresholds found on `args.pictures` of the images do to the others. Raises UncertaintyError."""
    if not 0 < args.pictures < len(images):
        raise UncertaintyError(f"--pictures must be from 1 to {len(images) - 1} of {len(images)} images")
    found = pixel_splits(images, args.target_risk, args.pictures, args.splits)
    right = np.mean([(image.logits.argmax(axis=1) == image.labels).mean() for image in images])
    lines = [
        f"{len(images)} images, of whose pixels {right:.1%} are right in the mean",
        f"{args.splits} splits, calibrated on {args.pictures}, measured on {len(images) - args.pictures}",
    ]
    if not len(found):
        return [*lines, "no threshold meets the target in any split"]
    accepted, wrong = found.T
    return [
        *lines,
        f"a threshold in {len(found)} of {args.splits}; accepted {accepted.mean():.1%} ({accepted.min():.1%}-"
        f"{accepted.max():.1%}); wrong among them {wrong.mean():.2%} ({wrong.min():.2%}-{wrong.max():.2%}), "
        f"target {args.target_risk:.4g}",
    ]


def pixel_splits(images: Sequence[PixelLogits], target: float, count: int, splits: int) -> np.ndarray:
    """Return means over the images that did not calibrate, (n, 2) for splits with a threshold.

    They are the share of an image's pixels that is accepted, and of these the share that is wrong (0 where there are
    none).
    """
    rows = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(images))
        try:
            found = pixel_threshold([images[number] for number in order[:count]], target)
        except UncertaintyError:
            continue
        values = np.array([found.value])
        pairs = [accepted_and_wrong(images[number], found.temperature, values) for number in order[count:]]
        shares = [(float(all_[0]), float(wrong[0] / all_[0]) if all_[0] else 0.0) for all_, wrong in pairs]
        rows.append(np.mean(shares, axis=0))
    return np.array(rows).reshape(-1, 2)
