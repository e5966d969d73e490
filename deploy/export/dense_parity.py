"""Parity of nets that give masks or boxes."""

from __future__ import annotations

import math

import numpy as np

from artifacts.detections import box_iou, objects_of, paired_iou
from artifacts.metadata import ModelMetadata
from artifacts.pixel_confusion import mean_iou
from deploy.export.label_boxes import ap_loss, mean_ap, objects_to_measure
from deploy.export.label_masks import confusions, iou_loss
from deploy.export.parity_rule import (
    DEVIATIONS,
    LEAST_AGREEMENT,
    MOST_INT8_DIFFERENCE,
    BoxMatch,
    ParityResult,
    ParityRule,
)
from deploy.export.reference import TOLERANCES, Reference, flat

LEAST_INT8_PIXELS = 0.98  # of masks: pixels along the borders of objects change their class first
LEAST_INT8_OBJECTS = 0.9  # F1 of the file's objects against the net's
LEAST_AP = 0.05  # of a net that has learnt anything
CANDIDATE_LOGIT = math.log(0.05 / 0.95)  # of a box whose score may count


class PartsParity(ParityRule):
    """Outputs of which each image has many parts, pixels or boxes, nearly all of which stay.

    int8 is judged by its accuracy where there is a truth; where there is none, or the net's own accuracy is too low to
    say anything, by the share of the parts that stay.
    """

    least_int8_agreement = 0.0

    def least_float_agreement(self, precision: str) -> float:
        """Return the share of the parts that stay at least, in floating point."""
        return LEAST_AGREEMENT

    def least_accuracy(self, metadata: ModelMetadata) -> float:
        """Return the net's own accuracy below which it says nothing."""
        return 0.0

    def lost_parts(self, result: ParityResult, least: float) -> str:
        """Return how many parts stay, where they are too few."""
        raise NotImplementedError

    def float_problem(self, result: ParityResult, reference: Reference, precision: str) -> str:
        """Return why a file in floating point is refused: by its numbers, then by its parts."""
        flips, result.flips = result.flips, []  # an image is not lost by one part
        problem = super().float_problem(result, reference, precision)
        result.flips = flips
        return problem or self._parts_problem(result, self.least_float_agreement(precision))

    def int8_problem(self, result: ParityResult, reference: Reference) -> str:
        """Return why an int8 file is refused: by the mean of its numbers, by its accuracy, or by its parts."""
        if not result.mean <= MOST_INT8_DIFFERENCE:  # NaN too
            return super().int8_problem(result, reference)
        if result.accuracy is None or result.accuracy[0] < self.least_accuracy(reference.metadata):
            return self._parts_problem(result, self.least_int8_agreement)
        return self.accuracy_problem(result)

    def _parts_problem(self, result: ParityResult, least: float) -> str:
        return "" if result.agreement >= least else self.lost_parts(result, least)


class MaskParity(PartsParity):
    """Mask logits (N, K, H, W): the pixels keep their class, all but a share as small as TOLERANCES."""

    value, kept = "logit", "mask"
    column, agreement_note = "pixels", "pixels: % of the pixels that keep the net's class"
    measure = "mean IoU"
    least_int8_agreement = LEAST_INT8_PIXELS

    def least_float_agreement(self, precision: str) -> float:
        """Return all pixels but a share as small as TOLERANCES."""
        return 1 - TOLERANCES[precision]

    def accuracy(self, reference: Reference) -> float | None:
        """Return the net's own mean IoU where every image has a label image; else None."""
        truth = reference.images.labels
        return None if truth is None else mean_iou(confusions(truth, reference.outputs).sum(axis=0))

    def changed(self, result: ParityResult) -> str:
        """Return how many pixels have another class."""
        return f"another class for {100 * (1 - result.agreement):.2f} % of the pixels"

    def compare_meaning(self, result: ParityResult, outputs: np.ndarray, reference: Reference, precision: str) -> None:
        """Compare the classes of all pixels; the images with the most other ones are the flips."""
        changed = (outputs.argmax(axis=1) != reference.outputs.argmax(axis=1)).mean(axis=(1, 2))  # (N,)
        result.agreement = 1 - float(changed.mean())
        worst_first = [int(i) for i in np.argsort(-changed, kind="stable") if changed[i]]
        result.flips = [
            (reference.images.files[i], "one mask", f"another ({100 * changed[i]:.2f} % of the pixels)")
            for i in worst_first
        ]
        if (truth := reference.images.labels) is not None and precision == "int8":
            before, after = confusions(truth, reference.outputs), confusions(truth, outputs)
            result.accuracy = mean_iou(before.sum(axis=0)), mean_iou(after.sum(axis=0))
            loss, deviation = iou_loss(before, after)
            result.loss_interval = loss - DEVIATIONS * deviation, loss + DEVIATIONS * deviation

    def least_accuracy(self, metadata: ModelMetadata) -> float:
        """Return the mean IoU of a net that gives one class in K right."""
        return 1 / metadata.num_classes

    def lost_parts(self, result: ParityResult, least: float) -> str:
        """Return how many pixels stay, and the image with the most other ones."""
        image, _, got = result.flips[0]
        share = f"{100 * result.agreement:.3f} % of the pixels keep their class, under {100 * least:g} %"
        return f"{share}; the first: {image} has {got}"


class BoxParity(PartsParity):
    """Boxes (N, A, 4 + K): every candidate keeps its place and its score; in int8 the mAP stays, or the objects do.

    Coordinates are compared as shares of the largest, and logits of the largest logit: a logit is a hundred times
    smaller than a coordinate.
    """

    value, kept = "value", "objects"
    column, agreement_note = "boxes", "boxes: % of the net's boxes that the file gives, too"
    measure = "mAP"
    most_lost = 0.01, "a point"
    least_int8_agreement = LEAST_INT8_OBJECTS

    def accuracy(self, reference: Reference) -> float | None:
        """Return the net's own mAP where every image has an annotation; else None."""
        truth, metadata = reference.images.labels, reference.metadata
        if truth is None:
            return None
        return mean_ap(list(truth), objects_to_measure(reference.outputs, metadata), metadata.num_classes)

    def differences(self, outputs: np.ndarray, reference: Reference) -> np.ndarray:
        """Return how far each number is from the net's, coordinates and logits on scales of their own."""
        difference = np.abs(outputs.astype(np.float64) - reference.outputs)  # (N, A, 4 + K)
        for part in (slice(4), slice(4, None)):
            difference[..., part] /= max(float(np.abs(reference.outputs[..., part]).max()), 1e-30)
        return flat(difference)

    def compare_meaning(self, result: ParityResult, outputs: np.ndarray, reference: Reference, precision: str) -> None:
        """Count the candidates that stay, in int8 the objects that are found again; the worst images are the flips."""
        pairs = zip(reference.outputs, outputs, strict=True)
        if precision == "int8":
            shares = np.array([_shared_objects(net, file, reference.metadata) for net, file in pairs])  # (N, 2)
        else:
            candidates = [_candidates(net, file) for net, file in pairs]
            shares = np.array([(_kept(*each, precision), len(each[0])) for each in candidates])
            overlaps, changes = (np.concatenate(values) for values in zip(*candidates, strict=True))
            if len(overlaps):
                result.box_match = BoxMatch(len(overlaps), float(overlaps.min()), float(changes.max()))
        total = shares[:, 1].sum()
        result.agreement = float(shares[:, 0].sum() / total) if total else 1.0  # no box at all: the numbers decide
        lost = shares[:, 1] - shares[:, 0]
        result.flips = [
            (reference.images.files[i], f"{shares[i, 1]:.0f} boxes", f"{lost[i]:.0f} of them elsewhere or not at all")
            for i in np.argsort(-lost, kind="stable")
            if lost[i]
        ]
        if (truth := reference.images.labels) is not None and precision == "int8":
            net, file = (objects_to_measure(rows, reference.metadata) for rows in (reference.outputs, outputs))
            before, after, deviation = ap_loss(list(truth), net, file, reference.metadata.num_classes)
            result.accuracy, loss = (before, after), before - after
            result.loss_interval = loss - DEVIATIONS * deviation, loss + DEVIATIONS * deviation

    def least_accuracy(self, metadata: ModelMetadata) -> float:
        """Return the mAP of a net that has hardly learnt anything."""
        return LEAST_AP

    def lost_parts(self, result: ParityResult, least: float) -> str:
        """Return how many boxes stay, and the image that loses most."""
        image, net, got = result.flips[0]
        share = f"{100 * result.agreement:.2f} % of the boxes stay, under {100 * least:g} %"
        return f"{share}; the first: {image} has {net}, {got}"


def _candidates(net: np.ndarray, file: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU (n,) of each candidate of rows (A, 4 + K) with the file's, and by how much its score changes."""
    positions, labels = np.nonzero(net[:, 4:] >= CANDIDATE_LOGIT)
    scores = [1 / (1 + np.exp(-rows[positions, labels + 4].astype(np.float64))) for rows in (net, file)]
    return paired_iou(net[positions, :4], file[positions, :4]), np.abs(scores[0] - scores[1])


def _kept(overlaps: np.ndarray, changes: np.ndarray, precision: str) -> int:
    """Return how many candidates keep their place and score."""
    least_iou, most_change = (0.999, 1e-3) if precision == "fp32" else (0.98, 2e-2)
    return int(((overlaps > least_iou) & (changes < most_change)).sum())


def _shared_objects(net: np.ndarray, file: np.ndarray, metadata: ModelMetadata) -> tuple[int, float]:
    """Return how many objects both find, IoU 0.5 and one class, and the mean of what each finds (so their F1)."""
    mine, other = objects_of(np.stack([net, file]), metadata)
    overlaps = box_iou(mine.boxes, other.boxes) * (mine.labels[:, None] == other.labels)  # (n, m)
    shared = 0
    for row in range(len(overlaps)):
        if overlaps.shape[1] and overlaps[row].max() > 0.5:
            overlaps[:, int(overlaps[row].argmax())] = 0
            shared += 1
    return shared, (len(mine.boxes) + len(other.boxes)) / 2
