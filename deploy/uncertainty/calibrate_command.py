"""Calibrating a checkpoint or an ONNX file: run it on a labelled list, fit the metadata, write it, report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from artifacts.calibration import ACCEPT, CONFORMAL
from artifacts.checkpoint import rewrite_metadata
from artifacts.errors import CheckpointError
from artifacts.formats import artifact_kind
from artifacts.metadata import ModelMetadata
from artifacts.onnx_file import rewrite_onnx_metadata
from configs.schema import Config
from deploy.backends.base import Backend
from deploy.inference.decision import given_outputs
from deploy.inference.uncertainty_scores import softmax
from deploy.uncertainty.calibration import CalibrationTarget, calibrate, for_temperature, negative_log_likelihood
from deploy.uncertainty.metrics import reliability
from deploy.uncertainty.outputs import (
    Outputs,
    check_not_trained_on,
    collect,
    config_of,
    labelled_samples,
    trained_on,
)


def calibrate_file(
    args: argparse.Namespace, weights: Path, config: Config | None, backend: Backend, metadata: ModelMetadata
) -> str:
    """Calibrate a file, write the thresholds into it, and return what to print. Raises UserError.

    `config` is what --config names, for a file without one.
    """
    is_checkpoint = artifact_kind(weights) == "checkpoint"
    if not metadata.weights_sha256:
        raise CheckpointError(
            f"{weights}: bare weights hold no metadata to write to; calibrate a checkpoint of train.py"
        )
    target = calibration_target(args)
    config = (config_of(weights) if is_checkpoint else None) or config
    found = labelled_samples(args.calibrate, config, metadata, args.list_root, flag="--calibrate")
    if found.note:
        _warn(found.note)
    samples = found.samples
    trained = trained_on(config, metadata)
    if trained is None:
        _warn(f"the training images of {weights} are not on this machine: take care that {args.calibrate} has none")
    else:
        check_not_trained_on(samples, args.calibrate, trained)
    outputs = collect(backend, metadata, samples, batch_size=args.batch_size, workers=args.workers)
    if outputs.skipped:
        _warn(f"{len(outputs.skipped)} images cannot be read and were left out; the first: {outputs.skipped[0]}")
    given = given_outputs(metadata, backend.name, args.precision)
    fitted = calibrate(outputs.logits, outputs.labels, metadata, target, fitted_to=given)
    (rewrite_metadata if is_checkpoint else rewrite_onnx_metadata)(weights, fitted)
    _warn_of_empty_sets(outputs, target.conformal_risk)
    _warn_of_worse_scores(outputs, fitted)
    read = f"\nthe images of {found.origin} were read below {found.root}" if found.root else ""
    return calibration_summary(outputs, fitted, args.calibrate, weights) + read


def calibration_target(args: argparse.Namespace) -> CalibrationTarget:
    """Return the target that the flags ask for, with the defaults where they do not."""
    default = CalibrationTarget()
    return CalibrationTarget(
        args.target_risk or default.target_risk,
        args.confidence or default.confidence,
        args.conformal or default.conformal_risk,
        args.score or default.score,
    )


def calibration_summary(outputs: Outputs, fitted: ModelMetadata, source: Path, weights: Path) -> str:
    """Return what was fitted, in lines."""
    calibration, temperature = fitted.calibration, fitted.temperature
    assert calibration is not None and temperature is not None
    count, kept, accepted = len(outputs.logits), calibration.pictures, calibration.accepted
    held = ~for_temperature(count)
    logits, labels = outputs.logits[held], outputs.labels[held]
    accuracy = float(np.mean(logits.argmax(axis=1) == labels))
    others = "; files exported from it before do not have it: export them again" if weights.suffix != ".onnx" else ""
    losses = [negative_log_likelihood(logits, labels, t) for t in (1.0, temperature)]
    stays = " (it stays 1: no fitted one is better on other images than those that it was fitted to)"
    return "\n".join(
        [
            f"{source}: {count} images; {count - kept} fit the temperature, {kept} the thresholds",
            f"accuracy {accuracy:.4f}; temperature {temperature:.4f}{stays if temperature == 1 else ''}; negative log "
            f"likelihood {losses[0]:.4f} before, {losses[1]:.4f} after",
            f"accept where {calibration.score} <= {fitted.thresholds[ACCEPT]:.6g}: {accepted} of {kept} "
            f"({accepted / kept:.1%}), {calibration.wrong} of them wrong",
            f"so the risk among the accepted is at most {calibration.risk_bound:.4f}, with confidence "
            f"{calibration.confidence:g}",
            f"conformal set: classes with 1 - score <= {fitted.thresholds[CONFORMAL]:.6g}; it misses the true class in "
            f"at most {calibration.conformal_risk:.1%} of the images",
            f"fitted to the outputs of {calibration.fitted_to}, and written into {weights}{others}",
        ]
    )


def _warn_of_empty_sets(outputs: Outputs, conformal_risk: float) -> None:
    error = float(np.mean(outputs.logits.argmax(axis=1) != outputs.labels))
    if error < conformal_risk:
        _warn(
            f"the net is wrong on {error:.2%} of the images, and conformal sets may miss {conformal_risk:.2%}: those "
            "of uncertain images will be empty; a --conformal below the net's own error gives sets that name "
            "candidates"
        )


def _warn_of_worse_scores(outputs: Outputs, fitted: ModelMetadata) -> None:
    """Log where the temperature makes the scores of the images that it was not fitted to worse."""
    held = ~for_temperature(len(outputs.logits))
    logits, labels = outputs.logits[held], outputs.labels[held]
    pairs = {
        "negative log likelihood": lambda t: negative_log_likelihood(logits, labels, t),
        "expected calibration error": lambda t: reliability(softmax(logits, t), labels).error,
    }
    for name, measure in pairs.items():
        before, after = measure(1.0), measure(fitted.temperature or 1.0)
        if after > before:
            others = f"the {len(labels)} images that it was not fitted to"
            _warn(
                f"the temperature {fitted.temperature:.4f} makes the {name} of {others} worse: {after:.4f} instead of "
                f"{before:.4f}; a longer list fits it better"
            )


def _warn(text: str) -> None:
    print(f"inference_uncertain.py: {text}", file=sys.stderr)
