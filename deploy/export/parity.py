"""Parity: how far a file's outputs may differ from the net's, by the name of the output.

The default rule compares values and needs to know nothing of what they mean; a rule in PARITY_RULES adds what an output
has besides.
"""

from __future__ import annotations

import numpy as np

from artifacts.metadata import ModelMetadata
from deploy.export.dense_parity import BoxParity, MaskParity
from deploy.export.parity_rule import MOST_INT8_DIFFERENCE, ParityResult, ParityRule, is_chance, loss_interval
from deploy.export.reference import MOST_MOVED, TOLERANCES, Reference

LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99, "int8": 0.98}  # of an image's features
ROUNDING = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}  # half the step between two numbers near 1


class ClassParity(ParityRule):
    """Logits (N, K): the images keep their class, and int8 its accuracy on labelled images."""

    value, kept = "logit", "class"
    column, agreement_note = "top-1", "top-1: % of the images that keep the net's class"
    measure = "top-1 accuracy"

    def accuracy(self, reference: Reference) -> float | None:
        """Return the share of the labelled images whose largest logit is the label's; None without labels."""
        labels = reference.images.labels
        return None if labels is None else float((reference.outputs.argmax(axis=1) == labels).mean())

    def compare_meaning(self, result: ParityResult, outputs: np.ndarray, reference: Reference, precision: str) -> None:
        """Compare the classes, and count a change between two that the precision cannot tell apart as a tie."""
        wanted, labels, names = reference.outputs, reference.images.labels, reference.metadata.class_names
        got, net = outputs.argmax(axis=1), wanted.argmax(axis=1)
        flipped = np.flatnonzero(got != net)
        result.agreement = float((got == net).mean())
        result.flips = [(reference.images.files[i], names[net[i]], names[got[i]]) for i in flipped]
        if precision in ROUNDING and len(flipped) and result.worst <= max(MOST_MOVED, TOLERANCES[precision]):
            gaps = wanted[flipped, net[flipped]] - wanted[flipped, got[flipped]]
            # float32 has no rounding of its own here: it is what the net itself computes in
            rounding = 0.0 if precision == "fp32" else ROUNDING[precision] * reference.scale
            result.ties = int((gaps <= 2 * np.maximum(rounding, reference.own_movement(flipped, precision))).sum())
        if labels is not None:
            before, after = net == labels, got == labels
            result.accuracy = float(before.mean()), float(after.mean())
            lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
            result.loss_interval = loss_interval(lost, gained, len(labels))

    def int8_problem(self, result: ParityResult, reference: Reference) -> str:
        """Return why an int8 file is refused: by its accuracy where the labels are of use, else by its classes."""
        problem = super().int8_problem(result, reference)
        if result.accuracy is None or not result.mean <= MOST_INT8_DIFFERENCE:
            return problem
        before = result.accuracy[0]
        if lost := self.accuracy_problem(result):
            return lost
        if problem and is_chance(before, reference.metadata.num_classes, result.count):
            return f"{problem}; the net's own accuracy of {100 * before:.2f} % could be chance, and verifies nothing"
        return ""


class FeatureParity(ParityRule):
    """Features (N, D): each image's vector keeps its direction."""

    value, kept = "feature", "direction"
    column, agreement_note = "alike", "alike: % of the images whose features point where the net's do"

    def compare_meaning(self, result: ParityResult, outputs: np.ndarray, reference: Reference, precision: str) -> None:
        """Count as agreeing the images whose features point where the net's do."""
        wanted = reference.outputs.astype(np.float64)
        lengths = np.linalg.norm(outputs, axis=1) * np.linalg.norm(wanted, axis=1)
        cosines = (outputs * wanted).sum(axis=1) / np.maximum(lengths, 1e-30)
        apart = np.flatnonzero(cosines < LEAST_COSINE[precision])
        result.agreement = 1 - len(apart) / len(cosines)
        result.flips = [(reference.images.files[i], "one vector", f"another (cosine {cosines[i]:.4f})") for i in apart]


PARITY_RULES: dict[str, ParityRule] = {
    "logits": ClassParity(),
    "features": FeatureParity(),
    "mask_logits": MaskParity(),
    "boxes": BoxParity(),
}
DEFAULT_RULE = ParityRule()


def rule_of(metadata: ModelMetadata) -> ParityRule:
    """Return the rule for a net's output."""
    return PARITY_RULES.get(metadata.output, DEFAULT_RULE)


def compare_outputs(outputs: np.ndarray, reference: Reference, metadata: ModelMetadata) -> ParityResult:
    """Compare a file's outputs for all images, float32 (N, ...), with the net's by the rule of the output."""
    return rule_of(metadata).compare(outputs, reference, metadata)
