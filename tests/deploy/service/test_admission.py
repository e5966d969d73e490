"""Admission: how many images are admitted, in a simulation of the service in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from deploy.service.admission import TICK_S, Admission, QueueFullError, Throughput

BATCH = 8
USUAL = 150.0  # images a second


def measured(rate: float = USUAL) -> Throughput:
    throughput = Throughput(1)
    throughput.record(round(60 * rate), 60.0)
    return throughput


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_throughput_is_that_of_the_last_minute_of_work_of_all_threads() -> None:
    throughput = Throughput(2)
    assert throughput.images_per_second() == 0
    throughput.record(10, 1.0)
    assert throughput.images_per_second() == 20
    for _ in range(1200):
        throughput.record(5, 1.0)  # half as fast for ten minutes
    assert throughput.images_per_second() == pytest.approx(10)
    for _ in range(2 * 60):
        throughput.record(10, 1.0)
    assert throughput.images_per_second() == pytest.approx(20 - 10 / np.e, rel=0.02)


def test_a_burst_fills_the_queue_before_any_throughput_is_measured() -> None:
    admission = Admission(64, [Throughput(1)], Clock())
    for _ in range(64):
        admission.check()
        admission.acquire(1)
    assert admission.held == 64
    with pytest.raises(QueueFullError):
        admission.acquire(1)
    with pytest.raises(QueueFullError):
        admission.check()
    assert admission.held == 64 and not admission.has_room()


def test_a_request_is_admitted_completely_or_not_at_all() -> None:
    admission = Admission(16, [Throughput(1)], Clock())
    admission.acquire(10)
    with pytest.raises(QueueFullError):
        admission.acquire(7)
    assert admission.held == 10 and not admission.has_room()
    admission.release(4)
    assert admission.has_room(2) and not admission.has_room(3)


def test_refusals_before_the_first_batch_do_not_lower_the_limit() -> None:
    admission = Admission(4, [Throughput(1)], Clock())
    admission.acquire(4)
    for _ in range(10):
        with pytest.raises(QueueFullError):
            admission.acquire(4)
    admission.release(4)
    assert admission.has_room(4) and not admission.has_room(5)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 64, 1000])
def test_an_empty_service_admits_a_full_queue(size: int) -> None:
    clock = Clock()
    admission = Admission(size, [measured()], clock)
    for _ in range(5):
        for images in (size, 1):
            admission.acquire(images)
            admission.release(images)
            clock.now += size / USUAL + 1
    assert admission.held == 0 and admission.has_room(size)


@dataclass
class Simulated:
    """The queue's length at the end of each batch, by time, and the times of refusals."""

    lengths: list[tuple[float, int]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def longest(self, start: float, end: float) -> int:
        return max(length for time, length in self.lengths if start <= time < end)


def always(now: float) -> float:
    return now


def simulate(
    seconds: float,
    offered: Callable[[float], float],
    speed: Callable[[float], float],
    usual: float,
    at_work: Callable[[float], float] = always,
) -> Simulated:
    """Simulate independent clients at a rate, and a net at a speed; both are functions of time, in images a second.

    An event at a time is handled at `at_work` of it: at the end of the pause while the process is paused.
    """
    generator, clock, throughput, simulated = np.random.default_rng(0), Clock(), measured(usual), Simulated()
    admission = Admission(64, [measured(1000), throughput], clock)
    busy_until, in_net, arrives_at, began_at = math.inf, 0, generator.exponential(1 / offered(0)), 0.0
    ticked_at = 0.0
    while clock.now < seconds:
        clock.now = at_work(min(busy_until, arrives_at, ticked_at))
        if busy_until <= min(arrives_at, ticked_at):
            throughput.record(in_net, clock.now - began_at)
            simulated.lengths.append((clock.now, admission.held))
            admission.release(in_net)
            in_net, busy_until = 0, math.inf
        elif arrives_at <= ticked_at:
            arrives_at += generator.exponential(1 / offered(arrives_at))
            try:
                admission.check()
                admission.acquire(1)
            except QueueFullError:
                simulated.refused.append(clock.now)
        else:
            admission.tick()
            ticked_at = clock.now + TICK_S
        if not in_net and admission.held:
            in_net, began_at = min(admission.held, BATCH), clock.now
            busy_until = clock.now + in_net / speed(clock.now)
    return simulated


def test_under_overload_the_queue_is_short() -> None:
    simulated = simulate(20, offered=lambda now: 2 * USUAL, speed=lambda now: USUAL, usual=USUAL)
    assert simulated.longest(0, 1) == 64 and simulated.longest(1, 20) == 32
    assert len(simulated.refused) == pytest.approx(20 * USUAL, rel=0.1)


def test_a_service_that_is_slow_for_seconds_refuses_no_request() -> None:
    """Longer than it takes to fill the queue: 2 seconds at a third of the speed, each half minute."""
    simulated = simulate(
        600,
        offered=lambda now: 0.7 * USUAL,
        speed=lambda now: USUAL / 3 if now % 30 < 2 else USUAL,
        usual=USUAL,
    )
    assert simulated.longest(0, 600) > 100 and not simulated.refused


@pytest.mark.parametrize("pause", [0.5, 1.0, 1.5])
def test_what_arrives_at_once_after_a_pause_is_no_burst(pause: float) -> None:
    def at_work(now: float) -> float:
        return now if now % 20 < 20 - pause else now + 20 - now % 20

    simulated = simulate(600, lambda now: 0.7 * USUAL, lambda now: USUAL, USUAL, at_work)
    assert simulated.longest(0, 600) > 0.6 * USUAL * pause and not simulated.refused


def test_pauses_under_overload_lengthen_the_queue_for_a_moment_only() -> None:
    def at_work(now: float) -> float:
        return now if now % 1 < 0.8 else now + 1 - now % 1

    simulated = simulate(20, lambda now: 2 * USUAL, lambda now: USUAL, USUAL, at_work)
    assert simulated.longest(2, 20) == 32


def test_a_long_pause_gives_no_more_credit_than_the_longest_queue() -> None:
    """After ten minutes of pause with few requests comes an overload: the queue is short after seconds."""

    def at_work(now: float) -> float:
        return now if now < 1 or now >= 600 else 600.0

    simulated = simulate(640, lambda now: 2 * USUAL if now >= 600 else 0.2, lambda now: USUAL, USUAL, at_work)
    assert min(simulated.refused) < 620 and simulated.longest(620, 640) == 32


def test_images_without_work_leave_the_virtual_queue() -> None:
    admission = Admission(64, [measured()], Clock())
    for _ in range(20):
        admission.acquire(16)
        admission.release(16, 16)
    assert admission.has_room(4 * 64)


def test_the_credit_of_a_pause_without_requests_expires() -> None:
    clock = Clock()
    admission = Admission(64, [measured()], clock)
    admission.tick()
    clock.now += 2  # 300 images' time, less a tick's
    admission.tick()
    for _ in range(20):
        clock.now += TICK_S
        admission.tick()
    for _ in range(64):
        admission.acquire(1)
    with pytest.raises(QueueFullError):
        admission.acquire(1)


def test_a_service_that_stays_slow_shortens_its_queue() -> None:
    simulated = simulate(300, offered=lambda now: 0.7 * USUAL, speed=lambda now: USUAL / 2, usual=USUAL)
    assert simulated.longest(0, 60) == 256
    assert simulated.longest(150, 300) == 32


def test_the_queue_may_be_long_again_soon_after_an_overload() -> None:
    simulated = simulate(
        14,
        offered=lambda now: 3 * USUAL if now < 10 else USUAL / 2,
        speed=lambda now: USUAL,
        usual=USUAL,
    )
    assert simulated.longest(8, 10) == 32 and max(simulated.refused) < 10.1
    assert simulated.longest(13, 14) < 24


def test_the_slowest_stage_gives_the_usual_throughput() -> None:
    clock = Clock()
    admission = Admission(64, [measured(10), measured(1000)], clock)
    for _ in range(100):
        admission.acquire(1)
        admission.release(1)
        clock.now += 0.02  # 50 a second
    admission.acquire(1)
    assert admission.has_room(31) and not admission.has_room(32)
