"""Parity: what an exported file answers, held against the net itself on real images, and what is still let pass."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from artifacts.metadata import ModelMetadata
from common.errors import UserError
from deploy.backends.base import Backend, BackendError
from deploy.export.sample_images import SampleImages, net_input

BATCH = 32  # of the proof and of the timing
OTHER_BATCHES = (1, 3)  # proved beside it: the batch size is free
ROUNDS, WARM_UP, MOST_SECONDS = 9, 1, 12.0  # of the timing
# Largest |difference| of a logit, as a share of the largest |logit| over all images.
TOLERANCES = {
    "fp32": 1e-4,  # the same sums in another order: 1e-6 is usual, and fifty layers do not bring it to 1e-4
    "fp16": 1e-2,  # 11 bits: a rounding of 5e-4 a layer, which grows with the root of the depth
    "bf16": 8e-2,  # 8 bits: a rounding of 4e-3 a layer
}
# A net that chooses among equals (PIM ranks positions by certainty) answers a little differently wherever its sums are
# rounded in another order. How far, the net itself tells, asked again with its input off by JITTER of each value.
JITTER = {"fp32": 2.0**-18, "fp16": 2.0**-9, "bf16": 2.0**-6}  # what the roundings of some tens of layers add up to
MOVED_SHARE = 0.25  # of the images, which may differ by more than the tolerance where the net itself moves so far,
MOVED_TIMES = 10  # times as far as the net itself moves
MOST_MOVED = 0.05
LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99, "int8": 0.98}  # of features, which have no classes
ROUNDING = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}  # half the step between two numbers near 1
LEAST_AGREEMENT = 0.999
LEAST_INT8_AGREEMENT = 0.99  # where no labels tell the accuracy, or the net's own is no better than guessing
MOST_INT8_LOSS = 0.005  # of the accuracy: half a point
# Mean |difference|: single logits of an int8 net may be far off (0.04 to 0.2 were seen); the mean was 0.004 to 0.01.
# An accuracy that holds is not enough: easy images keep their class through a broken layer, which gave 0.15.
MOST_INT8_DIFFERENCE = 0.05
INT8_BATCH_TOLERANCE = 0.05  # between an image's logits in batches of different size, where a step more or less counts


class ParityError(UserError):
    """A net that nothing can be held against; the message is one sentence."""


@dataclass(frozen=True)
class Reference:
    """The net itself: how it is called, the images, and what it says of them, float32 (N, K)."""

    backend: Backend
    images: SampleImages
    metadata: ModelMetadata
    logits: np.ndarray
    _moves: dict[str, float] = field(default_factory=dict, init=False, compare=False)

    @classmethod
    def of(cls, backend: Backend, images: SampleImages, metadata: ModelMetadata) -> Reference:
        """Ask the net about all images. Raises ParityError where it gives NaN or infinity, BackendError."""
        logits = answers(backend, images, metadata)
        if len(bad := np.flatnonzero(~np.isfinite(logits).all(axis=1))):
            count = f"{len(bad)} of {len(images)} images, the first {images.files[bad[0]]}"
            raise ParityError(f"the net itself gives NaN or infinite logits for {count}; no file can be held to them")
        return cls(backend, images, metadata, logits)

    @property
    def scale(self) -> float:
        """The largest |logit|, which differences are a share of."""
        return float(np.abs(self.logits).max()) or 1.0

    def accuracy(self) -> float | None:
        """Share of the labelled images that the net gets right; None where it gives features."""
        return None if self.metadata.output == "features" else accuracy(self.logits, self.images.labels)

    def allowed(self, precision: str) -> float:
        """Give how far the worst image may differ: the tolerance, or MOVED_TIMES what the net itself moves by."""
        if precision not in self._moves:
            moved = moves(self.backend, self.images.pixels, self.metadata, precision, draws=3)
            self._moves[precision] = float(moved.max())
        return self._slack(precision, self._moves[precision])

    def allowed_between_batches(self, precision: str, pixels: np.ndarray) -> float:
        """Give how far the logits of these images may differ between batches of different size."""
        return self._slack(precision, float(moves(self.backend, pixels, self.metadata, precision, draws=8).max()))

    def _slack(self, precision: str, moved: float) -> float:
        return max(TOLERANCES[precision], min(MOVED_TIMES * moved / self.scale, MOST_MOVED))


@dataclass
class Measured:
    """One file on one runtime beside the net. Differences are shares of the net's largest |logit|.

    `flips` holds image, the net's class and the file's; of them `ties` lie within the precision's own rounding.
    `accuracy` is the net's and the file's.
    """

    count: int = 0  # images
    worst: float = float("nan")
    mean: float = float("nan")
    agreement: float = float("nan")
    flips: list[tuple[str, str, str]] = field(default_factory=list)
    ties: int = 0
    accuracy: tuple[float, float] | None = None
    over: float = 0.0  # share of the images that differ by more than the precision's tolerance
    allowed: float = float("nan")  # how far they may, where some do
    batch_ms: float = float("nan")
    batch_ms_spread: tuple[float, float] = (float("nan"), float("nan"))
    eager_ms: float = float("nan")
    problem: str = ""  # why it cannot pass; empty: it passes

    @property
    def speed(self) -> float:
        """How many times as fast as the eager net, timed in turn with it."""
        return self.eager_ms / self.batch_ms


def measure(backend: Backend, reference: Reference, metadata: ModelMetadata) -> Measured:
    """Hold a loaded file against the net: all images, batches of 1, 3 and 32, speed.

    Raises BackendError, SamplesError.
    """
    # Asked once before: a runtime may take another program for a size that it meets anew, as batches of 1 and 3 are.
    _ask(backend, _filled(reference.images.pixels[:BATCH], BATCH), metadata)
    logits = answers(backend, reference.images, metadata)
    measured = compare(logits, reference, metadata)
    for size in OTHER_BATCHES:
        if not measured.problem:
            measured.problem = _batch_problem(backend, size, logits, reference, metadata)
    if not measured.problem:
        _time(backend, reference, metadata, measured)
    return measured


def compare(logits: np.ndarray, reference: Reference, metadata: ModelMetadata) -> Measured:
    """Compare the logits of all images with the net's, and say whether they pass for the metadata' precision."""
    wanted = reference.logits
    if logits.shape != wanted.shape:
        return Measured(problem=f"gives {logits.shape} instead of {wanted.shape}")
    if not np.isfinite(logits).all():
        rows = int((~np.isfinite(logits)).any(axis=1).sum())
        return Measured(problem=f"gives NaN or infinite logits for {rows} of {len(logits)} images")
    difference = np.abs(logits.astype(np.float64) - wanted) / reference.scale
    measured = Measured(count=len(logits), worst=float(difference.max()), mean=float(difference.mean()))
    if metadata.output == "features":
        _compare_features(measured, logits, reference, metadata.precision)
    else:
        _compare_classes(measured, logits, reference, metadata)
    if metadata.precision == "int8":
        measured.problem = _int8_problem(measured, metadata.num_classes)
    else:
        measured.over = float((difference.max(axis=1) > TOLERANCES[metadata.precision]).mean())
        measured.problem = _float_problem(measured, metadata.precision, reference)
    return measured


def _compare_classes(measured: Measured, logits: np.ndarray, reference: Reference, metadata: ModelMetadata) -> None:
    wanted, labels, names = reference.logits, reference.images.labels, metadata.class_names
    got, net = logits.argmax(axis=1), wanted.argmax(axis=1)
    flipped = np.flatnonzero(got != net)
    measured.agreement = float((got == net).mean())
    measured.flips = [(reference.images.files[i], names[net[i]], names[got[i]]) for i in flipped]
    measured.ties = sum(_is_tie(wanted[i], net[i], got[i], reference.scale, metadata.precision) for i in flipped)
    if labels is not None:
        measured.accuracy = float((net == labels).mean()), float((got == labels).mean())


def _compare_features(measured: Measured, features: np.ndarray, reference: Reference, precision: str) -> None:
    """Count as agreeing the images whose features point where the net's do."""
    wanted = reference.logits.astype(np.float64)
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (features * wanted).sum(axis=1) / np.maximum(lengths, 1e-30)
    apart = np.flatnonzero(cosines < LEAST_COSINE[precision])
    measured.agreement = 1 - len(apart) / len(cosines)
    measured.flips = [(reference.images.files[i], "one vector", f"another (cosine {cosines[i]:.4f})") for i in apart]


def moves(
    answer: Callable[[np.ndarray], np.ndarray],
    pixels: np.ndarray,
    metadata: ModelMetadata,
    precision: str,
    draws: int = 1,
) -> np.ndarray:
    """Give by how much each image's logits move, (N,), when each value of its input moves by JITTER up or down.

    Of several random draws of the directions the largest movement counts.
    """
    generator = np.random.default_rng(0)
    moved = np.zeros(len(pixels))
    for start in range(0, len(pixels), BATCH):
        images = net_input(pixels[start : start + BATCH], metadata.preprocess, "float32 NCHW")
        unmoved = answer(images)
        for _ in range(draws):
            jitter = generator.choice(np.array([-JITTER[precision], JITTER[precision]], np.float32), images.shape)
            difference = np.abs(answer(images + images * jitter) - unmoved).max(axis=1)
            moved[start : start + BATCH] = np.maximum(moved[start : start + BATCH], difference)
    return moved


def answers(backend: Backend, images: SampleImages, metadata: ModelMetadata) -> np.ndarray:
    """Give the logits, float32 (N, K), of all images in batches of 32; the last is filled up, as a service does."""
    parts = []
    for start in range(0, len(images), BATCH):
        pixels = images.pixels[start : start + BATCH]
        parts.append(_ask(backend, _filled(pixels, BATCH), metadata)[: len(pixels)])
    return np.concatenate(parts)


def accuracy(logits: np.ndarray, labels: np.ndarray | None) -> float | None:
    """Share of the images whose largest logit is the label's; None without labels."""
    return None if labels is None else float((logits.argmax(axis=1) == labels).mean())


def is_guessing(accuracy: float, classes: int, count: int) -> bool:
    """Say whether an accuracy on `count` images could be that of guessing: within three standard deviations of 1/K.

    Of a binomial distribution; then the labels tell nothing of a net.
    """
    chance = 1 / classes
    return accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / count)


def time_in_turn(first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Time two calls in turn, so that what else the machine does falls on both; give the seconds of each round.

    Each timed call follows an untimed one of its own: the other runtime's threads spin for a while after its call,
    which slowed eager torch three times beside onnxruntime.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(WARM_UP):
        first()
        second()
    end = time.perf_counter() + MOST_SECONDS
    while len(times[0]) < ROUNDS and (len(times[0]) < 3 or time.perf_counter() < end):
        for call, seconds in zip((first, second), times, strict=True):
            call()
            before = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - before)
    return times


def _ask(backend: Backend, pixels: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    """Give the logits of a batch. Raises BackendError, without the advice of a flag that an export lacks."""
    try:
        return backend(net_input(pixels, metadata.preprocess, metadata.input))
    except BackendError as error:
        raise BackendError(str(error).removesuffix("; lower the batch size")) from error


def _float_problem(measured: Measured, precision: str, reference: Reference) -> str:
    tolerance, count = TOLERANCES[precision], measured.count
    if not measured.worst <= tolerance:  # NaN too
        measured.allowed = allowed = reference.allowed(precision)
        told = f"a logit differs by {measured.worst:.1e} of the largest; {precision} may differ by {allowed:.0e}"
        if not measured.worst <= allowed:
            return told
        if measured.over > MOVED_SHARE:
            return f"{100 * measured.over:.0f} % of {count} images differ by over {tolerance:.0e} of the largest logit"
    counted = len(measured.flips) - measured.ties
    if counted > (1 - LEAST_AGREEMENT) * count:
        image, net, got = measured.flips[0]
        share = f"{100 * (1 - counted / count):.2f} % of {count} images keep their answer, under 99.9 %"
        return f"{share}; the first: {image} is {net} to the net and {got} to the file"
    return ""


def _int8_problem(measured: Measured, classes: int) -> str:
    count = measured.count
    if not measured.mean <= MOST_INT8_DIFFERENCE:  # NaN too
        limit = f"{MOST_INT8_DIFFERENCE:.0e}"
        return f"the logits differ by {measured.mean:.1e} of the largest in the mean; int8 may differ by {limit}"
    before, after = measured.accuracy or (float("nan"), float("nan"))
    if before - after > MOST_INT8_LOSS + 1e-9:
        return f"top-1 falls from {100 * before:.2f} % to {100 * after:.2f} % on {count} images, over half a point"
    guesses = measured.accuracy is not None and is_guessing(before, classes, count)
    if measured.agreement < LEAST_INT8_AGREEMENT and (measured.accuracy is None or guesses):
        why = (
            f"; the net's own accuracy of {100 * before:.2f} % could be a guesser's, and proves nothing"
            if guesses
            else ""
        )
        return f"{100 * measured.agreement:.2f} % of {count} images keep their class, under 99 %{why}"
    return ""


def _is_tie(wanted: np.ndarray, net: int, got: int, scale: float, precision: str) -> bool:
    """Say whether the net's own logits of two classes are closer than two numbers of this precision can be told apart.

    Then either class is right. float32 has no ties here: it is what the net itself computes in.
    """
    if precision not in ("fp16", "bf16"):
        return False
    return bool(wanted[net] - wanted[got] <= 2 * ROUNDING[precision] * scale)


def _batch_problem(
    backend: Backend, size: int, logits: np.ndarray, reference: Reference, metadata: ModelMetadata
) -> str:
    """Ask about the first images in a batch of another size; each must get the answer that it got before."""
    pixels = _filled(reference.images.pixels[:size], size)
    got = _ask(backend, pixels, metadata)
    wanted = _filled(logits[:size], size)
    if got.shape != wanted.shape:
        return f"a batch of {size} gives {got.shape} instead of {wanted.shape}"
    difference = float(np.abs(got - wanted).max()) / reference.scale
    allowed = TOLERANCES.get(metadata.precision, INT8_BATCH_TOLERANCE)
    if not difference <= allowed and metadata.precision != "int8":
        allowed = reference.allowed_between_batches(metadata.precision, pixels)
    if not difference <= allowed:
        return f"an image's logits differ by {difference:.1e} of the largest between batches of {size} and {BATCH}"
    return ""


def _time(backend: Backend, reference: Reference, metadata: ModelMetadata, measured: Measured) -> None:
    pixels = _filled(reference.images.pixels[:BATCH], BATCH)
    images = net_input(pixels, metadata.preprocess, metadata.input)
    eager_images = net_input(pixels, metadata.preprocess, reference.metadata.input)
    own, eager = time_in_turn(lambda: backend(images), lambda: reference.backend(eager_images))
    measured.batch_ms, measured.eager_ms = 1e3 * statistics.median(own), 1e3 * statistics.median(eager)
    measured.batch_ms_spread = (1e3 * min(own), 1e3 * max(own))


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    """Repeat rows from the first on until there are `count`."""
    return rows if len(rows) == count else np.concatenate([rows] * -(-count // len(rows)))[:count]
