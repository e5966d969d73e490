"""Are a detector's scores calibrated, and is its promise kept? Random splits of annotated images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from artifacts.detections import SIGMOID, Detections, logit_of
from data_loader.box_target import Boxes
from deploy.inference.uncertainty_scores import UncertaintyError
from deploy.uncertainty.box_scores import ImageScores, calibration_error, choose_score_map, joined, scores_of
from deploy.uncertainty.missed_objects import highest_threshold, missed_at

Image = tuple[Boxes, Detections]


class Split(NamedTuple):
    """Of the images of a split that did not calibrate: D-ECE of all objects, and of those from a score on.

    `missed` is the mean share of an image's objects that the threshold misses; NaN where none was found.
    """

    before: float
    after: float
    high_before: float
    high_after: float
    missed: float


def report_box_splits(args: argparse.Namespace, images: Sequence[Image], score: float) -> list[str]:
    """Return what calibrations on `args.pictures` of the images do to the others. Raises UncertaintyError."""
    if not 0 < args.pictures < len(images):
        raise UncertaintyError(f"--pictures must be from 1 to {len(images) - 1} of {len(images)} images")
    splits = box_splits(images, args.target_risk, args.confidence, args.pictures, args.splits, score)
    before, after, high_before, high_after, missed = np.array(splits).T
    missed = missed[~np.isnan(missed)]
    lines = [
        f"{args.splits} splits, calibrated on {args.pictures}, measured on {len(images) - args.pictures}",
        f"D-ECE of all objects found: before {_range(before)}, after {_range(after)}",
        f"of those with a score of {score:g} at least before: before {_range(high_before)}, after {_range(high_after)}",
    ]
    if not len(missed):
        return [*lines, "no threshold meets the target in any split"]
    above = int((missed > args.target_risk).sum())
    return [
        *lines,
        f"a threshold in {len(missed)} of {args.splits}: missed {_range(missed)} of an image's objects, target "
        f"{args.target_risk:.4g}, in {above} splits more",
    ]


def box_splits(
    images: Sequence[Image], target: float, confidence: float, count: int, splits: int, score: float
) -> list[Split]:
    """Calibrate on `count` images drawn at random, and measure on the others, `splits` times."""
    scored = [scores_of(*image) for image in images]
    found = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(images))
        held, rest = order[:count].tolist(), order[count:].tolist()
        score_map = choose_score_map([scored[number] for number in held]).score_map
        best = highest_threshold(*_columns(images, held), target, confidence)
        missed = missed_at(*_columns(images, rest), best.threshold) if best else float("nan")
        of_rest = [scored[number] for number in rest]
        high = [_from(image, logit_of(score)) for image in of_rest]
        (before, after), (high_before, high_after) = (
            [calibration_error(*joined(part), how) for how in (SIGMOID, score_map)] for part in (of_rest, high)
        )
        found.append(Split(before, after, high_before, high_after, missed))
    return found


def _columns(images: Sequence[Image], places: Sequence[int]) -> tuple[list[Boxes], list[Detections]]:
    return [images[place][0] for place in places], [images[place][1] for place in places]


def _from(image: ImageScores, least: float) -> ImageScores:
    is_high = image.logits >= least
    return ImageScores(image.logits[is_high], image.hits[is_high])


def _range(values: np.ndarray) -> str:
    return f"{values.mean():.2%} ({values.min():.2%}-{values.max():.2%})"
