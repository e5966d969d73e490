"""One image must not stop the service: stand-in decoders that sleep, spin, allocate and crash."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_loader import decoder_process
from deploy.service import image_decoder
from tests.helpers import stand_in_decoder
from tests.helpers.serving import (
    PATIENCE_S,
    GatedBackend,
    Response,
    RunningService,
    base64_of,
    png,
    port_of,
    serving,
    start,
    wait,
)
from tests.helpers.stand_in_decoder import ALLOCATE, BUG, CRASH, SLEEP, SPIN

GOOD = {"content": base64_of(png(250))}
LONG_S = 3600


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "WORKER", stand_in_decoder.MODULE)


@contextmanager
def sending(one: RunningService, *bodies: bytes) -> Iterator[list[Future[Response]]]:
    """Send images in threads, and go on once the service has them."""
    with ThreadPoolExecutor(len(bodies)) as threads:
        futures = [threads.submit(one.send, "/predict", {"content": base64_of(body)}) for body in bodies]
        wait(lambda: one.metric("service_queue_pictures") >= len(bodies))
        yield futures


@pytest.mark.parametrize("body", [SLEEP, SPIN])
def test_an_image_whose_decoder_does_not_end_costs_its_deadline_and_no_other_request(body: bytes, page: Path) -> None:
    with serving(page, "--decode_timeout_s", 2, "--request_timeout_s", 60) as one:
        with sending(one, body) as (stuck,):
            for _ in range(20):
                assert one.send("/predict", GOOD)[0] == 200
            assert not stuck.done() and one.get("/readyz")[0] == 200
            status, response, _ = stuck.result(PATIENCE_S)
        assert (status, response["msg"]) == (422, "content: its decoder did not end within 2 seconds")
        assert one.send("/predict", GOOD)[0] == 200
        wait(one.is_empty)


def test_more_such_images_than_processes_delay_the_others_by_one_deadline(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_decoder, "STALL_S", 0.3)
    with serving(page, "--decode_timeout_s", 1.5, "--request_timeout_s", 60) as one:
        with sending(one, SLEEP, SPIN) as stuck:
            started = time.monotonic()
            wait(lambda: one.get("/readyz")[0] == 503)  # no decoder has finished anything, and work would wait
            assert one.get("/healthz")[0] == 200
            assert one.send("/predict", GOOD)[0] == 200
            assert time.monotonic() - started > 0.3
            assert [future.result(PATIENCE_S)[0] for future in stuck] == [422, 422]
        wait(lambda: one.get("/readyz")[0] == 200)


def test_memory_is_limited_by_the_system_and_a_crash_is_one_request_s(page: Path) -> None:
    with serving(page) as one:
        for body, message in ((ALLOCATE, "it is too large for the memory"), (CRASH, "its decoder crashed")):
            status, response, _ = one.send("/predict", {"content": [base64_of(png()), base64_of(body)]})
            assert (status, response["msg"]) == (422, f"content[1]: {message}")
            assert one.send("/predict", GOOD)[0] == 200
        assert one.send("/predict", {"content": base64_of(BUG)})[0] == 500
        wait(one.is_empty)


def test_every_process_has_its_share_of_the_memory() -> None:
    """1536 MB for 24 megapixels: (1536 / 40 - 24) / 2 = 7.2 megapixels for each of two small ones, 40 bytes a pixel."""
    from tests.helpers.serving import METADATA

    decoder = image_decoder.ImageDecoder(METADATA, 24 * 10**6, 1536 * 10**6, 2, 10.0)
    settings = [json.loads(pool._decoders[0]._settings) for pool in (decoder._small, decoder._large)]
    shares = [each["memory_bytes"] - image_decoder.OWN_BYTES for each in settings]
    assert shares == [288 * 10**6, 960 * 10**6] and 2 * shares[0] + shares[1] == 1536 * 10**6


def test_the_end_waits_for_no_decoder(page: Path) -> None:
    with serving(page, "--decode_timeout_s", LONG_S, "--request_timeout_s", 1) as one:
        with sending(one, SLEEP, SPIN) as stuck:
            assert [future.result(PATIENCE_S)[0] for future in stuck] == [503, 503]
        assert not one.is_empty()  # the decoders are still at it
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


SERVICE = f"""
import deploy.backends.loading
from data_loader import decoder_process
from deploy.service.launcher import main
from tests.helpers.serving import METADATA, GatedBackend
decoder_process.WORKER = "{stand_in_decoder.MODULE}"
deploy.backends.loading.load_backend = lambda *_, **__: (GatedBackend(), METADATA)
raise SystemExit(main())
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    from artifacts.checkpoint import Checkpoint, save_checkpoint
    from tests.helpers.serving import METADATA

    save_checkpoint(Checkpoint({}, METADATA, {}), tmp_path / "net.pth")
    return tmp_path / "net.pth"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heeded_while_every_decoder_is_stuck(weights: Path, number: signal.Signals) -> None:
    flags = ["--decode_timeout_s", LONG_S, "--request_timeout_s", 2, "--workers", 2, "--drain_s", 0.2]
    process = start(SERVICE, "--weights", weights, "--service_port", 0, *flags)
    try:
        one = RunningService(port_of(process)[0], GatedBackend())
        with sending(one, SLEEP, SPIN) as stuck:
            process.send_signal(number)
            assert process.communicate(timeout=PATIENCE_S) == ("", "") and process.returncode == 0
            assert [future.result(PATIENCE_S)[0] for future in stuck] == [503, 503]
    finally:
        process.kill()
        process.communicate()
