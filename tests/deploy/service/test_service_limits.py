"""What the service refuses, drops and survives: limits, slow senders, those that leave, a thousand bad requests."""

import http.client
import io
import json
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.paths import ROOT
from deploy.service.http_protocol import MAX_AHEAD
from tests.deploy.service.test_batching import png
from tests.deploy.service.test_request_parser import multipart
from tests.helpers.serving import JSON, PATIENCE_S, Served, all_of, base64_of, read, serving, wait, write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def served(page: Path) -> Iterator[Served]:
    with serving(page, "--max_body_mb", 1, "--max_picture_mb", 1, "--max_megapixels", 1, "--max_pictures", 4) as one:
        yield one


@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_has_its_limit_with_and_without_a_length(served: Served, has_length: bool) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(50_000)

    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)
    length = {"content-length": "2000000"} if has_length else {"transfer-encoding": "chunked"}
    connection.request("POST", "/predict", parts(), {**JSON, **length}, encode_chunked=not has_length)
    status, answer, _ = read(connection.getresponse())
    assert (status, answer["msg"]) == (413, "the body has more than 1 MB")
    connection.request("GET", "/healthz")  # the rest of the body has been thrown away
    assert read(connection.getresponse())[0] == 200
    connection.close()


def test_a_length_alone_is_refused_before_any_byte_of_the_body(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 1000001\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 20_000 + b"\r\n\r\n",  # one chunk
        b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 3_000 + b"\r\n",
        b"GET /" + b"a" * 300_000,  # no end in sight
        b"\r\n" * 9_000,
    ],
    ids=["line", "lines", "endless", "nothing"],
)
def test_headers_have_their_limit(served: Served, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        head, _, body = all_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["msg"] == "the first line and headers have more than 16384 bytes"
    assert b'service_errors_total{code="431",route="other"}' in served.get("/metrics")[1]


@pytest.mark.parametrize("after", [b"x" * 30 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n"])
def test_what_comes_after_a_request_costs_it_no_answer(
    served: Served, after: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps({"content": base64_of(png())}).encode()
    served.backend.gate.clear()
    with served.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n")
        connection.sendall(b"content-length: %d\r\n\r\n" % len(body) + body + after)
        time.sleep(0.2)
        served.backend.gate.set()
        answers = all_of(connection)
    assert answers.startswith(b"HTTP/1.1 200 ") and answers.count(b"HTTP/1.1 ") == 1
    assert not caplog.records


@pytest.mark.parametrize(
    ("start", "more"),
    [(b"0\r\n", b"x: y\r\n"), (b"0\r\nx: ", b"y"), (b"2;x=", b"y"), (b"", b"0")],
    ids=["trailers", "endless trailer", "extension", "size"],
)
def test_what_a_chunked_body_has_beside_its_chunks_has_a_limit(served: Served, start: bytes, more: bytes) -> None:
    """uvicorn keeps every trailer: 80 MB of them took 1 GB, and the service seconds for each other request."""
    with served.connect() as connection, pytest.raises(ConnectionError):
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n" + start
        )
        for _ in range(400):
            connection.sendall(more * (65_536 // len(more)))
    assert served.get("/healthz")[0] == 200


def test_small_trailers_and_chunks_of_one_byte_are_fine(served: Served) -> None:
    body = json.dumps({"content": base64_of(png(250)), "unknown": "x" * 20_000}).encode()
    chunks = b"".join(b"1;a=b\r\n%c\r\n" % byte for byte in body) + b"0\r\nx: y\r\n\r\n"
    with served.connect() as connection:
        head = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\n"
        connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n" + chunks)
        assert all_of(connection).startswith(b"HTTP/1.1 200 ")


def test_requests_sent_ahead_have_a_limit(served: Served) -> None:
    """Of thousands at once some are answered, each whole and the last one with a close; others are not held up."""
    with served.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n" * 2_000)
        received = all_of(connection)
    count = received.count(b"HTTP/1.1 200 OK")
    assert 1 < count <= 2 + MAX_AHEAD and received.count(b'{"status":"ok"}') == count
    assert received.count(b"connection: close") == 1 and received.endswith(b'{"status":"ok"}')
    assert served.get("/healthz")[0] == 200


@pytest.mark.parametrize(
    "sent", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.1\r\n\r\n", b"GET / HTTP/1.1\r\na\r\n\r\n"]
)
def test_what_is_no_http_gets_a_sentence(served: Served, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        head, _, body = all_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body) == {"code": 400, "msg": "this is not a request of HTTP/1.1", "data": []}


@pytest.fixture(scope="module")
def strict(page: Path) -> Iterator[Served]:
    limits = ("--header_timeout_s", 0.4, "--request_timeout_s", 0.8, "--queue", 2, "--max_pictures", 2)
    with serving(page, *limits, "--max_connections", 20, "--max_pending_mb", 1, "--http_status", "ok") as one:
        yield one


def test_a_slow_sender_of_headers_is_let_go(strict: Served) -> None:
    for start in (b"", b"POST /predict HTTP/1.1\r\nhost: a\r\n", b"\r\n"):
        with strict.connect() as connection:
            connection.sendall(start)
            answer = all_of(connection)
        assert answer.startswith(b"HTTP/1.1 408 "), start
        assert b"the headers did not come within 0.4 seconds" in answer


def test_a_slow_sender_of_a_body_is_let_go_however_busy(strict: Served) -> None:
    with strict.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n")
        for _ in range(6):
            connection.sendall(b"x")
            time.sleep(0.1)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")  # --http_status ok
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
        "code": 408,
        "msg": "the request did not come within 0.8 seconds",
        "data": [],
    }


def test_status_200_for_those_who_look_at_the_code_alone(strict: Served) -> None:
    for path, code in (("/predict", 400), ("/nowhere", 404)):
        status, answer, _ = strict.ask(path, b"{")
        assert (status, answer["code"]) == (200, code)
    assert strict.metric('service_errors_total{code="400",route="/predict"}') == 1
    assert strict.metric('service_errors_total{code="404",route="other"}') == 1


def test_a_full_queue_and_a_net_that_takes_too_long(strict: Served) -> None:
    strict.backend.gate.clear()
    got: list[tuple[int, Any, Mapping[str, str]]] = []
    body = {"content": [base64_of(png())] * 2}
    waiting = threading.Thread(target=lambda: got.append(strict.ask("/predict", body)))
    waiting.start()
    wait(lambda: strict.metric("service_queue_pictures") == 2)
    _, answer, headers = strict.ask("/predict", body)
    assert (answer["code"], answer["msg"]) == (503, "2 images are waiting; try again later")
    assert headers["retry-after"] == "1"
    assert strict.get("/readyz")[:2] == (503, {"status": "not ready"})
    waiting.join()
    assert got[0][1]["msg"] == "no answer within 0.8 seconds; try again later"
    strict.backend.gate.set()
    wait(strict.is_empty)
    assert strict.get("/readyz")[:2] == (200, {"status": "ready"})
    assert strict.ask("/predict", body)[1]["code"] == 200


def test_bodies_of_all_requests_together_have_their_limit(strict: Served) -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 900000\r\n\r\n" + bytes(600_000))

    with strict.connect() as first, strict.connect() as second:
        send(first)
        time.sleep(0.1)
        send(second)
        answer = json.loads(second.recv(65536).partition(b"\r\n\r\n")[2])
        assert (answer["code"], answer["msg"]) == (503, "requests of 1 MB are being answered; try again later")
        assert b'"code":408' in first.recv(65536)  # and its bytes are counted no more
    assert strict.ask("/predict", {"content": base64_of(png()), "x": "y" * 900_000})[1]["code"] == 200


def test_so_many_connections(strict: Served) -> None:
    wait(lambda: strict.get("/healthz")[0] == 200)
    with ExitStack() as held:
        for _ in range(20):
            held.enter_context(strict.connect())
        answer = all_of(held.enter_context(strict.connect()))
    assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1\r\n" in answer
    assert b"20 connections are open; try again later" in answer
    wait(lambda: strict.get("/healthz")[0] == 200)
    assert b'service_errors_total{code="503",route="other"}' in strict.get("/metrics")[1]


def test_a_client_that_leaves_leaves_nothing(served: Served) -> None:
    served.backend.entered.clear()
    served.backend.gate.clear()
    body = json.dumps({"content": [base64_of(png())] * 4}).encode()
    before = sum(served.backend.sizes)
    with ExitStack() as held:
        for _ in range(5):
            connection = held.enter_context(served.connect())
            connection.sendall(b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n")
            connection.sendall(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        wait(lambda: served.metric("service_queue_pictures") == 20)
    wait(lambda: served.metric('service_requests_total{code="499",route="/predict"}') >= 5)
    served.backend.gate.set()
    wait(served.is_empty)
    assert sum(served.backend.sizes) - before <= 8  # the batch that was in the net, and no other
    with served.connect() as connection:  # half a body, then gone
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\nabc")
    wait(lambda: served.metric('service_requests_total{code="499",route="/predict"}') >= 6)
    assert served.ask("/predict", {"content": base64_of(png())})[0] == 200


# --- thousands of bad requests


def encoded(generator: np.random.Generator) -> bytes:
    """Give an image of some format and mode, whole or not."""
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
    """Give a body and its type: some right, most wrong in a place or two."""
    data = encoded(generator)
    text = base64_of(data)
    odd: list[Any] = [
        None,
        True,
        1e308,
        -1,
        "",
        "data:,",
        "http://a",
        "\ud800",
        "\x00",
        [],
        {},
        [[text]],
        [text] * 9,
        text[:-3],
        f"data:image/png;base64,{text}",
    ]
    content = text if generator.random() < 0.5 else odd[generator.integers(len(odd))]
    values = {"content": content, "need_heatmap": [True, False, "1", 2, None, "é"][generator.integers(6)], "loud": "x"}
    if generator.random() < 0.5:
        del values["need_heatmap"], values["loud"]
    kind = generator.integers(4)
    if kind == 0:
        body, title = json.dumps(values).encode(), "application/json"
    elif kind == 1:
        body, title = (
            f"content={content}&need_heatmap=%zz&=&&x".encode("utf-8", "replace"),
            "application/x-www-form-urlencoded",
        )
    else:
        body, title = multipart([("content", "a" if kind == 2 else None, data), ("need_heatmap", None, b"1")])
    if generator.random() < 0.3:
        changed = bytearray(body)
        for _ in range(generator.integers(1, 4)):
            changed[generator.integers(len(changed))] = generator.integers(256)
        body = bytes(changed)
    if generator.random() < 0.1:
        body = body[: generator.integers(len(body))]
    if generator.random() < 0.1:
        title = [
            "",
            "text/plain",
            "application/json; charset=\xff",
            "multipart/form-data",
            "multipart/form-data; boundary=" + "é" * 9,
        ][generator.integers(5)]
    return body, title


OWN_WORDS = rf"Traceback|File \"|0x[0-9a-f]{{6}}|site-packages|{re.escape(str(ROOT))}"


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.fixture
def slow_senders(served: Served) -> Iterator[None]:
    """Let thirty begin a request, each a little further, and never finish it."""
    with ExitStack() as held:
        for number in range(30):
            one = held.enter_context(served.connect())
            one.sendall(b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\nabc"[: 10 + 2 * number])
        yield


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of odd metadata; `serve` ignores it too
@pytest.mark.usefixtures("slow_senders")
def test_a_thousand_bad_requests_change_nothing(served: Served) -> None:
    generator = np.random.default_rng(0)
    codes: Counter[int] = Counter()
    resident, threads = [], []
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)) as connection:
        for number in range(1200):
            if number in (400, 1199):
                resident.append(resident_mb())
                threads.append(threading.active_count())
            body, kind = fuzzed(generator)
            headers = {"content-type": kind.encode("latin-1", "replace")}
            connection.request("POST", ["/predict", "/other"][number % 2], body, headers)
            status, answer, _ = read(connection.getresponse())
            codes[status] += 1
            assert status == answer["code"] and (status < 500 or status == 503), (number, body, kind)
            assert not re.search(OWN_WORDS, answer["msg"]), answer
            if number % 40 == 0:  # garbage on a connection of its own, and gone
                with served.connect() as garbage:
                    garbage.sendall(generator.bytes(200))
    assert min(codes[code] for code in (200, 400, 415, 422)) > 10, codes
    assert resident[1] - resident[0] < 20 and threads[0] == threads[1], (resident, threads)
    wait(served.is_empty)
    assert served.ask("/predict", {"content": base64_of(png(250))})[1]["data"][0]["class"] == "bright"
