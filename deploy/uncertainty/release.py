"""The decision whether a new net replaces the old one: better on the same images, no class worse, its target kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from artifacts.metadata import ModelMetadata
from deploy.inference.uncertainty_scores import UncertaintyError
from deploy.uncertainty.evaluation import evaluate
from deploy.uncertainty.outputs import Outputs
from deploy.uncertainty.paired_test import Pairing, holm, pair_by_class


@dataclass(frozen=True)
class Release:
    """What two nets did on the same images, and why the new one does not replace the old: no reasons, it does."""

    whole: Pairing
    classes: dict[str, Pairing]
    target: dict[str, Any]  # of the new net's calibration, beside what its thresholds did; {} without one
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "replace": not self.reasons,
            "reasons": list(self.reasons),
            **_described(self.whole),
            "classes": {name: _described(pairing) for name, pairing in self.classes.items()},
            "calibration": self.target,
        }


def judge_release(
    old: Outputs,
    old_metadata: ModelMetadata,
    new: Outputs,
    new_metadata: ModelMetadata,
    confidence: float,
    *,
    takes_equal: bool = False,
) -> Release:
    """Compare two nets of the same classes on the images that both could read.

    The new net replaces the old one with a probability of at most 1 - confidence where both are equally good: the test
    of all images is exact, and each further condition only keeps more of them out. With `takes_equal` it need not be
    better, only not worse with that confidence. Raises UncertaintyError.
    """
    rows = shared_rows(old, new)
    if not len(rows):
        raise UncertaintyError("no image could be read for both nets, so there is nothing to compare")
    names = new_metadata.class_names
    labels = new.labels[rows[:, 1]]
    old_right = (old.logits.argmax(axis=1) == old.labels)[rows[:, 0]]
    new_right = (new.logits.argmax(axis=1) == new.labels)[rows[:, 1]]
    whole = Pairing.of(old_right, new_right)
    classes = dict(zip(names, pair_by_class(labels, old_right, new_right, len(names)), strict=True))
    target, broken = _target_of(new, new_metadata)
    judged = _worse(whole, confidence) if takes_equal else _not_better(whole, confidence)
    reasons = (*judged, *_worse_classes(classes, confidence), *broken)
    return Release(whole, classes, target, reasons)


def shared_rows(old: Outputs, new: Outputs) -> np.ndarray:
    """Return the rows (M, 2) of the images that both outputs have, by file."""
    places = {file: row for row, file in enumerate(new.files)}
    rows = [(row, places[file]) for row, file in enumerate(old.files) if file in places]
    return np.array(rows, dtype=int).reshape(-1, 2)


def _not_better(whole: Pairing, confidence: float) -> list[str]:
    if whole.p_better <= 1 - confidence:
        return []
    return [
        f"it is not better with confidence {confidence:g}: of {whole.images} images {whole.gained} are right with the "
        f"new net alone and {whole.lost} with the old one alone, and equal nets differ so with probability "
        f"{whole.p_better:.3g}"
    ]


def _worse(whole: Pairing, confidence: float) -> list[str]:
    if whole.p_worse > 1 - confidence:
        return []
    return [
        f"it is worse with confidence {confidence:g}: of {whole.images} images {whole.lost} are right with the old net "
        f"alone and {whole.gained} with the new one alone"
    ]


def _worse_classes(classes: dict[str, Pairing], confidence: float) -> list[str]:
    is_worse = holm([pairing.p_worse for pairing in classes.values()], 1 - confidence)
    return [
        f'class "{name}" is worse: of its {pairing.images} images {pairing.lost} are right with the old net alone and '
        f"{pairing.gained} with the new one alone"
        for (name, pairing), worse in zip(classes.items(), is_worse, strict=True)
        if worse
    ]


def _target_of(new: Outputs, metadata: ModelMetadata) -> tuple[dict[str, Any], list[str]]:
    """Return the calibration target beside what the thresholds did, and why it is not kept."""
    if metadata.calibration is None:
        return {}, ["the new net is not calibrated, so it has no target risk to keep; calibrate it first"]
    decided, risk = evaluate(new, metadata)["decided"], metadata.calibration.target_risk
    target = {"target_risk": risk} | {key: decided[key] for key in ("accepted", "coverage", "wrong", "error")}
    if not decided["accepted"]:
        return target, [f"the new net accepts none of the images, so its target risk of {risk:g} cannot be judged"]
    if decided["error"] <= risk:
        return target, []
    of_accepted = f"{decided['wrong']} of {decided['accepted']} accepted images are wrong ({decided['error']:.2%})"
    return target, [f"the new net does not keep its target risk of {risk:g}: {of_accepted}"]


def _described(pairing: Pairing) -> dict[str, Any]:
    return asdict(pairing) | {"p_better": pairing.p_better, "p_worse": pairing.p_worse}
