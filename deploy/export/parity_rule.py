"""The rule that every comparison of a file's outputs with the net's begins with, and what it results in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from artifacts.metadata import ModelMetadata
from deploy.export.reference import TOLERANCES, Reference, flat

MOVED_SHARE = 0.25  # of the images, which may differ by more than TOLERANCES, up to what jitter moves the net by
LEAST_AGREEMENT = 0.999
LEAST_INT8_AGREEMENT = 0.99  # without labels, or where the net's own accuracy is no better than chance
MOST_INT8_LOSS = 0.005  # of the accuracy: half a point
# An int8 file is refused where the images show that it exceeds one of the two: of 100 images one is a point, and 5 must
# be lost, or 4 change their class. One-sided; the interval of the loss has both ends at this level.
CONFIDENCE, DEVIATIONS = 0.95, 1.6449
# Mean |difference|: single logits of an int8 net may be far off (0.04 to 0.2 were seen); the mean was 0.004 to 0.01.
# Unchanged accuracy is not enough: easy images keep their class through a broken layer, which gave 0.15.
MOST_INT8_DIFFERENCE = 0.05


class BoxMatch(NamedTuple):
    """How the boxes of a net with a score over 0.05 stand in a file."""

    number: int
    least_iou: float
    most_change: float  # of a score


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
    box_match: BoxMatch | None = None  # of a detector in floating point
    loss_interval: tuple[float, float] | None = None  # of the accuracy that the file loses, at CONFIDENCE
    over: float = 0.0  # share of the images that differ by more than the precision's tolerance
    allowed: float = float("nan")  # how far they may, where some do
    batch_ms: float = float("nan")
    batch_ms_spread: tuple[float, float] = (float("nan"), float("nan"))
    eager_ms: float = float("nan")
    other_size: tuple[int, int] | None = None  # a further height and width that it was compared at
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
    most_lost = MOST_INT8_LOSS, "half a point"  # of it in int8

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
        most, text = self.most_lost
        if low <= 100 * most:
            return ""
        before, after = (f"{100 * share:.2f} %" for share in result.accuracy)
        change = f"{self.measure.removesuffix(' accuracy')} falls from {before} to {after}"
        return f"{change} on {result.count} images, by {low:.1f} to {high:.1f} points: over {text}"

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
