"""Parity: what an exported file answers, held against the net itself on real pictures, and what is still let pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from artifacts.facts import Facts
from deploy.pictures import Pictures, net_input
from deploy.runtimes import Backend

BATCH = 32  # of the proof and of the timing
OTHER_BATCHES = (1, 3)  # proved beside it: the batch size is free
ROUNDS, WARM_UP, MOST_SECONDS = 9, 1, 12.0  # of the timing
# Largest |difference| of a logit, as a share of the largest |logit| over all pictures.
TOLERANCES = {
    "fp32": 1e-4,  # the same sums in another order: 1e-6 is usual, and fifty layers do not bring it to 1e-4
    "fp16": 1e-2,  # 11 bits: a rounding of 5e-4 a layer, which grows with the root of the depth
    "bf16": 8e-2,  # 8 bits: a rounding of 4e-3 a layer
}
ROUNDING = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}  # half the step between two numbers near 1
LEAST_AGREEMENT = 0.999
LEAST_INT8_AGREEMENT = 0.99  # where no labels tell the accuracy
MOST_INT8_LOSS = 0.005  # of the accuracy: half a point
# Mean |difference|: single logits of an int8 net may be far off (0.04 to 0.2 were seen); the mean was 0.004 to 0.01.
# An accuracy that holds is not enough: easy pictures keep their class through a broken layer, which gave 0.15.
MOST_INT8_DIFFERENCE = 0.05
INT8_BATCH_TOLERANCE = 0.05  # between a picture's logits in batches of different size, where a step more or less counts


@dataclass(frozen=True)
class Reference:
    """The net itself: how it is called, the pictures, and what it says of them, float32 (N, K)."""

    backend: Backend
    pictures: Pictures
    facts: Facts
    logits: np.ndarray

    @classmethod
    def of(cls, backend: Backend, pictures: Pictures, facts: Facts) -> Reference:
        """Ask the net about all pictures."""
        return cls(backend, pictures, facts, answers(backend, pictures, facts))

    @property
    def scale(self) -> float:
        """The largest |logit|, which differences are a share of."""
        return float(np.abs(self.logits).max()) or 1.0

    def accuracy(self) -> float | None:
        """Share of the labelled pictures that the net gets right."""
        return accuracy(self.logits, self.pictures.labels)


@dataclass
class Measured:
    """One file on one runtime beside the net. Differences are shares of the net's largest |logit|.

    `flips` holds picture, the net's class and the file's; of them `ties` lie within the precision's own rounding.
    `accuracy` is the net's and the file's.
    """

    count: int = 0  # pictures
    worst: float = float("nan")
    mean: float = float("nan")
    agreement: float = float("nan")
    flips: list[tuple[str, str, str]] = field(default_factory=list)
    ties: int = 0
    accuracy: tuple[float, float] | None = None
    batch_ms: float = float("nan")
    batch_ms_spread: tuple[float, float] = (float("nan"), float("nan"))
    eager_ms: float = float("nan")
    problem: str = ""  # why it cannot pass; empty: it passes

    @property
    def speed(self) -> float:
        """How many times as fast as the eager net, timed in turn with it."""
        return self.eager_ms / self.batch_ms


def measure(backend: Backend, reference: Reference, facts: Facts) -> Measured:
    """Hold a loaded file against the net: all pictures, batches of 1, 3 and 32, speed. Raises BackendError."""
    logits = answers(backend, reference.pictures, facts)
    measured = compare(logits, reference, facts)
    for size in OTHER_BATCHES:
        if not measured.problem:
            measured.problem = _batch_problem(backend, size, logits, reference, facts)
    if not measured.problem:
        _time(backend, reference, facts, measured)
    return measured


def compare(logits: np.ndarray, reference: Reference, facts: Facts) -> Measured:
    """Compare the logits of all pictures with the net's, and say whether they pass for the facts' precision."""
    wanted = reference.logits
    if logits.shape != wanted.shape:
        return Measured(problem=f"gives {logits.shape} instead of {wanted.shape}")
    if not np.isfinite(logits).all():
        rows = int((~np.isfinite(logits)).any(axis=1).sum())
        return Measured(problem=f"gives NaN or infinite logits for {rows} of {len(logits)} pictures")
    difference = np.abs(logits.astype(np.float64) - wanted) / reference.scale
    got, net = logits.argmax(axis=1), wanted.argmax(axis=1)
    names = facts.class_names
    flipped = np.flatnonzero(got != net)
    labels = reference.pictures.labels
    measured = Measured(
        count=len(logits),
        worst=float(difference.max()),
        mean=float(difference.mean()),
        agreement=float((got == net).mean()),
        flips=[(reference.pictures.files[i], names[net[i]], names[got[i]]) for i in flipped],
        ties=sum(_is_tie(wanted[i], net[i], got[i], reference.scale, facts.precision) for i in flipped),
        accuracy=None if labels is None else (float((net == labels).mean()), float((got == labels).mean())),
    )
    judge = _int8_problem if facts.precision == "int8" else _float_problem
    measured.problem = judge(measured, facts.precision, len(logits))
    return measured


def answers(backend: Backend, pictures: Pictures, facts: Facts) -> np.ndarray:
    """Give the logits, float32 (N, K), of all pictures in batches of 32; the last is filled up, as a service does."""
    parts = []
    for start in range(0, len(pictures), BATCH):
        pixels = pictures.pixels[start : start + BATCH]
        parts.append(backend(net_input(_filled(pixels, BATCH), facts.preprocess, facts.input))[: len(pixels)])
    return np.concatenate(parts)


def accuracy(logits: np.ndarray, labels: np.ndarray | None) -> float | None:
    """Share of the pictures whose largest logit is the label's; None without labels."""
    return None if labels is None else float((logits.argmax(axis=1) == labels).mean())


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


def _float_problem(measured: Measured, precision: str, count: int) -> str:
    tolerance = TOLERANCES[precision]
    if not measured.worst <= tolerance:  # NaN too
        return f"a logit differs by {measured.worst:.1e} of the largest; {precision} may differ by {tolerance:.0e}"
    counted = len(measured.flips) - measured.ties
    if counted > (1 - LEAST_AGREEMENT) * count:
        picture, net, got = measured.flips[0]
        share = f"{100 * (1 - counted / count):.2f} % of {count} pictures keep their class, under 99.9 %"
        return f"{share}; the first: {picture} is {net} to the net and {got} to the file"
    return ""


def _int8_problem(measured: Measured, precision: str, count: int) -> str:
    if not measured.mean <= MOST_INT8_DIFFERENCE:  # NaN too
        limit = f"{MOST_INT8_DIFFERENCE:.0e}"
        return f"the logits differ by {measured.mean:.1e} of the largest in the mean; int8 may differ by {limit}"
    if measured.accuracy is None:
        if measured.agreement < LEAST_INT8_AGREEMENT:
            return f"{100 * measured.agreement:.2f} % of {count} pictures keep their class, under 99 %"
        return ""
    before, after = measured.accuracy
    if before - after > MOST_INT8_LOSS + 1e-9:
        return f"top-1 falls from {100 * before:.2f} % to {100 * after:.2f} % on {count} pictures, over half a point"
    return ""


def _is_tie(wanted: np.ndarray, net: int, got: int, scale: float, precision: str) -> bool:
    """Say whether the net's own logits of two classes are closer than two numbers of this precision can be told apart.

    Then either class is right. float32 has no ties here: it is what the net itself computes in.
    """
    if precision not in ("fp16", "bf16"):
        return False
    return bool(wanted[net] - wanted[got] <= 2 * ROUNDING[precision] * scale)


def _batch_problem(backend: Backend, size: int, logits: np.ndarray, reference: Reference, facts: Facts) -> str:
    """Ask about the first pictures in a batch of another size; each must get the answer that it got before."""
    pixels = _filled(reference.pictures.pixels[:size], size)
    got = backend(net_input(pixels, facts.preprocess, facts.input))
    wanted = _filled(logits[:size], size)
    if got.shape != wanted.shape:
        return f"a batch of {size} gives {got.shape} instead of {wanted.shape}"
    difference = float(np.abs(got - wanted).max()) / reference.scale
    allowed = TOLERANCES.get(facts.precision, INT8_BATCH_TOLERANCE)
    if not difference <= allowed:
        return f"a picture's logits differ by {difference:.1e} of the largest between batches of {size} and {BATCH}"
    return ""


def _time(backend: Backend, reference: Reference, facts: Facts, measured: Measured) -> None:
    pixels = _filled(reference.pictures.pixels[:BATCH], BATCH)
    images = net_input(pixels, facts.preprocess, facts.input)
    eager_images = net_input(pixels, facts.preprocess, reference.facts.input)
    own, eager = time_in_turn(lambda: backend(images), lambda: reference.backend(eager_images))
    measured.batch_ms, measured.eager_ms = 1e3 * statistics.median(own), 1e3 * statistics.median(eager)
    measured.batch_ms_spread = (1e3 * min(own), 1e3 * max(own))


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    """Repeat rows from the first on until there are `count`."""
    return rows if len(rows) == count else np.concatenate([rows] * -(-count // len(rows)))[:count]
