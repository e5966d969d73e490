"""The speed of a file beside the eager net's."""

from __future__ import annotations

import time
from collections.abc import Callable

ROUNDS, WARM_UP, MOST_SECONDS = 9, 1, 12.0


def time_in_turn(first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Time two calls in turn, so that other work of the machine slows both; return the seconds of each round.

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
