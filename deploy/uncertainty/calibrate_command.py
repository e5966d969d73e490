"""Calibrating a checkpoint: its list is read, its net asked, its metadata fitted, written and told."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from artifacts.calibration import ACCEPT, CONFORMAL
from artifacts.checkpoint import rewrite_metadata
from artifacts.errors import CheckpointError
from artifacts.metadata import ModelMetadata
from deploy.backends.base import Backend
from deploy.uncertainty.calibration import Promise, calibrate, for_temperature, negative_log_likelihood
from deploy.uncertainty.outputs import (
    Outputs,
    check_not_trained_on,
    collect,
    config_of,
    labelled_samples,
    trained_on,
)


def calibrate_checkpoint(args: argparse.Namespace, weights: Path, backend: Backend, metadata: ModelMetadata) -> str:
    """Calibrate a checkpoint, write the thresholds into it, and return what to print. Raises ValueError."""
    if not metadata.weights_sha256:
        raise CheckpointError(
            f"{weights}: bare weights hold no metadata to write to; calibrate a checkpoint of train.py"
        )
    promise = promise_of(args)
    config = config_of(weights)
    samples = labelled_samples(args.calibrate, config, metadata, args.list_root)
    trained = trained_on(config, metadata)
    if trained is None:
        _tell(f"the training images of {weights} are not on this machine: take care that {args.calibrate} has none")
    else:
        check_not_trained_on(samples, args.calibrate, trained)
    outputs = collect(backend, metadata, samples, batch_size=args.batch_size, workers=args.workers)
    if outputs.skipped:
        _tell(f"{len(outputs.skipped)} images cannot be read and were left out; the first: {outputs.skipped[0]}")
    fitted = calibrate(outputs.logits, outputs.labels, metadata, promise)
    rewrite_metadata(weights, fitted)
    _tell_of_empty_sets(outputs, promise.conformal_risk)
    return report_of(outputs, fitted, args.calibrate, weights)


def promise_of(args: argparse.Namespace) -> Promise:
    """Give what the flags ask to be promised, and Promise's own where they do not."""
    standard = Promise()
    return Promise(
        args.target_risk or standard.target_risk,
        args.confidence or standard.confidence,
        args.conformal or standard.conformal_risk,
        args.score or standard.score,
    )


def report_of(outputs: Outputs, fitted: ModelMetadata, source: Path, weights: Path) -> str:
    """Tell what was fitted, in lines."""
    calibration, temperature = fitted.calibration, fitted.temperature
    assert calibration is not None and temperature is not None
    count, kept, accepted = len(outputs.logits), calibration.pictures, calibration.accepted
    held = ~for_temperature(count)
    logits, labels = outputs.logits[held], outputs.labels[held]
    accuracy = float(np.mean(logits.argmax(axis=1) == labels))
    losses = [negative_log_likelihood(logits, labels, t) for t in (1.0, temperature)]
    return "\n".join(
        [
            f"{source}: {count} images; {count - kept} fit the temperature, {kept} the thresholds",
            f"accuracy {accuracy:.4f}; temperature {temperature:.4f}; negative log likelihood {losses[0]:.4f} before, "
            f"{losses[1]:.4f} after",
            f"accept where {calibration.score} <= {fitted.thresholds[ACCEPT]:.6g}: {accepted} of {kept} "
            f"({accepted / kept:.1%}), {calibration.wrong} of them wrong",
            f"so the risk among the accepted is at most {calibration.risk_bound:.4f}, with confidence "
            f"{calibration.confidence:g}",
            f"conformal set: classes with 1 - score <= {fitted.thresholds[CONFORMAL]:.6g}; it misses the true class in "
            f"at most {calibration.conformal_risk:.1%} of the images",
            f"written into {weights}; files exported from it before do not have it: export them again",
        ]
    )


def _tell_of_empty_sets(outputs: Outputs, conformal_risk: float) -> None:
    error = float(np.mean(outputs.logits.argmax(axis=1) != outputs.labels))
    if error < conformal_risk:
        _tell(
            f"the net is wrong on {error:.2%} of the images, and conformal sets may miss {conformal_risk:.2%}: those "
            "of doubtful images will be empty; a --conformal below the net's own error gives sets that name "
            "candidates"
        )


def _tell(text: str) -> None:
    print(f"inference_uncertain.py: {text}", file=sys.stderr)
