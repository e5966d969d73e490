"""Evaluation of a calibrated net: what its answers, decisions, sets and scores are worth, in plain values for JSON."""

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
MOST_MISTAKES = 24
CURVE_POINTS = 200
COLUMNS = 48  # of a histogram
LEAST_SHOWN = 1e-8  # what is less uncertain stands with it


def evaluate(
    known: Outputs, metadata: ModelMetadata, strange: Outputs | None = None, means: ClassMeans | None = None
) -> dict[str, Any]:
    """Evaluate a calibrated net on labelled images, and on strange ones, of none of its classes, where given.

    With `means` both need features. Gives a dict of plain values for JSON; shares are from 0 to 1.
    """
    assert metadata.calibration is not None
    doubts = uncertainties(known, metadata, means)
    others = uncertainties(strange, metadata, means) if strange is not None else {}
    wrong = known.logits.argmax(axis=1) != known.labels
    own = metadata.calibration.score
    return {
        "pictures": len(wrong),
        "accuracy": float(1 - wrong.mean()),
        "default_score": own,
        **_metadata_of(metadata),
        "decided": _decided(known, wrong, metadata),
        "before": _calibrated(known, 1.0),
        "after": _calibrated(known, metadata.temperature or 1.0),
        "passes": _passes(known),
        "scores": {name: _judged(doubts[name], wrong, others.get(name)) for name in doubts},
        "strange": None if strange is None else _strange(strange, metadata),
        "histogram": _histogram(doubts[own], others.get(own), metadata.thresholds[ACCEPT]),
        "mistakes": _mistakes(known, wrong, doubts[own], metadata),
    }


def uncertainties(outputs: Outputs, metadata: ModelMetadata, means: ClassMeans | None = None) -> dict[str, np.ndarray]:
    """Give every uncertainty that the outputs allow, by name, each (N,): SCORES, DISTANCE, those of repeated passes."""
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
    """Tell what the thresholds make of the images: acceptance, and conformal sets."""
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


def _calibrated(known: Outputs, temperature: float) -> dict[str, Any]:
    """Tell how far the scores at a temperature can be taken as probabilities."""
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


def _judged(doubt: np.ndarray, wrong: np.ndarray, others: np.ndarray | None) -> dict[str, Any]:
    """Tell how well an uncertainty ranks mistakes (N,) last, and strange images above known ones."""
    area, excess = area_under_risks(doubt, wrong)
    curve = risks(doubt, wrong)
    shown = np.unique(np.linspace(0, len(curve) - 1, min(CURVE_POINTS, len(curve))).astype(int))
    strange = {} if others is None else {"auroc": auroc(doubt, others), "fpr95": fpr95(doubt, others)}
    points = [[round((i + 1) / len(curve), 6), round(float(curve[i]), 6)] for i in shown.tolist()]
    return {"aurc": area, "e_aurc": excess, **strange, "risk_at_coverage": points}


def _strange(strange: Outputs, metadata: ModelMetadata) -> dict[str, Any]:
    decisions = [decision for decision in decide(strange.logits, metadata) if decision is not None]
    accepted = sum(decision.decision == ACCEPTED for decision in decisions)
    return {"pictures": len(decisions), "accepted": accepted, "share_accepted": accepted / len(decisions)}


def _histogram(doubt: np.ndarray, others: np.ndarray | None, threshold: float) -> dict[str, Any]:
    """Count an uncertainty of known and strange images in COLUMNS equal parts, of its logarithm where it has one."""
    both = doubt if others is None else np.concatenate([doubt, others])
    is_log = bool(both.min() >= 0)
    places = np.log10(np.maximum(both, LEAST_SHOWN)) if is_log else both
    low, high = float(places.min()), float(places.max())
    edges = np.linspace(low, high if high > low else low + 1, COLUMNS + 1)
    counts = [np.histogram(part, edges)[0].tolist() for part in (places[: len(doubt)], places[len(doubt) :])]
    at = float(np.log10(max(threshold, LEAST_SHOWN))) if is_log else threshold
    return {"is_log": is_log, "edges": edges.tolist(), "known": counts[0], "strange": counts[1], "threshold": at}


def _mistakes(known: Outputs, wrong: np.ndarray, doubt: np.ndarray, metadata: ModelMetadata) -> list[dict[str, Any]]:
    """List the mistakes that the net is least uncertain of."""
    names = metadata.class_names
    chosen = np.flatnonzero(wrong)
    chosen = chosen[np.argsort(doubt[chosen], kind="stable")][:MOST_MISTAKES]
    scores = softmax(known.logits[chosen], metadata.temperature or 1.0)
    return [
        {
            "file": known.files[index],
            "class": names[known.labels[index]],
            "answer": names[row.argmax()],
            "score": float(row.max()),
            "uncertainty": float(doubt[index]),
            "decision": decision.decision if decision is not None else "",
        }
        for index, row, decision in zip(chosen.tolist(), scores, decide(known.logits[chosen], metadata), strict=True)
    ]
