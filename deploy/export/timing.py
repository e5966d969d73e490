"""The speed of a file beside the eager net's, and of the net in the precision that is its best here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deploy.backends.base import BackendError
from deploy.backends.torch_backend import CheckpointBackend

LEAST_ROUNDS, ROUNDS, MOST_SECONDS = 3, 9, 12.0
AGREEING = 1.05  # the longest of a side's rounds by the shortest, at which more rounds would show nothing new


@dataclass(frozen=True)
class BestPrecision:
    """What the checkpoint itself is fastest in, and how many times as fast as in float32."""

    name: str = "fp32"
    speed: float = 1.0

    def is_faster_than(self, speed: float) -> bool:
        """Return whether it beats a file's speed, against float32 too, by more than timing can vary."""
        return speed * AGREEING < self.speed


def best_precision(backend: CheckpointBackend, images: np.ndarray) -> BestPrecision:
    """Time a checkpoint on a batch, float32 (N, ...), in bf16 where the device and the net's operators take it."""
    if (in_bf16 := backend.in_bf16()) is None:
        return BestPrecision()
    try:
        own, fp32 = time_in_turn(lambda: in_bf16(images), lambda: backend(images))
    except BackendError:  # an operator without bf16
        return BestPrecision()
    speed = statistics.median(fp32) / statistics.median(own)
    return BestPrecision("bf16", speed) if speed > 1 else BestPrecision()


def time_in_turn(first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Time two calls in turn, so that other work of the machine slows both; return the seconds of each round.

    Three rounds are enough where each side's agree within 5 %, as on a machine that does nothing else; else there are
    up to nine. Always nine were 55 % of the processor time of exporting a resnet34 in all formats, with 32 images.
    Each timed call follows an untimed one of its own: the other runtime's threads spin for a while after its call,
    which slowed eager torch three times beside onnxruntime.
    """
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + MOST_SECONDS
    while len(times[0]) < LEAST_ROUNDS or (len(times[0]) < ROUNDS and not _agree(times) and time.perf_counter() < end):
        for call, seconds in zip((first, second), times, strict=True):
            call()
            before = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - before)
    return times


def _agree(times: tuple[list[float], list[float]]) -> bool:
    return all(max(seconds) <= AGREEING * min(seconds) for seconds in times)
