"""What other programs and web pages meet: HEAD, proxies, Host and Origin, CORS, offers of other protocols."""

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.service import launcher
from deploy.service.origins import AllowedOrigins
from deploy.service.routes import PAGE_FILES
from tests.helpers.serving import (
    JSON,
    METADATA,
    PATIENCE_S,
    RunningService,
    base64_of,
    multipart,
    png,
    read_all,
    serving,
)

GOOD = {"content": base64_of(png(250))}
GETS = (*PAGE_FILES, "/info", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")
SITE = "https://www.example.org"


def post(one: RunningService, path: str = "/predict", **headers: str) -> tuple[int, Any]:
    """Send a good image with these headers, underscores for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return one.send(path, GOOD, {**JSON, **named})[:2]


# --- HEAD, slashes, proxies


@pytest.mark.parametrize("path", GETS)
def test_head_answers_as_get_does_without_a_body(path: str, service: RunningService) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE_S)
    answers = []
    for method in ("GET", "HEAD", "GET"):  # over one connection: a body after HEAD would begin the next response
        connection.request(method, path)
        response = connection.getresponse()
        answers.append((response.status, dict(response.getheaders()), response.read()))
    connection.close()
    (status, headers, body), (status_of_head, headers_of_head, none), _ = answers
    assert status == status_of_head == 200 and body and none == b""
    different = {"date", "content-length"} if path == "/metrics" else {"date"}
    assert {k: v for k, v in headers.items() if k not in different} == {
        k: v for k, v in headers_of_head.items() if k not in different
    }


def test_head_of_what_get_does_not_have(service: RunningService) -> None:
    for path, status in (("/predict", 405), ("/none", 404)):
        for method in ("GET", "HEAD"):
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE_S)
            connection.request(method, path)
            assert connection.getresponse().status == status
            connection.close()


@pytest.mark.parametrize("path", ["/predict/", "/info/", "//predict", "/docs/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_response_sends_a_client_elsewhere(path: str, method: str, service: RunningService) -> None:
    """A redirect would go to the Host that the client's proxy names, in http, with image and token."""
    status, response, headers = service.send(path, GOOD, {**JSON, "x-forwarded-proto": "https"}, method)
    assert (status, "location" in headers, response["code"]) == (404, False, 404)


@pytest.mark.parametrize("prefix", ["", "/classify"])
def test_below_a_path_of_a_proxy(prefix: str, page: Path) -> None:
    """It removes the path, or it does not."""
    with serving(page, "--root_path", "/classify", token="abc") as one:
        allowed = {"authorization": "Bearer abc"}
        assert one.send(f"{prefix}/predict", GOOD, {**JSON, **allowed})[0] == 200
        assert one.send(f"{prefix}/predict", GOOD)[0] == 401
        assert one.get(f"{prefix}/")[0] == one.get(f"{prefix}/readyz")[0] == 200
        description = one.get(f"{prefix}/openapi.json")[1]
        assert description["servers"] == [{"url": "/classify"}]
        assert one.send("/classify/predict/", GOOD, {**JSON, **allowed})[0] == 404
        metrics = one.get("/metrics", **allowed)[1].decode()
        assert 'service_requests_total{code="200",route="/predict"} 1.0' in metrics


@pytest.mark.parametrize("path", ["classify", "/classify/", "/", "//a", "/a?b", "/a b"])
def test_mistaken_root_paths(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launcher.main(["--weights", "x.pth", "--root_path", path])
    assert "must be a path such as /classify, without a slash at its end" in capsys.readouterr().err


# --- Host, Origin, CORS


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "a.localhost."]
)
def test_names_of_this_machine(host: str, service: RunningService) -> None:
    assert service.send("/info", None, {"host": host}, "GET")[0] == 200
    assert post(service, host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["rebound.example.org", "rebound.example.org:8080", "192.168.1.5", "localhost.example.org", "[::2]"]
)
def test_another_name_reads_nothing(host: str, service: RunningService) -> None:
    """A website's name that is made to point to this machine: the browser takes it for that site's own."""
    for path in ("/info", "/", "/metrics", "/openapi.json"):
        status, response, _ = service.send(path, None, {"host": host}, "GET")
        assert status == 421 and response["msg"].startswith(
            f'this service is not called "{host.strip("[]").split(":80")[0]}"'
        )
    assert post(service, host=host)[0] == 421
    assert service.send("/readyz", None, {"host": host}, "GET")[0] == 200  # load balancers


def test_no_name_at_all(service: RunningService) -> None:
    with service.connect() as connection:
        connection.sendall(b"GET /info HTTP/1.0\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"origin": "http://127.0.0.1:{port}"}, 200),
        ({"origin": "http://127.0.0.1:{port}", "sec_fetch_site": "same-origin"}, 200),
        ({"origin": SITE, "sec_fetch_site": "same-origin"}, 200),  # its own page behind a proxy that names it otherwise
        ({"sec_fetch_site": "none"}, 200),
        ({"origin": SITE}, 403),
        ({"origin": SITE, "sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        (
            {"origin": "http://127.0.0.1:1", "sec_fetch_site": "same-site"},
            403,
        ),  # another program's page of this machine
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "127.0.0.1:{port}"}, 403),
    ],
)
def test_posts_of_foreign_pages_are_refused(headers: dict[str, str], status: int, service: RunningService) -> None:
    given = {name: value.format(port=service.port) for name, value in headers.items()}
    code, response = post(service, **given)
    assert code == status
    if status == 403:
        assert response["msg"] == "a page of another origin may not send this; --cors_origins allows one"
    assert service.send("/info", None, {k.replace("_", "-"): v for k, v in given.items()}, "GET")[0] == 200


def test_a_refused_post_reaches_no_decoder(page: Path) -> None:
    with serving(page) as one:
        before = len(one.backend.sizes)
        assert post(one, origin=SITE)[0] == 403 and post(one, host="example.org")[0] == 421
        assert len(one.backend.sizes) == before
        assert one.metric('service_requests_total{code="403",route="/predict"}') == 1


@pytest.fixture(scope="module")
def open_service(page: Path) -> Iterator[RunningService]:
    with serving(page, "--allowed_hosts", "Www.Example.org", "--cors_origins", "https://other.example") as one:
        yield one


def test_named_hosts_and_origins(open_service: RunningService) -> None:
    assert post(open_service, host="www.example.org:8443")[0] == 200
    assert post(open_service, host="www.example.org", origin=SITE)[0] == 200
    assert post(open_service, origin=SITE)[0] == 200  # of its own page: the proxy names it otherwise
    assert post(open_service, host="example.org")[0] == 421
    assert post(open_service, origin="https://other.example", sec_fetch_site="cross-site")[0] == 200
    assert post(open_service, origin="https://third.example", sec_fetch_site="cross-site")[0] == 403


def test_cors_answers_named_origins_alone(open_service: RunningService, service: RunningService) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    for one, origin, expected in (
        (open_service, "https://other.example", "https://other.example"),
        (open_service, "https://third.example", None),
        (service, "https://other.example", None),
    ):
        headers = one.send("/predict", None, {"origin": origin, **asks}, "OPTIONS")[2]
        assert headers.get("access-control-allow-origin") == expected
        assert one.send("/info", None, {"origin": origin}, "GET")[2].get("access-control-allow-origin") == expected
    refused = open_service.send("/predict", b"x", {"origin": "https://other.example"})
    assert refused[0] == 415 and refused[2]["access-control-allow-origin"] == "https://other.example"


def test_any_host_and_any_origin(page: Path) -> None:
    with serving(page, "--allowed_hosts", "*", "--cors_origins", "*") as one:
        assert post(one, host="example.org", origin=SITE, sec_fetch_site="cross-site")[0] == 200


@pytest.mark.parametrize(
    ("host", "own_address", "status"),
    [
        ("192.168.1.5:8080", "192.168.1.5", 0),
        ("10.0.0.1", "192.168.1.5", 0),  # forwarded to it; no website's name is a number
        ("10.0.0.1", "127.0.0.1", 421),
        ("example.org", "192.168.1.5", 421),
        ("localhost", "192.168.1.5", 0),
        ("[fe80::1]:80", "fe80::1", 0),
        ("0x7f.1", "192.168.1.5", 421),
        ("a" * 5000, "192.168.1.5", 421),
        ("[::1", "192.168.1.5", 421),
    ],
)
def test_a_service_in_a_network(host: str, own_address: str, status: int) -> None:
    code, reason = AllowedOrigins().refusal("GET", "/info", {b"host": host.encode()}, own_address)
    assert code == status and len(reason) < 400


@pytest.mark.parametrize("origin", ["example.org", "https://", "https://a/", "https://a b", "null"])
def test_mistaken_origins(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launcher.main(["--weights", "x.pth", "--cors_origins", origin])
    assert "must be an origin such as https://www.example.org, or *" in capsys.readouterr().err


# --- examples


def test_the_documentation_names_no_class_of_the_net(page: Path) -> None:
    with serving(page, token="abc") as one:
        for path in ("/openapi.json", "/docs"):
            content = one.get(path)[1]
            text = content.decode() if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False)
            text = re.sub("<style>.*?</style>", "", text)  # it says "dark" of its colours
            assert "cat" in text
            assert not [name for name in METADATA.class_names if re.search(rf"\b{name}\b", text, re.IGNORECASE)]


# --- offers of another protocol, forms


def request(body: bytes, *headers: str) -> bytes:
    lines = ["POST /predict HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


OFFERS = (
    ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    ("Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA"),
    ("Upgrade: TLS/1.0", "Connection: Upgrade"),
)


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("piece", [1, 7, 10**6])
def test_an_offer_of_another_protocol_is_ignored_and_the_body_read(
    offer: tuple[str, ...], is_chunked: bool, piece: int, service: RunningService
) -> None:
    """Two requests on one connection, in pieces: the second is read where the first one ends."""
    content = json.dumps(GOOD).encode()
    framing, body = f"Content-Length: {len(content)}", content
    if is_chunked:
        framing, body = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    data = request(body, *offer, framing) * 2
    with service.connect() as connection:
        for first in range(0, len(data), piece):
            connection.sendall(data[first : first + piece])
        received = b""
        while received.count(b'"class":"bright"') < 2:
            more = connection.recv(65536)
            assert more, received
            received += more
        assert received.count(b"HTTP/1.1 200 ") == received.count(b"HTTP/1.1 ") == 2


def test_an_offer_without_a_body_and_with_a_close(service: RunningService) -> None:
    get = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: {}\r\n\r\n"
    with service.connect() as connection:
        connection.sendall((get.format("upgrade") + get.format("upgrade, close")).encode())
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 200 ") == 2 and received.count(b'{"status":"ok"}') == 2


@pytest.mark.parametrize(
    "disposition",
    [
        "name=\"content\"; filename*=UTF-8''%e7%8c%ab.png",
        "filename*=utf-8'en'a.png; name=content",
        "name=\"content\"; FileName* = UTF-8''a",
    ],
)
def test_a_file_whose_name_is_encoded_is_a_file(disposition: str, service: RunningService) -> None:
    body, kind = multipart([("content", None, png(250))])
    body = body.replace(b'name="content"', disposition.encode())
    assert service.send("/predict", body, {"content-type": kind})[0] == 200


def test_a_name_that_only_looks_so_is_a_text(service: RunningService) -> None:
    body, kind = multipart([("content", None, base64_of(png(250)).encode())])
    body = body.replace(b'name="content"', b'name="content"; x="; filename*=UTF-8\'\'a"')
    assert service.send("/predict", body, {"content-type": kind})[0] == 200
