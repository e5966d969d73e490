"""Calibrating a net of masks: its temperature, and the score from which pixels are accepted, into its file."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from artifacts.calibration import MOST_WRONG, PIXEL_SCORE
from artifacts.checkpoint import rewrite_metadata
from artifacts.errors import CheckpointError
from artifacts.formats import artifact_kind
from artifacts.metadata import ModelMetadata
from artifacts.onnx_file import rewrite_onnx_metadata
from configs.schema import Config
from data_loader.mask_classes import VOID
from deploy.backends.base import Backend
from deploy.inference.decision import given_outputs
from deploy.inference.mask_prediction import MaskPrediction, own_size_bands
from deploy.inference.predictor import Predictor
from deploy.inference.uncertainty_scores import UncertaintyError
from deploy.uncertainty.mask_source import MaskSource
from deploy.uncertainty.outputs import config_of
from deploy.uncertainty.pixel_risk import PixelLogits, PixelThreshold, pixel_threshold

MOST_WRONG_SHARE = 0.1  # the target by default
MOST_PIXELS = 16_384  # drawn from an image
MOST_BYTES = 512 * 10**6  # of all their logits
SEED = 0


def calibrate_pixels(
    args: argparse.Namespace, weights: Path, config: Config | None, backend: Backend, metadata: ModelMetadata
) -> str:
    """Find temperature and threshold on images with masks, write them, and return what to print. Raises UserError."""
    if surplus := [name for name in ("score", "confidence", "conformal") if getattr(args, name) is not None]:
        raise UncertaintyError(f"--{surplus[0]} is not for nets that give masks, which --target_risk alone calibrates")
    if not metadata.weights_sha256:
        raise CheckpointError(f"{weights}: bare weights hold no metadata to write to; name a checkpoint of train.py")
    is_checkpoint = artifact_kind(weights) == "checkpoint"
    config = (config_of(weights) if is_checkpoint else None) or config
    target = args.target_risk or MOST_WRONG_SHARE
    images = pixels_of(args.calibrate, args, weights, config, backend, metadata)
    found = pixel_threshold(images, target)
    thresholds = {**metadata.thresholds, PIXEL_SCORE: found.value, MOST_WRONG: target}
    given = given_outputs(metadata, backend.name, args.precision)
    fitted = replace(metadata, temperature=found.temperature, thresholds=thresholds, fitted_to=given)
    (rewrite_metadata if is_checkpoint else rewrite_onnx_metadata)(weights, fitted)
    return _summary(found, len(images), target, args.calibrate, weights)


def pixels_of(
    source: Path,
    args: argparse.Namespace,
    weights: Path,
    config: Config | None,
    backend: Backend,
    metadata: ModelMetadata,
) -> list[PixelLogits]:
    """Return pixels of each image of a folder or a list with masks that was not trained on. Raises UserError."""
    found = MaskSource.of(source, args.list_root, weights, config, metadata)
    most = min(MOST_BYTES // (4 * metadata.num_classes * max(1, len(found.samples))), MOST_PIXELS)
    images, generator = list[PixelLogits](), np.random.default_rng(SEED)
    for prediction, truth in found.predicted(Predictor(backend, metadata), args.batch_size, args.workers):
        places = generator.permutation(np.flatnonzero(truth != VOID))[:most]
        if len(places):
            images.append(PixelLogits(_logits_at(prediction, places), truth.ravel()[places].astype(np.int64)))
    if not images:
        raise UncertaintyError(f"{source}: none of its images has a pixel of a class")
    return images


def _logits_at(prediction: MaskPrediction, places: np.ndarray) -> np.ndarray:
    """Return the logits (n, K) of pixels of the image, whose numbers count row by row."""
    assert prediction.logits is not None and prediction.preprocess is not None
    rows, columns = np.divmod(places, prediction.size[0])
    found = np.empty((len(places), len(prediction.logits)), np.float32)
    for down, across, band in own_size_bands(prediction.logits, prediction.preprocess, prediction.size):
        inside = (rows >= down.start) & (rows < down.stop)
        found[inside] = band[:, rows[inside] - down.start, columns[inside] - across.start].T
    return found


def _summary(found: PixelThreshold, count: int, target: float, source: Path, weights: Path) -> str:
    others = "; files exported from it before do not have it: export them again" if weights.suffix != ".onnx" else ""
    return "\n".join(
        [
            f"{source}: {count} images; {count - found.images} fit the temperature, {found.images} the threshold",
            f"temperature {found.temperature:.4f}; a pixel is accepted from a score of {found.value:.6g} on: "
            f"{found.accepted:.1%} of an image's pixels in the mean, {found.wrong:.1%} of them wrong",
            f"so in the expectation over images at most {found.risk:.1%} of the accepted pixels are wrong (asked for: "
            f"{target:.1%})",
            f"written into {weights}{others}",
        ]
    )
