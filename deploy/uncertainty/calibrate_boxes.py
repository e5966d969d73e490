"""Calibrating a detector, into its file: its scores, and the threshold at which it misses at most a share of objects.

The threshold is one of SCORE_THRESHOLDS of the uncalibrated scores, written as the calibrated score there: the map only
rises, so that the same objects stay, and the promise with them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from artifacts.calibration import MOST_MISSED
from artifacts.checkpoint import rewrite_metadata
from artifacts.detections import LEAST_SCORE, OFFSET, SCORE, SIGMOID, Detections, ScoreMap, logit_of
from artifacts.errors import CheckpointError
from artifacts.formats import artifact_kind
from artifacts.metadata import ModelMetadata
from artifacts.onnx_file import rewrite_onnx_metadata
from artifacts.sample_sources import SEPARATOR
from common.errors import UserError
from configs.schema import Config
from data_loader.box_target import Boxes, BoxTarget
from data_loader.list_reader import read_target_list
from data_loader.preprocess import ImageError
from data_loader.samples import Sample, SampleList
from data_loader.targets import Target
from deploy.backends.base import Backend
from deploy.inference.box_prediction import BoxPrediction
from deploy.inference.decision import given_outputs
from deploy.inference.predictor import Predictor
from deploy.inference.uncertainty_scores import UncertaintyError
from deploy.uncertainty.box_scores import FittedScores, choose_score_map, scores_of
from deploy.uncertainty.missed_objects import MissedObjects, highest_threshold, missed_at_least
from deploy.uncertainty.outputs import check_not_trained_on, config_of, real_paths, trained_on

MISSED, CONFIDENCE = 0.1, 0.95  # the target by default
HIGHEST = 1 - 2.0**-40  # score of a threshold: that of 1 no object would reach
CONFIDENCE_KEY = "confidence"  # of the metadata's thresholds, beside MOST_MISSED


def calibrate_boxes(
    args: argparse.Namespace, weights: Path, config: Config | None, backend: Backend, metadata: ModelMetadata
) -> str:
    """Fit scores and threshold to annotated images, write them, and return what to print. Raises UserError."""
    if surplus := [name for name in ("score", "conformal") if getattr(args, name) is not None]:
        raise UncertaintyError(f"--{surplus[0]} is of nets that give classes; this one gives boxes: leave it out")
    if not metadata.weights_sha256:
        raise CheckpointError(f"{weights}: bare weights hold no metadata to write to; name a checkpoint of train.py")
    is_checkpoint = artifact_kind(weights) == "checkpoint"
    config = (config_of(weights) if is_checkpoint else None) or config
    target, confidence = args.target_risk or MISSED, args.confidence or CONFIDENCE
    rows = found_objects(args.calibrate, args, weights, config, backend, metadata)
    truths, found = [truth for truth, _ in rows], [objects for _, objects in rows]
    best = highest_threshold(truths, found, target, confidence)
    if best is None:
        raise UncertaintyError(_no_threshold(truths, found, target, confidence, args.calibrate))
    scores = choose_score_map([scores_of(*row) for row in rows])
    threshold = calibrated_threshold(best.threshold, scores.score_map)
    values = {SCORE: threshold, MOST_MISSED: target, CONFIDENCE_KEY: confidence}
    given = given_outputs(metadata, backend.name, args.precision)
    fitted = replace(with_score_map(metadata, scores.score_map, values), fitted_to=given)
    (rewrite_metadata if is_checkpoint else rewrite_onnx_metadata)(weights, fitted)
    return _summary(replace(best, threshold=threshold), scores, len(rows), target, confidence, args.calibrate, weights)


def found_objects(
    source: Path,
    args: argparse.Namespace,
    weights: Path,
    config: Config | None,
    backend: Backend,
    metadata: ModelMetadata,
) -> list[tuple[Boxes, Detections]]:
    """Return the objects of each image that was not trained on, and those found from LEAST_SCORE on, uncalibrated.

    Raises UserError.
    """
    boxes = BoxTarget(metadata.num_classes, metadata.mask_classes, max_pixels=metadata.preprocess.max_pixels)
    samples = annotated_samples(source, args.list_root, config, boxes)
    if (trained := annotated_training(config, metadata, boxes)) is None:
        warn(f"the training images of {weights} are not on this machine: take care that {source} has none")
    else:
        check_not_trained_on(samples.samples, source, trained)
    measured = with_score_map(metadata, SIGMOID, {SCORE: LEAST_SCORE})
    rows = list(_measured(samples.samples, boxes, Predictor(backend, measured), args))
    if not rows:
        raise UncertaintyError(f"{source}: none of its images can be used")
    return rows


def calibrated_threshold(threshold: float, score_map: ScoreMap) -> float:
    """Return the calibrated score of an uncalibrated one."""
    if score_map == SIGMOID:
        return threshold
    return min(float(score_map.scores(np.array(logit_of(threshold)))), HIGHEST)


def with_score_map(metadata: ModelMetadata, score_map: ScoreMap, thresholds: dict[str, float]) -> ModelMetadata:
    """Return the metadata with other scores and further thresholds."""
    others = {name: value for name, value in metadata.thresholds.items() if name != OFFSET} | thresholds
    if score_map == SIGMOID:
        return replace(metadata, temperature=None, thresholds=others)
    return replace(metadata, temperature=score_map.temperature, thresholds=others | {OFFSET: score_map.offset})


def annotated_samples(source: Path, list_root: Path | None, config: Config | None, target: Target) -> SampleList:
    """Return the images of a folder, of COCO's file or of a txt list, as a training reads them. Raises ListError."""
    root = str(list_root or source.parent)
    if source.is_dir():
        return target.read_folder(str(source))
    found = target.read_annotations(str(source), root, allow_outside_root=True)
    if found is not None:
        return found
    separator = config.file_label_separator if config else SEPARATOR
    return target.completed(read_target_list(source, root, separator, target, allow_outside_root=True))


def annotated_training(config: Config | None, metadata: ModelMetadata, target: Target) -> frozenset[str] | None:
    """Return the real paths of the training images, of any source; None where they are not on this machine."""
    if config is None or not config.train_data_file:
        return trained_on(config, metadata)
    root, separator = config.train_data_root_dir, config.file_label_separator
    try:
        found = target.read_annotations(config.train_data_file, root, allow_outside_root=True)
        if found is None:  # a txt list, whose annotations need not be read
            found = read_target_list(config.train_data_file, root, separator, target, allow_outside_root=True)
        return frozenset(real_paths(found.samples))
    except (UserError, OSError):  # it has changed since
        return None


def _measured(
    samples: tuple[Sample, ...], target: BoxTarget, predictor: Predictor, args: argparse.Namespace
) -> Iterator[tuple[Boxes, Detections]]:
    """Yield the objects of each image that can be read, and those that were found."""
    truths: dict[str, Boxes] = {}
    problems = []
    for sample in samples:
        try:
            truths[sample.path], _ = target.scan(sample)
        except ImageError as error:
            problems.append(f"{sample.path}: {error}")
    for prediction in predictor.predict_files(truths, args.batch_size, workers=args.workers):
        if prediction.error:
            problems.append(f"{prediction.file}: {prediction.error}")
            continue
        assert isinstance(prediction, BoxPrediction)
        objects = prediction.objects
        yield (
            truths[prediction.file],
            Detections(
                np.array([found.box for found in objects], np.float32).reshape(-1, 4),
                np.array([found.label for found in objects], np.int64),
                np.array([found.score for found in objects], np.float32),
            ),
        )
    if problems:
        warn(f"{len(problems)} images cannot be used and were left out; the first: {problems[0]}")


def _no_threshold(truths: list[Boxes], found: list[Detections], target: float, confidence: float, source: Path) -> str:
    """Return why no threshold meets the target, and which target these images would meet."""
    count, missed, bound = missed_at_least(truths, found, confidence)
    if not count:
        return f"{source}: not one object in its images, so that nothing can be missed"
    least = f"even at a score of {LEAST_SCORE:g} an image's objects are missed by {missed:.1%} in the mean"
    can = f"a --target_risk of {bound:.3f} can be met" if bound < 1 else "no --target_risk can be met"
    return (
        f"{source}: no threshold misses at most {target:g} of the objects with confidence {confidence:g}: {least}, and "
        f"{count} images with objects allow no lower bound than {bound:.3f}; {can}, and more images allow a lower one"
    )


def _summary(
    best: MissedObjects,
    scores: FittedScores,
    count: int,
    target: float,
    confidence: float,
    source: Path,
    weights: Path,
) -> str:
    others = "; files exported from it before do not have it: export them again" if weights.suffix != ".onnx" else ""
    return "\n".join(
        [
            f"{source}: {count} images",
            _scores_line(scores),
            f"score >= {best.threshold:g}: {best.missed:.1%} of an image's objects are missed in the mean, and "
            f"{best.precision:.1%} of what is found is right",
            f"so at most {best.bound:.1%} are missed, with confidence {confidence:g} (asked for: {target:.1%})",
            f"written into {weights}{others}",
        ]
    )


def _scores_line(scores: FittedScores) -> str:
    if scores.score_map == SIGMOID:
        return f"the scores stay as they are (D-ECE {scores.before:.2%}): no other ones fit better than by chance"
    return (
        f"score = sigmoid(logit / {scores.score_map.temperature:.4f} {scores.score_map.offset:+.4f}); D-ECE, the mean "
        f"distance between score and precision: {scores.after:.2%} (five-fold), {scores.before:.2%} before"
    )


def warn(text: str) -> None:
    """Print a line on stderr, with the program's name."""
    print(f"inference_uncertain.py: {text}", file=sys.stderr)
