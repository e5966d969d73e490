"""Who is let in: as many as can be answered, held against a service that is played second by second."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from deploy.service.admission import TICK_S, Admission, Pace, QueueFullError

BATCH = 8
USUAL = 150.0  # images a second


def known_pace(rate: float = USUAL) -> Pace:
    pace = Pace(1)
    pace.note(round(60 * rate), 60.0)
    return pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_pace_is_that_of_the_last_minute_of_work_of_all_threads() -> None:
    pace = Pace(2)
    assert pace.images_per_second() == 0
    pace.note(10, 1.0)
    assert pace.images_per_second() == 20
    for _ in range(1200):
        pace.note(5, 1.0)  # half as fast for ten minutes
    assert pace.images_per_second() == pytest.approx(10)
    for _ in range(2 * 60):
        pace.note(10, 1.0)
    assert pace.images_per_second() == pytest.approx(20 - 10 / np.e, rel=0.02)


def test_a_burst_fills_the_queue_before_anything_is_known() -> None:
    admission = Admission(64, [Pace(1)], Clock())
    for _ in range(64):
        admission.check()
        admission.let_in(1)
    assert admission.held == 64
    with pytest.raises(QueueFullError):
        admission.let_in(1)
    with pytest.raises(QueueFullError):
        admission.check()
    assert admission.held == 64 and not admission.has_room()


def test_a_request_is_let_in_whole_or_not() -> None:
    admission = Admission(16, [Pace(1)], Clock())
    admission.let_in(10)
    with pytest.raises(QueueFullError):
        admission.let_in(7)
    assert admission.held == 10 and not admission.has_room()
    admission.let_out(4)
    assert admission.has_room(2) and not admission.has_room(3)


def test_a_net_that_has_answered_nobody_shuts_nobody_out() -> None:
    admission = Admission(4, [Pace(1)], Clock())
    admission.let_in(4)
    for _ in range(10):
        with pytest.raises(QueueFullError):
            admission.let_in(4)
    admission.let_out(4)
    assert admission.has_room(4) and not admission.has_room(5)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 64, 1000])
def test_whoever_finds_nobody_is_let_in(size: int) -> None:
    clock = Clock()
    admission = Admission(size, [known_pace()], clock)
    for _ in range(5):
        for images in (size, 1):
            admission.let_in(images)
            admission.let_out(images)
            clock.now += size / USUAL + 1
    assert admission.held == 0 and admission.has_room(size)


@dataclass
class Played:
    """What a service did: the queue at each batch's end, by time, and when it refused."""

    lengths: list[tuple[float, int]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def longest(self, start: float, end: float) -> int:
        return max(length for time, length in self.lengths if start <= time < end)


def always(now: float) -> float:
    return now


def play(
    seconds: float,
    offered: Callable[[float], float],
    speed: Callable[[float], float],
    usual: float,
    at_work: Callable[[float], float] = always,
) -> Played:
    """Let independent senders ask at a rate, and a net answer batches at a speed, both by time, images a second.

    What happens at a time is noticed at `at_work` of it, the pause's end where the process is paused.
    """
    generator, clock, pace, played = np.random.default_rng(0), Clock(), known_pace(usual), Played()
    admission = Admission(64, [Pace(2), pace], clock)
    decoding = admission._stages[0]
    decoding.note(100, 0.1)  # no matter
    busy_until, in_net, asked_at, done_from = math.inf, 0, generator.exponential(1 / offered(0)), 0.0
    ticked_at = 0.0
    while clock.now < seconds:
        clock.now = at_work(min(busy_until, asked_at, ticked_at))
        if busy_until <= min(asked_at, ticked_at):
            pace.note(in_net, clock.now - done_from)
            played.lengths.append((clock.now, admission.held))
            admission.let_out(in_net)
            in_net, busy_until = 0, math.inf
        elif asked_at <= ticked_at:
            asked_at += generator.exponential(1 / offered(asked_at))
            try:
                admission.check()
                admission.let_in(1)
            except QueueFullError:
                played.refused.append(clock.now)
        else:
            admission.tick()
            ticked_at = clock.now + TICK_S
        if not in_net and admission.held:
            in_net, done_from = min(admission.held, BATCH), clock.now
            busy_until = clock.now + in_net / speed(clock.now)
    return played


def test_where_more_comes_than_can_be_answered_the_queue_is_short() -> None:
    played = play(20, offered=lambda now: 2 * USUAL, speed=lambda now: USUAL, usual=USUAL)
    assert played.longest(0, 1) == 64 and played.longest(1, 20) == 32
    assert len(played.refused) == pytest.approx(20 * USUAL, rel=0.1)


def test_a_service_that_is_slow_for_seconds_refuses_nobody() -> None:
    """Longer than it takes to fill the queue: 2 seconds at a third of the speed, each half minute."""
    played = play(
        600,
        offered=lambda now: 0.7 * USUAL,
        speed=lambda now: USUAL / 3 if now % 30 < 2 else USUAL,
        usual=USUAL,
    )
    assert played.longest(0, 600) > 100 and not played.refused


@pytest.mark.parametrize("pause", [0.5, 1.0, 1.5])
def test_what_comes_at_once_after_a_pause_is_no_burst(pause: float) -> None:
    def at_work(now: float) -> float:
        return now if now % 20 < 20 - pause else now + 20 - now % 20

    played = play(600, lambda now: 0.7 * USUAL, lambda now: USUAL, USUAL, at_work)
    assert played.longest(0, 600) > 0.6 * USUAL * pause and not played.refused


def test_a_pause_lets_in_no_more_for_long_where_too_much_comes() -> None:
    def at_work(now: float) -> float:
        return now if now % 1 < 0.8 else now + 1 - now % 1

    played = play(20, lambda now: 2 * USUAL, lambda now: USUAL, USUAL, at_work)
    assert played.longest(2, 20) == 32


def test_a_long_pause_brings_no_more_than_is_held() -> None:
    """Ten minutes with a request now and then, and then too much: the queue is short after seconds."""

    def at_work(now: float) -> float:
        return now if now < 1 or now >= 600 else 600.0

    played = play(640, lambda now: 2 * USUAL if now >= 600 else 0.2, lambda now: USUAL, USUAL, at_work)
    assert min(played.refused) < 620 and played.longest(620, 640) == 32


def test_what_was_no_work_is_not_reckoned() -> None:
    admission = Admission(64, [known_pace()], Clock())
    for _ in range(20):
        admission.let_in(16)
        admission.let_out(16, 16)
    assert admission.has_room(4 * 64)


def test_a_burst_after_a_pause_that_nobody_waited_in_is_one() -> None:
    clock = Clock()
    admission = Admission(64, [known_pace()], clock)
    admission.tick()
    clock.now += 2  # 300 images' time, less a tick's
    admission.tick()
    for _ in range(20):
        clock.now += TICK_S
        admission.tick()
    for _ in range(64):
        admission.let_in(1)
    with pytest.raises(QueueFullError):
        admission.let_in(1)


def test_a_service_that_stays_slow_shortens_its_queue() -> None:
    played = play(300, offered=lambda now: 0.7 * USUAL, speed=lambda now: USUAL / 2, usual=USUAL)
    assert played.longest(0, 60) == 256
    assert played.longest(150, 300) == 32


def test_the_queue_is_long_again_soon_after_too_much_has_come() -> None:
    played = play(
        14,
        offered=lambda now: 3 * USUAL if now < 10 else USUAL / 2,
        speed=lambda now: USUAL,
        usual=USUAL,
    )
    assert played.longest(8, 10) == 32 and max(played.refused) < 10.1
    assert played.longest(13, 14) < 24


def test_the_slowest_stage_tells_what_is_usual() -> None:
    clock = Clock()
    admission = Admission(64, [known_pace(10), known_pace(1000)], clock)
    for _ in range(100):
        admission.let_in(1)
        admission.let_out(1)
        clock.now += 0.02  # 50 a second
    admission.let_in(1)
    assert admission.has_room(31) and not admission.has_room(32)
