"""The decision, in one place: is a prediction accepted or set aside, and which classes may the image show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artifacts.calibration import ACCEPT, CONFORMAL, outputs_name
from artifacts.metadata import ModelMetadata
from deploy.inference.uncertainty_scores import softmax, uncertainty_of

ACCEPTED, SET_ASIDE = "accept", "set_aside"


@dataclass(frozen=True)
class Decision:
    """The decision on one prediction of a calibrated net.

    `conformal_set` holds labels, the most probable first; it is empty where no class is probable enough.
    """

    uncertainty: float
    decision: str
    conformal_set: tuple[int, ...]


def decide(logits: np.ndarray, metadata: ModelMetadata) -> Sequence[Decision | None]:
    """Decide on logits (N, K) by the metadata; None for rows that are not finite, and for a net without calibration.

    Accepted where uncertainty <= `accept`; a class is in the conformal set where 1 - score <= `conformal`.
    """
    if metadata.calibration is None:
        return [None] * len(logits)
    temperature = metadata.temperature or 1.0
    is_finite = np.isfinite(logits).all(axis=1)
    finite = np.where(is_finite[:, None], logits, 0.0)
    uncertainties = uncertainty_of(finite, metadata.calibration.score, temperature)
    sets = conformal_sets(softmax(finite, temperature), metadata.thresholds[CONFORMAL])
    return [
        Decision(uncertainty, ACCEPTED if uncertainty <= metadata.thresholds[ACCEPT] else SET_ASIDE, members)
        if fits
        else None
        for uncertainty, members, fits in zip(uncertainties.tolist(), sets, is_finite, strict=True)
    ]


def foreign_calibration(metadata: ModelMetadata, runtime: str, precision: str = "auto") -> str:
    """Return a sentence where thresholds were fitted to other outputs than a runtime gives in a precision, else ""."""
    own, fitted_to = given_outputs(metadata, runtime, precision), metadata.calibrated_outputs
    if fitted_to in ("", own):
        return ""
    return (
        f"its thresholds were fitted to the outputs of {fitted_to}, and the target risk is that "
        f"of those; {own} decides a little differently"
    )


def given_outputs(metadata: ModelMetadata, runtime: str, precision: str = "auto") -> str:
    """Return the `outputs_name` of a file on a runtime; `precision` is the flag, which changes no int8 layer."""
    computed = metadata.precision if precision == "auto" or metadata.precision == "int8" else precision
    return outputs_name(computed, runtime)


def conformal_sets(scores: np.ndarray, threshold: float) -> list[tuple[int, ...]]:
    """Return for each row of scores (N, K) the labels with 1 - score <= threshold, the most probable first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    fits = 1 - np.take_along_axis(scores, order, axis=1) <= threshold
    return [tuple(labels[is_in].tolist()) for labels, is_in in zip(order, fits, strict=True)]
