"""The load that `tools.soak` makes, beside services that do as they are told."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.serving import Served, serving, write_page
from tools.loadtest.generators import LOST, closed_loop, drip, harass, hostile, steady
from tools.loadtest.http_client import image, request
from tools.soak.__main__ import Finding, main


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(write_page(tmp_path)) as one:
        yield one


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of what reads a request and closes without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_all() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.recv(1000)
                    connection.close()

        thread = threading.Thread(target=close_all, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_steady_load_asks_at_its_rate_whatever_is_answered(served: Served, deaf: int) -> None:
    asked = [request("/predict", image(0)), request("/predict", b"no image")]
    outcomes = asyncio.run(steady(served.port, asked, 60, 1.0))
    assert 30 < len(outcomes) < 100  # a Poisson number: four standard deviations from 60
    assert [outcome.status for outcome in outcomes] == [200, 422] * (len(outcomes) // 2) + [200] * (len(outcomes) % 2)
    lost = asyncio.run(steady(deaf, asked, 60, 0.5))
    assert {outcome.status for outcome in lost} == {LOST} and len(lost) > 10


def test_a_load_that_is_held_up_says_how_late_each_request_was(served: Served) -> None:
    async def held_up() -> list[float]:
        load = asyncio.create_task(steady(served.port, [request("/predict", b"no image")], 60, 1.0))
        await asyncio.sleep(0.3)
        time.sleep(0.4)
        return [outcome.late_s for outcome in await load]

    late = asyncio.run(held_up())
    assert late[0] < 0.2 < 0.35 < max(late) < 1 and min(late) >= 0


def test_clients_ask_until_told_or_until_nobody_listens(served: Served) -> None:
    asked = [request("/predict", image(number)) for number in range(3)]
    outcomes = asyncio.run(closed_loop(served.port, asked, lambda seen: len(seen) >= 20))
    assert 20 <= len(outcomes) <= 22 and {outcome.status for outcome in outcomes} == {200}
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert asyncio.run(closed_loop(port, asked, lambda seen: False)) == []


def test_a_full_queue_is_refused_with_the_time_to_come_back(tmp_path: Path) -> None:
    with serving(write_page(tmp_path), "--queue", 2, "--max_pictures", 1) as one:
        one.backend.gate.clear()
        opener = threading.Timer(1.0, one.backend.gate.set)
        opener.start()
        outcomes = asyncio.run(steady(one.port, [request("/predict", image(0))], 40, 0.5))
        opener.join()
    refused = [outcome for outcome in outcomes if outcome.status == 503]
    assert len(outcomes) - len(refused) == 2 and all(outcome.has_retry_after for outcome in refused)


def test_hostile_requests_are_refused_and_slow_senders_hold_nobody_up(served: Served) -> None:
    async def beside() -> int:
        senders = [asyncio.create_task(drip(served.port, 1.5)) for _ in range(20)]
        faults = await harass(served.port, 60, 1.0)
        assert served.ask("/predict", b"{}")[0] == 400
        await asyncio.gather(*senders)
        return faults

    assert len(hostile(request)) == 15
    assert asyncio.run(beside()) == 0
    started = time.monotonic()
    assert asyncio.run(closed_loop(served.port, [request("/predict", image(0))], bool))[0].status == 200
    assert time.monotonic() - started < 5


def test_a_promise_is_held_up_to_its_limit() -> None:
    assert Finding("a", "b", 2.0, 2).is_held() and not Finding("a", "b", 2.1, 2).is_held()


def test_a_service_that_does_not_start_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", str(tmp_path / "no.onnx"), "--trials", "stop"]) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("python -m tools.soak: deploy.service: it did not start: ") and "no.onnx" in sentence
