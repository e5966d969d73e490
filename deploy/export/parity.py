"""Parity: how far a file's outputs may differ from the net's, by the name of the output.

The default rule compares values and needs to know nothing of what they mean; a rule in PARITY_RULES adds what an output
has besides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from artifacts.detections import box_iou, objects_of, paired_iou
from artifacts.metadata import ModelMetadata
from deploy.export.label_masks import confusions, iou_loss, mean_iou
from deploy.export.reference import MOST_MOVED, TOLERANCES, Reference, flat

MOVED_SHARE = 0.25  # of the images, which may differ by more than TOLERANCES, up to what jitter moves the net by
LEAST_AGREEMENT = 0.999
LEAST_INT8_AGREEMENT = 0.99  # without labels, or where the net's own accuracy is no better than chance
LEAST_INT8_PIXELS = 0.98  # of masks: pixels along the borders of objects change their class first
LEAST_INT8_OBJECTS = 0.9  # F1 of the file's objects against the net's
CANDIDATE_LOGIT = math.log(0.05 / 0.95)  # of a box whose score may count
MOST_INT8_LOSS = 0.005  # of the accuracy: half a point
# An int8 file is refused where the images show that it exceeds one of the two: of 100 images one is a point, and 5 must
# be lost, or 4 change their class. One-sided; the interval of the loss has both ends at this level.
CONFIDENCE, DEVIATIONS = 0.95, 1.6449
# Mean |difference|: single logits of an int8 net may be far off (0.04 to 0.2 were seen); the mean was 0.004 to 0.01.
# Unchanged accuracy is not enough: easy images keep their class through a broken layer, which gave 0.15.
MOST_INT8_DIFFERENCE = 0.05
LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99, "int8": 0.98}  # of an image's features
ROUNDING = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}  # half the step between two numbers near 1


@dataclass
class ParityResult:
    """One file on one runtime, compared with the net. Differences are shares of the largest |value| of its outputs.

    `agreement` is the share of images that keep what the rule says; `flips` are the others: image, the net's and the
    file's; of them `ties` lie within the precision's own rounding, or what the net itself does not hold still.
    `accuracy` is the net's and the file's.
    """

    count: int = 0  # images
    worst: float = float("nan")
    mean: float = float("nan")
    agreement: float = float("nan")
    flips: list[tuple[str, str, str]] = field(default_factory=list)
    ties: int = 0
    accuracy: tuple[float, float] | None = None
    loss_interval: tuple[float, float] | None = None  # of the accuracy that the file loses, at CONFIDENCE
    over: float = 0.0  # share of the images that differ by more than the precision's tolerance
    allowed: float = float("nan")  # how far they may, where some do
    batch_ms: float = float("nan")
    batch_ms_spread: tuple[float, float] = (float("nan"), float("nan"))
    eager_ms: float = float("nan")
    problem: str = ""  # why it is refused; empty: it is not

    @property
    def speed(self) -> float:
        """How many times as fast as the eager net, timed in turn with it."""
        return self.eager_ms / self.batch_ms


class ParityRule:
    """Outputs of any meaning: the worst difference, in int8 the mean one, is within the tolerance of the precision."""

    value = "value"  # one number of an output, in messages
    kept = ""  # what `agreement` counts that an image keeps; empty: nothing
    column, agreement_note = "", ""  # the same for the table: its heading, and the note about it
    measure = ""  # what `accuracy` is

    def accuracy(self, reference: Reference) -> float | None:
        """Return the net's own accuracy on the labelled images; None where there is none."""
        return None

    def changed(self, result: ParityResult) -> str:
        """Return what an int8 file gives otherwise than the net, for a warning."""
        return f"another {self.kept} for {len(result.flips)} of {result.count} image{'' if result.count == 1 else 's'}"

    def compare(self, outputs: np.ndarray, reference: Reference, metadata: ModelMetadata) -> ParityResult:
        """Compare a file's outputs for all images, (N, ...), with the net's; `metadata` is the file's own."""
        wanted, precision = reference.outputs, metadata.precision
        if outputs.shape != wanted.shape:
            return ParityResult(problem=f"returns {outputs.shape} instead of {wanted.shape}")
        if not (is_finite := np.isfinite(flat(outputs)).all(axis=1)).all():
            count = f"{int((~is_finite).sum())} of {len(outputs)} images"
            return ParityResult(problem=f"returns NaN or infinite {self.value}s for {count}")
        difference = self.differences(outputs, reference)  # (N, M)
        result = ParityResult(count=len(outputs), worst=float(difference.max()), mean=float(difference.mean()))
        self.compare_meaning(result, outputs, reference, precision)
        if precision == "int8":
            result.problem = self.int8_problem(result, reference)
        else:
            result.over = float((difference.max(axis=1) > TOLERANCES[precision]).mean())
            result.problem = self.float_problem(result, reference, precision)
        return result

    def differences(self, outputs: np.ndarray, reference: Reference) -> np.ndarray:
        """Return how far each number is from the net's, as a share of the largest: (N, M) float64."""
        return flat(np.abs(outputs.astype(np.float64) - reference.outputs) / reference.scale)

    def compare_meaning(self, result: ParityResult, outputs: np.ndarray, reference: Reference, precision: str) -> None:
        """Set agreement, flips, ties and accuracy in the result, for an output that has them."""

    def int8_problem(self, result: ParityResult, reference: Reference) -> str:
        """Return why an int8 file is refused; "" where it is not."""
        if not result.mean <= MOST_INT8_DIFFERENCE:  # NaN too
            limit = f"int8 may differ by {MOST_INT8_DIFFERENCE:.0e}"
            return f"the {self.value}s differ by {result.mean:.1e} of the largest in the mean; {limit}"
        changed = round((1 - result.agreement) * result.count) if result.agreement < LEAST_INT8_AGREEMENT else 0
        if is_shown(changed, result.count, 1 - LEAST_INT8_AGREEMENT):
            return f"{100 * result.agreement:.2f} % of {result.count} images keep their {self.kept}, under 99 %"
        return ""

    def accuracy_problem(self, result: ParityResult) -> str:
        """Return that the images show a loss of accuracy of over MOST_INT8_LOSS; "" where they do not."""
        assert result.accuracy is not None and result.loss_interval is not None
        low, high = (100 * share for share in result.loss_interval)
        if low <= 100 * MOST_INT8_LOSS:
            return ""
        before, after = (f"{100 * share:.2f} %" for share in result.accuracy)
        change = f"{self.measure.removesuffix(' accuracy')} falls from {before} to {after}"
        return f"{change} on {result.count} images, by {low:.1f} to {high:.1f} points: over half a point"

    def float_problem(self, result: ParityResult, reference: Reference, precision: str) -> str:
        """Return why a file in floating point is refused; "" where it is not."""
        tolerance, count = TOLERANCES[precision], result.count
        if not result.worst <= tolerance:  # NaN too
            result.allowed = allowed = reference.tolerance(precision)
            if not result.worst <= allowed:
                limit = f"{precision} may differ by {allowed:.0e}"
                return f"a {self.value} differs by {result.worst:.1e} of the largest; {limit}"
            if result.over > MOVED_SHARE:
                share = f"{100 * result.over:.0f} % of {count} images"
                return f"{share} differ by over {tolerance:.0e} of the largest {self.value}"
        counted = len(result.flips) - result.ties
        if counted > (1 - LEAST_AGREEMENT) * count:
            image, net, got = result.flips[0]
            share = f"{100 * (1 - counted / count):.2f} % of {count} images keep their {self.kept}, under 99.9 %"
            return f"{share}; the first: {image} is {net} by the net and {got} by the file"
        return ""


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


class MaskParity(ParityRule):
    """Mask logits (N, K, H, W): the pixels keep their class, all but a share as small as TOLERANCES."""

    value, kept = "logit", "mask"
    column, agreement_note = "pixels", "pixels: % of the pixels that keep the net's class"
    measure = "mean IoU"

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

    def float_problem(self, result: ParityResult, reference: Reference, precision: str) -> str:
        """Return why a file in floating point is refused: by its logits, then by its pixels."""
        flips, result.flips = result.flips, []  # an image is not lost by one pixel
        problem = super().float_problem(result, reference, precision)
        result.flips = flips
        return problem or self._pixel_problem(result, 1 - TOLERANCES[precision])

    def int8_problem(self, result: ParityResult, reference: Reference) -> str:
        """Return why an int8 file is refused: by its mean IoU where there are label images, else by its pixels.

        Where the net's own mean IoU is below that of one right class in K, it says nothing, and the pixels decide.
        """
        if not result.mean <= MOST_INT8_DIFFERENCE:  # NaN too
            return super().int8_problem(result, reference)
        if result.accuracy is None or result.accuracy[0] < 1 / reference.metadata.num_classes:
            return self._pixel_problem(result, LEAST_INT8_PIXELS)
        return self.accuracy_problem(result)

    def _pixel_problem(self, result: ParityResult, least: float) -> str:
        if result.agreement >= least:
            return ""
        image, _, got = result.flips[0]
        share = f"{100 * result.agreement:.3f} % of the pixels keep their class, under {100 * least:g} %"
        return f"{share}; the first: {image} has {got}"


class BoxParity(ParityRule):
    """Boxes (N, A, 4 + K): every candidate keeps its place and its score; in int8 the objects are found again.

    Coordinates are compared as shares of the largest, and logits of the largest logit: a logit is a hundred times
    smaller than a coordinate.
    """

    value, kept = "value", "objects"
    column, agreement_note = "boxes", "boxes: % of the net's boxes that the file gives, too"

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
            shares = np.array([_kept_candidates(net, file, precision) for net, file in pairs])
        total = shares[:, 1].sum()
        result.agreement = float(shares[:, 0].sum() / total) if total else 1.0  # no box at all: the numbers decide
        lost = shares[:, 1] - shares[:, 0]
        result.flips = [
            (reference.images.files[i], f"{shares[i, 1]:.0f} boxes", f"{lost[i]:.0f} of them elsewhere or not at all")
            for i in np.argsort(-lost, kind="stable")
            if lost[i]
        ]

    def float_problem(self, result: ParityResult, reference: Reference, precision: str) -> str:
        """Return why a file in floating point is refused: by its numbers, then by its candidates."""
        flips, result.flips = result.flips, []  # an image is not lost by one box
        problem = super().float_problem(result, reference, precision)
        result.flips = flips
        return problem or self._box_problem(result, LEAST_AGREEMENT)

    def int8_problem(self, result: ParityResult, reference: Reference) -> str:
        """Return why an int8 file is refused: by the mean of its numbers, then by its objects."""
        if not result.mean <= MOST_INT8_DIFFERENCE:  # NaN too
            return super().int8_problem(result, reference)
        return self._box_problem(result, LEAST_INT8_OBJECTS)

    def _box_problem(self, result: ParityResult, least: float) -> str:
        if result.agreement >= least:
            return ""
        image, net, got = result.flips[0]
        share = f"{100 * result.agreement:.2f} % of the boxes stay, under {100 * least:g} %"
        return f"{share}; the first: {image} has {net}, {got}"


def _kept_candidates(net: np.ndarray, file: np.ndarray, precision: str) -> tuple[int, int]:
    """Return how many candidates of rows (A, 4 + K) keep their place and score, and how many there are."""
    positions, labels = np.nonzero(net[:, 4:] >= CANDIDATE_LOGIT)
    scores = [1 / (1 + np.exp(-rows[positions, labels + 4].astype(np.float64))) for rows in (net, file)]
    least_iou, most_change = (0.999, 1e-3) if precision == "fp32" else (0.98, 2e-2)
    stays = paired_iou(net[positions, :4], file[positions, :4]) > least_iou
    return int((stays & (np.abs(scores[0] - scores[1]) < most_change)).sum()), len(positions)


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


def loss_interval(lost: int, gained: int, count: int) -> tuple[float, float]:
    """Return the interval of the accuracy lost, where of `count` images `lost` became wrong and `gained` right.

    Of a difference between paired shares, with half an image added to each of the four kinds (Agresti & Min 2005).
    """
    size, difference = count + 2, (lost - gained) / (count + 2)
    deviation = math.sqrt((lost + gained + 1) / size - difference**2) / math.sqrt(size)
    return difference - DEVIATIONS * deviation, difference + DEVIATIONS * deviation


def is_shown(found: int, count: int, share: float) -> bool:
    """Return whether `found` of `count` images show that more than `share` of all are so: else it is rarely as many.

    An exact binomial test at CONFIDENCE.
    """
    below = 0.0
    for number in range(found):
        ways = math.lgamma(count + 1) - math.lgamma(number + 1) - math.lgamma(count - number + 1)
        below += math.exp(ways + number * math.log(share) + (count - number) * math.log1p(-share))
    return below >= CONFIDENCE


def is_chance(accuracy: float, num_classes: int, count: int) -> bool:
    """Return whether an accuracy on `count` images is within three standard deviations of chance, 1/K, or below.

    Of a binomial distribution; the labels then verify nothing.
    """
    chance = 1 / num_classes
    return accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / count)
