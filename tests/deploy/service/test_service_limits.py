"""Limits of the service: sizes, slow clients, clients that disconnect, and a thousand invalid requests."""

import http.client
import io
import json
import os
import re
import select
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.paths import ROOT
from deploy.service.http_protocol import MAX_PIPELINED
from tests.helpers.serving import (
    JSON,
    PATIENCE_S,
    RunningService,
    base64_of,
    multipart,
    png,
    read,
    read_all,
    serving,
    wait,
)


@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_has_a_limit_with_and_without_content_length(service: RunningService, has_length: bool) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(50_000)

    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE_S)
    length = {"content-length": "2000000"} if has_length else {"transfer-encoding": "chunked"}
    connection.request("POST", "/predict", parts(), {**JSON, **length}, encode_chunked=not has_length)
    status, response, _ = read(connection.getresponse())
    assert (status, response["msg"]) == (413, "the body has more than 1 MB")
    connection.request("GET", "/healthz")  # the rest of the body has been discarded
    assert read(connection.getresponse())[0] == 200
    connection.close()


def test_a_large_content_length_is_refused_before_the_body(service: RunningService) -> None:
    with service.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000001\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 20_000 + b"\r\n\r\n",  # one chunk
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 3_000 + b"\r\n",
        b"GET /" + b"a" * 300_000,  # no end in sight
        b"\r\n" * 9_000,
    ],
    ids=["line", "lines", "endless", "nothing"],
)
def test_headers_have_a_limit(service: RunningService, sent: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(sent)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["msg"] == "the first line and headers have more than 16384 bytes"
    assert b'service_errors_total{code="431",route="other"}' in service.get("/metrics")[1]


@pytest.mark.parametrize("after", [b"x" * 30 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n"])
def test_garbage_after_a_request_does_not_cost_its_response(
    service: RunningService, after: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps({"content": base64_of(png())}).encode()
    service.backend.gate.clear()
    with service.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
        connection.sendall(b"content-length: %d\r\n\r\n" % len(body) + body + after)
        time.sleep(0.2)
        service.backend.gate.set()
        responses = read_all(connection)
    assert responses.startswith(b"HTTP/1.1 200 ") and responses.count(b"HTTP/1.1 ") == 1
    assert not caplog.records


@pytest.mark.parametrize(
    ("start", "more"),
    [(b"0\r\n", b"x: y\r\n"), (b"0\r\nx: ", b"y"), (b"2;x=", b"y"), (b"", b"0")],
    ids=["trailers", "endless trailer", "extension", "size"],
)
def test_bytes_beside_the_chunks_of_a_body_have_a_limit(service: RunningService, start: bytes, more: bytes) -> None:
    """uvicorn keeps every trailer: 80 MB of them took 1 GB, and every other request seconds."""
    with service.connect() as connection, pytest.raises(ConnectionError):
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n" + start
        )
        for _ in range(400):
            connection.sendall(more * (65_536 // len(more)))
    assert service.get("/healthz")[0] == 200


def test_small_trailers_and_chunks_of_one_byte_are_fine(service: RunningService) -> None:
    body = json.dumps({"content": base64_of(png(250)), "unknown": "x" * 20_000}).encode()
    chunks = b"".join(b"1;a=b\r\n%c\r\n" % byte for byte in body) + b"0\r\nx: y\r\n\r\n"
    with service.connect() as connection:
        head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n" + chunks)
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_have_a_limit(service: RunningService) -> None:
    """Of thousands at once some get a complete response, the last with a close; other clients do not wait."""
    with service.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2_000)
        received = read_all(connection)
    count = received.count(b"HTTP/1.1 200 OK")
    assert 1 < count <= 2 + MAX_PIPELINED and received.count(b'{"status":"ok"}') == count
    assert received.count(b"connection: close") == 1 and received.endswith(b'{"status":"ok"}')
    assert service.get("/healthz")[0] == 200


@pytest.mark.parametrize(
    "sent", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.1\r\n\r\n", b"GET / HTTP/1.1\r\na\r\n\r\n"]
)
def test_what_is_no_http_gets_a_message(service: RunningService, sent: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(sent)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body) == {"code": 400, "msg": "this is not a request of HTTP/1.1", "data": []}


@pytest.fixture(scope="module")
def impatient(page: Path) -> Iterator[RunningService]:
    with serving(page, "--header_timeout_s", 0.4, "--request_timeout_s", 0.8, "--http_status", "ok") as one:
        yield one


@pytest.fixture(scope="module")
def small(page: Path) -> Iterator[RunningService]:
    with serving(page, "--queue", 2, "--max_pictures", 2, "--max_connections", 20, "--max_pending_mb", 1) as one:
        yield one


def test_slow_headers_get_408(impatient: RunningService) -> None:
    for start in (b"", b"POST /predict HTTP/1.1\r\nhost: localhost\r\n", b"\r\n"):
        with impatient.connect() as connection:
            connection.sendall(start)
            response = read_all(connection)
        assert response.startswith(b"HTTP/1.1 408 "), start
        assert b"the headers did not come within 0.4 seconds" in response


def test_a_slow_body_gets_408_although_bytes_arrive(impatient: RunningService) -> None:
    with impatient.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n")
        for _ in range(6):
            connection.sendall(b"x")
            time.sleep(0.1)
        response = connection.recv(65536)
    assert response.startswith(b"HTTP/1.1 200 ")  # --http_status ok
    assert json.loads(response.partition(b"\r\n\r\n")[2]) == {
        "code": 408,
        "msg": "the request did not come within 0.8 seconds",
        "data": [],
    }


def test_http_status_ok_sends_200_with_the_code_in_the_body(impatient: RunningService) -> None:
    for path, code in (("/predict", 400), ("/nowhere", 404)):
        status, response, _ = impatient.send(path, b"{")
        assert (status, response["code"]) == (200, code)
    assert impatient.metric('service_errors_total{code="400",route="/predict"}') == 1
    assert impatient.metric('service_errors_total{code="404",route="other"}') == 1


def test_a_net_that_is_too_slow(impatient: RunningService) -> None:
    impatient.backend.gate.clear()
    response = impatient.send("/predict", {"content": base64_of(png())})[1]
    assert (response["code"], response["msg"]) == (503, "no response within 0.8 seconds; try again later")
    impatient.backend.gate.set()
    wait(impatient.is_empty)


def test_a_full_queue(small: RunningService) -> None:
    small.backend.gate.clear()
    statuses: list[int] = []
    body = {"content": [base64_of(png())] * 2}
    waiting = threading.Thread(target=lambda: statuses.append(small.send("/predict", body)[0]))
    waiting.start()
    wait(lambda: small.metric("service_queue_pictures") == 2)
    status, response, headers = small.send("/predict", body)
    assert (status, response["msg"]) == (503, "2 images are waiting; try again later")
    assert headers["retry-after"] == "1"
    assert small.get("/readyz")[:2] == (503, {"status": "not ready"})
    small.backend.gate.set()
    waiting.join()
    wait(small.is_empty)
    assert small.get("/readyz")[:2] == (200, {"status": "ready"})
    assert [*statuses, small.send("/predict", body)[0]] == [200, 200]


def test_the_bodies_of_all_requests_have_a_limit(small: RunningService) -> None:
    with small.connect() as first, small.connect() as second:
        for connection in (first, second):
            head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900000\r\n\r\n"
            connection.sendall(head + bytes(600_000))
        refused = select.select([first, second], [], [], PATIENCE_S)[0]
        response = json.loads(refused[0].recv(65536).partition(b"\r\n\r\n")[2])
    assert (response["code"], response["msg"]) == (503, "requests of 1 MB are in progress; try again later")
    body = {"content": base64_of(png()), "x": "y" * 900_000}
    wait(lambda: small.send("/predict", body)[0] == 200)  # the bytes of closed connections no longer count


def test_connections_have_a_limit(small: RunningService) -> None:
    wait(lambda: small.get("/healthz")[0] == 200)
    with ExitStack() as held:
        for _ in range(20):
            held.enter_context(small.connect())
        response = read_all(held.enter_context(small.connect()))
    assert response.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in response
    assert b"20 connections are open; try again later" in response
    wait(lambda: small.get("/healthz")[0] == 200)
    assert b'service_errors_total{code="503",route="other"}' in small.get("/metrics")[1]


def test_a_client_that_disconnects_leaves_nothing(service: RunningService) -> None:
    service.backend.entered.clear()
    service.backend.gate.clear()
    body = json.dumps({"content": [base64_of(png())] * 4}).encode()
    before = sum(service.backend.sizes)
    with ExitStack() as held:
        for _ in range(5):
            connection = held.enter_context(service.connect())
            connection.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
            connection.sendall(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        wait(lambda: service.metric("service_queue_pictures") == 20)
    wait(lambda: service.metric('service_requests_total{code="499",route="/predict"}') >= 5)
    service.backend.gate.set()
    wait(service.is_empty)
    assert sum(service.backend.sizes) - before <= 8  # the batch that was in the net, and no other
    with service.connect() as connection:  # half a body, then gone
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\nabc")
    wait(lambda: service.metric('service_requests_total{code="499",route="/predict"}') >= 6)
    assert service.send("/predict", {"content": base64_of(png())})[0] == 200


# --- thousands of invalid requests


def encoded(generator: np.random.Generator) -> bytes:
    """Return an image of a random format and mode, often damaged."""
    form, mode = [
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("JPEG", "CMYK"),
        ("GIF", "P"),
        ("TIFF", "F"),
        ("WEBP", "RGB"),
        ("BMP", "1"),
    ][generator.integers(7)]
    file = io.BytesIO()
    Image.new(mode, (int(generator.integers(1, 60)), int(generator.integers(1, 60)))).save(file, form)
    data = bytearray(file.getvalue())
    harm = generator.integers(5)
    if harm == 1:
        del data[int(generator.integers(len(data))) :]
    elif harm == 2:
        for _ in range(5):
            data[generator.integers(len(data))] = generator.integers(256)
    elif harm == 3:
        data = bytearray(generator.bytes(int(generator.integers(300))))
    return bytes(data)


def fuzzed(generator: np.random.Generator) -> tuple[bytes, str]:
    """Return a body and its type, most with an error or two."""
    body, kind = request_body(generator)
    if generator.random() < 0.3:
        changed = bytearray(body)
        for _ in range(generator.integers(1, 4)):
            changed[generator.integers(len(changed))] = generator.integers(256)
        body = bytes(changed)
    if generator.random() < 0.1:
        body = body[: generator.integers(len(body))]
    if generator.random() < 0.1:
        kind = WRONG_TYPES[generator.integers(len(WRONG_TYPES))]
    return body, kind


WRONG_TYPES = (
    "",
    "text/plain",
    "application/json; charset=\xff",
    "multipart/form-data",
    "multipart/form-data; boundary=" + "é" * 9,
)


def request_body(generator: np.random.Generator) -> tuple[bytes, str]:
    data = encoded(generator)
    text = base64_of(data)
    wrong: list[Any] = [None, True, 1e308, -1, "", "data:,", "http://a", "\ud800", "\x00", [], {}, [[text]], [text] * 9]
    wrong += [text[:-3], f"data:image/png;base64,{text}"]
    content = text if generator.random() < 0.5 else wrong[generator.integers(len(wrong))]
    values = {"content": content, "need_heatmap": [True, False, "1", 2, None, "é"][generator.integers(6)], "loud": "x"}
    if generator.random() < 0.5:
        del values["need_heatmap"], values["loud"]
    kind = generator.integers(4)
    if kind == 0:
        return json.dumps(values).encode(), "application/json"
    if kind == 1:
        form = f"content={content}&need_heatmap=%zz&=&&x"
        return form.encode("utf-8", "replace"), "application/x-www-form-urlencoded"
    return multipart([("content", "a" if kind == 2 else None, data), ("need_heatmap", None, b"1")])


INTERNALS = rf"Traceback|File \"|0x[0-9a-f]{{6}}|site-packages|{re.escape(str(ROOT))}"


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.fixture
def slow_clients(service: RunningService) -> Iterator[None]:
    """Open thirty connections with an unfinished request, each a little longer."""
    with ExitStack() as held:
        for number in range(30):
            one = held.enter_context(service.connect())
            one.sendall(
                b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\nabc"[: 10 + 2 * number]
            )
        yield


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of odd metadata; `serve` ignores it too
@pytest.mark.usefixtures("slow_clients")
def test_a_thousand_invalid_requests_change_nothing(service: RunningService) -> None:
    generator = np.random.default_rng(0)
    codes: Counter[int] = Counter()
    resident, threads = [], []
    with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE_S)) as connection:
        for number in range(1200):
            if number in (400, 1199):
                resident.append(resident_mb())
                threads.append(threading.active_count())
            body, kind = fuzzed(generator)
            headers = {"content-type": kind.encode("latin-1", "replace")}
            connection.request("POST", ["/predict", "/other"][number % 2], body, headers)
            status, response, _ = read(connection.getresponse())
            codes[status] += 1
            assert status == response["code"] and (status < 500 or status == 503), (number, body, kind)
            assert not re.search(INTERNALS, response["msg"]), response
            if number % 40 == 0:  # garbage on a connection of its own, and gone
                with service.connect() as garbage:
                    garbage.sendall(generator.bytes(200))
    assert min(codes[code] for code in (200, 400, 415, 422)) > 10, codes
    assert resident[1] - resident[0] < 20 and threads[0] == threads[1], (resident, threads)
    wait(service.is_empty)
    assert service.send("/predict", {"content": base64_of(png(250))})[1]["data"][0]["class"] == "bright"
