"""Evaluation of a calibrated net: its accuracy, decisions, conformal sets and scores, as plain values for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from artifacts.calibration import ACCEPT, SCORES
from artifacts.metadata import ModelMetadata
from deploy.inference.decision import ACCEPTED, decide
from deploy.inference.uncertainty_scores import ClassMeans, softmax, split_entropy, uncertainty_of
from deploy.uncertainty.calibration import negative_log_likelihood
from deploy.uncertainty.metrics import area_under_risks, auroc, brier, fpr95, reliability, risks
from deploy.uncertainty.outputs import Outputs

DISTANCE = "distance"
MAX_MISTAKES = 24
CURVE_POINTS = 200
COLUMNS = 48  # of a histogram
LEAST_SHOWN = 1e-8  # the left end of a histogram's logarithmic axis


def evaluate(
    known: Outputs, metadata: ModelMetadata, ood: Outputs | None = None, means: ClassMeans | None = None
) -> dict[str, Any]:
    """Evaluate a calibrated net on labelled images, and on out-of-distribution ones, of none of its classes.

    With `means` both need features. Returns a dict of plain values for JSON; shares are from 0 to 1.
    """
    assert metadata.calibration is not None
    known_scores = uncertainties(known, metadata, means)
    ood_scores = uncertainties(ood, metadata, means) if ood is not None else {}
    wrong = known.logits.argmax(axis=1) != known.labels
    own = metadata.calibration.score
    return {
        "pictures": len(wrong),
        "accuracy": float(1 - wrong.mean()),
        "default_score": own,
        **_metadata_of(metadata),
        "decided": _decided(known, wrong, metadata),
        "before": _calibration_error(known, 1.0),
        "after": _calibration_error(known, metadata.temperature or 1.0),
        "passes": _passes(known),
        "scores": {name: _ranking(known_scores[name], wrong, ood_scores.get(name)) for name in known_scores},
        "strange": None if ood is None else _accepted_ood(ood, metadata),
        "histogram": _histogram(known_scores[own], ood_scores.get(own), metadata.thresholds[ACCEPT]),
        "mistakes": _mistakes(known, wrong, known_scores[own], metadata),
    }


def uncertainties(outputs: Outputs, metadata: ModelMetadata, means: ClassMeans | None = None) -> dict[str, np.ndarray]:
    """Return every uncertainty that the outputs allow, by name, each (N,): SCORES, DISTANCE, PASS_SCORES."""
    temperature = metadata.temperature or 1.0
    found = {score: uncertainty_of(outputs.logits, score, temperature) for score in SCORES}
    if means is not None and outputs.features is not None:
        found[DISTANCE] = means.distance(outputs.features)
    return found | (split_entropy(outputs.scores) if outputs.scores is not None else {})


def _metadata_of(metadata: ModelMetadata) -> dict[str, Any]:
    assert metadata.calibration is not None
    calibrated = {"temperature": metadata.temperature, "thresholds": metadata.thresholds}
    return {"classes": len(metadata.class_names), **calibrated, "calibration": metadata.calibration.to_dict()}


def _decided(known: Outputs, wrong: np.ndarray, metadata: ModelMetadata) -> dict[str, Any]:
    """Return the effect of the thresholds on the images: acceptance and conformal sets."""
    decisions = [decision for decision in decide(known.logits, metadata) if decision is not None]
    accepted = np.array([decision.decision == ACCEPTED for decision in decisions])
    sets = [decision.conformal_set for decision in decisions]
    sizes = np.array([len(members) for members in sets])
    count = int(accepted.sum())
    return {
        "accepted": count,
        "coverage": float(accepted.mean()),
        "wrong": int(wrong[accepted].sum()),
        "error": float(wrong[accepted].mean()) if count else None,
        "conformal_coverage": float(
            np.mean([label in s for label, s in zip(known.labels.tolist(), sets, strict=True)])
        ),
        "conformal_size": float(sizes.mean()),
        "conformal_sizes": np.bincount(sizes).tolist(),
    }


def _calibration_error(known: Outputs, temperature: float) -> dict[str, Any]:
    """Return how well the scores at a temperature match probabilities."""
    scores = softmax(known.logits, temperature)
    parts = reliability(scores, known.labels)
    return {
        "temperature": temperature,
        "ece": parts.error,
        "nll": negative_log_likelihood(known.logits, known.labels, temperature),
        "brier": brier(scores, known.labels),
        "bins": [
            {"count": int(count), "score": float(score), "accuracy": float(accuracy)} if count else {"count": 0}
            for count, score, accuracy in zip(parts.counts, parts.scores, parts.accuracies, strict=True)
        ],
    }


def _passes(known: Outputs) -> dict[str, Any] | None:
    if known.scores is None:
        return None
    predictions = known.scores.mean(axis=0).argmax(axis=1)
    return {"count": len(known.scores), "accuracy_of_their_mean": float((predictions == known.labels).mean())}


def _ranking(uncertainty: np.ndarray, wrong: np.ndarray, ood: np.ndarray | None) -> dict[str, Any]:
    """Return how well an uncertainty ranks mistakes (N,) last, and out-of-distribution images above known ones."""
    area, excess = area_under_risks(uncertainty, wrong)
    curve = risks(uncertainty, wrong)
    shown = np.unique(np.linspace(0, len(curve) - 1, min(CURVE_POINTS, len(curve))).astype(int))
    detection = {} if ood is None else {"auroc": auroc(uncertainty, ood), "fpr95": fpr95(uncertainty, ood)}
    points = [[round((i + 1) / len(curve), 6), round(float(curve[i]), 6)] for i in shown.tolist()]
    return {"aurc": area, "e_aurc": excess, **detection, "risk_at_coverage": points}


def _accepted_ood(ood: Outputs, metadata: ModelMetadata) -> dict[str, Any]:
    decisions = [decision for decision in decide(ood.logits, metadata) if decision is not None]
    accepted = sum(decision.decision == ACCEPTED for decision in decisions)
    return {"pictures": len(decisions), "accepted": accepted, "share_accepted": accepted / len(decisions)}


def _histogram(known: np.ndarray, ood: np.ndarray | None, threshold: float) -> dict[str, Any]:
    """Count the uncertainties of known and OOD images in COLUMNS bins, logarithmic if none is negative."""
    both = known if ood is None else np.concatenate([known, ood])
    is_log = bool(both.min() >= 0)
    places = np.log10(np.maximum(both, LEAST_SHOWN)) if is_log else both
    low, high = float(places.min()), float(places.max())
    edges = np.linspace(low, high if high > low else low + 1, COLUMNS + 1)
    counts = [np.histogram(part, edges)[0].tolist() for part in (places[: len(known)], places[len(known) :])]
    at = float(np.log10(max(threshold, LEAST_SHOWN))) if is_log else threshold
    return {"is_log": is_log, "edges": edges.tolist(), "known": counts[0], "strange": counts[1], "threshold": at}


def _mistakes(
    known: Outputs, wrong: np.ndarray, uncertainty: np.ndarray, metadata: ModelMetadata
) -> list[dict[str, Any]]:
    """Return the least uncertain of the mistakes."""
    names = metadata.class_names
    chosen = np.flatnonzero(wrong)
    chosen = chosen[np.argsort(uncertainty[chosen], kind="stable")][:MAX_MISTAKES]
    scores = softmax(known.logits[chosen], metadata.temperature or 1.0)
    return [
        {
            "file": known.files[index],
            "class": names[known.labels[index]],
            "answer": names[row.argmax()],
            "score": float(row.max()),
            "uncertainty": float(uncertainty[index]),
            "decision": decision.decision if decision is not None else "",
        }
        for index, row, decision in zip(chosen.tolist(), scores, decide(known.logits[chosen], metadata), strict=True)
    ]
