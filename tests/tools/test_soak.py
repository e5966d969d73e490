"""The load generators of `tools.soak`, against services whose responses are known."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.serving import RunningService, serving, write_page
from tools.loadtest.generators import LOST, closed_loop, drip, harass, hostile, steady
from tools.loadtest.http_client import make_image, make_request
from tools.soak.__main__ import main
from tools.soak.trials import Finding


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with serving(write_page(tmp_path)) as one:
        yield one


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that reads a request and closes without a response."""
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


def test_a_steady_load_keeps_its_rate_whatever_the_responses(service: RunningService, silent: int) -> None:
    requests = [make_request("/predict", make_image(0)), make_request("/predict", b"no image")]
    outcomes = asyncio.run(steady(service.port, requests, 60, 1.0))
    assert 30 < len(outcomes) < 100  # a Poisson number: four standard deviations from 60
    assert [outcome.status for outcome in outcomes] == [200, 422] * (len(outcomes) // 2) + [200] * (len(outcomes) % 2)
    lost = asyncio.run(steady(silent, requests, 60, 0.5))
    assert {outcome.status for outcome in lost} == {LOST} and len(lost) > 10


def test_a_delayed_load_records_how_late_each_request_was(service: RunningService) -> None:
    async def delayed() -> list[float]:
        load = asyncio.create_task(steady(service.port, [make_request("/predict", b"no image")], 60, 1.0))
        await asyncio.sleep(0.3)
        time.sleep(0.4)
        return [outcome.late_s for outcome in await load]

    late = asyncio.run(delayed())
    assert max(late) > 0.35 and min(late) >= 0


def test_clients_send_until_the_condition_holds_or_no_server_listens(service: RunningService) -> None:
    requests = [make_request("/predict", make_image(number)) for number in range(3)]
    outcomes = asyncio.run(closed_loop(service.port, requests, lambda seen: len(seen) >= 20))
    assert 20 <= len(outcomes) <= 22 and {outcome.status for outcome in outcomes} == {200}
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert asyncio.run(closed_loop(port, requests, lambda seen: False)) == []


def test_a_full_queue_is_503_with_retry_after(tmp_path: Path) -> None:
    with serving(write_page(tmp_path), "--queue", 2, "--max_pictures", 1) as one:
        one.backend.gate.clear()
        opener = threading.Timer(1.0, one.backend.gate.set)
        opener.start()
        outcomes = asyncio.run(steady(one.port, [make_request("/predict", make_image(0))], 40, 0.5))
        opener.join()
    refused = [outcome for outcome in outcomes if outcome.status == 503]
    assert len(outcomes) - len(refused) == 2 and all(outcome.has_retry_after for outcome in refused)


def test_hostile_requests_and_slow_clients_cause_no_fault(service: RunningService) -> None:
    async def beside() -> int:
        senders = [asyncio.create_task(drip(service.port, 1.5)) for _ in range(20)]
        faults = await harass(service.port, 60, 1.0)
        assert service.send("/predict", b"{}")[0] == 400
        await asyncio.gather(*senders)
        return faults

    assert len(hostile(make_request)) == 15
    assert asyncio.run(beside()) == 0
    assert asyncio.run(closed_loop(service.port, [make_request("/predict", make_image(0))], bool))[0].status == 200


def test_a_limit_is_met_up_to_its_value() -> None:
    assert Finding("a", "b", 2.0, 2).is_within() and not Finding("a", "b", 2.1, 2).is_within()


def test_a_service_that_does_not_start_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", str(tmp_path / "no.onnx"), "--trials", "stop"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m tools.soak: deploy.service: it did not start: ") and "no.onnx" in message
