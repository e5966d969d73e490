"""Who is let in: everybody of a burst, and fewer once the queue stays full."""

import pytest

from deploy.admission import Admission, QueueFullError


def test_a_burst_fills_the_queue() -> None:
    admission = Admission(64)
    for _ in range(64):
        admission.let_in(1)
    assert admission.held == 64 and not admission.has_room()
    with pytest.raises(QueueFullError):
        admission.let_in(1)
    assert admission.held == 64


def test_a_request_is_let_in_whole_or_not() -> None:
    admission = Admission(16)
    admission.let_in(12)
    with pytest.raises(QueueFullError):
        admission.let_in(5)
    assert admission.held == 12 and admission.has_room(4)


def test_a_queue_that_stays_full_loses_its_last_quarter_until_it_is_half_empty() -> None:
    admission = Admission(64)
    admission.let_in(64)  # 16 of them beyond three quarters
    for _ in range(48):
        admission.let_out(1)
        admission.let_in(1)
    admission.let_out(1)
    assert not admission.has_room()
    admission.let_out(15)
    assert admission.held == 48 and not admission.has_room()
    admission.let_out(1)
    assert admission.has_room() and not admission.has_room(2)
    admission.let_out(47 - 33)
    assert not admission.has_room(64 - 33)
    admission.let_out(1)
    assert admission.has_room(64 - 32)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 64, 1000])
def test_whoever_finds_nobody_is_let_in(size: int) -> None:
    admission = Admission(size)
    for _ in range(5):
        for pictures in (size, 1):
            admission.let_in(pictures)
            admission.let_out(pictures)
    assert admission.held == 0 and admission.has_room(size)


def lengths(arrivals_a_batch: float, batches: int, pause: int) -> tuple[list[int], int]:
    """The queue's length before each batch of 8 is let out, and how many were refused; first the net pauses."""
    admission, refused, due, found = Admission(64), 0, 0.0, []
    for number in range(batches):
        due += arrivals_a_batch
        while due >= 1:
            due -= 1
            try:
                admission.let_in(1)
            except QueueFullError:
                refused += 1
        found.append(admission.held)
        if number >= pause:
            admission.let_out(min(8, admission.held))
    return found, refused


def test_what_a_pause_has_kept_waiting_is_answered_and_what_is_too_much_waits_for_less() -> None:
    after_a_pause, refused = lengths(arrivals_a_batch=5.6, batches=200, pause=10)
    assert max(after_a_pause) > 60 and refused == 0

    too_much, refused = lengths(arrivals_a_batch=16, batches=200, pause=0)
    assert max(too_much) == 64 and refused > 0
    assert max(too_much[20:]) == 48
    assert len(too_much) - too_much.count(48) < 20
