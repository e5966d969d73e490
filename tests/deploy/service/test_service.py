"""The service on a real port: valid requests, errors, and the other routes."""

import http.client
import json
import re
import threading
from pathlib import Path

import pytest

from deploy.backends.base import BackendError
from deploy.inference.predictor import Predictor
from deploy.service.routes import NATIVE, ServiceError
from deploy.service.server import open_server
from tests.helpers.serving import (
    JSON,
    METADATA,
    PATIENCE_S,
    GatedBackend,
    RunningService,
    base64_of,
    flags,
    multipart,
    png,
    read,
    read_all,
    serving,
    wait,
)

# --- predictions


def test_every_content_type_gives_the_same_response(service: RunningService) -> None:
    image = png(250)
    text = base64_of(image)
    expected = Predictor(GatedBackend(), METADATA).predict_images([METADATA.preprocess.decode(image)])[0].to_dict()
    del expected["file"]
    body, kind = multipart([("content", "a.png", image)])
    for sent, headers in (
        ({"content": text}, JSON),
        ({"content": [f"data:image/png;base64,{text}"], "need_heatmap": True}, JSON),  # this net has none
        (f"content={text}".encode(), {"content-type": "application/x-www-form-urlencoded"}),
        (body, {"content-type": kind}),
    ):
        status, response, got = service.send("/predict", sent, headers)
        assert (status, response["code"], response["msg"], got["content-type"]) == (200, 200, "ok", "application/json")
        assert response["data"] == [json.loads(json.dumps(expected))]  # one image alone: to the bit


def test_several_images_in_order_and_a_route_of_another_shape(service: RunningService) -> None:
    images = [base64_of(png(value)) for value in (0, 250, 0)]
    response = service.send("/predict", {"content": images})[1]
    assert [entry["class"] for entry in response["data"]] == ["dark", "bright", "dark"]
    assert service.send("/other", {"content": images})[1]["data"] == [
        {"name": "DARK"},
        {"name": "BRIGHT"},
        {"name": "DARK"},
    ]
    quiet = service.send("/other", {"content": images[0], "loud": False})[1]
    assert quiet == {"code": 200, "msg": "ok", "data": [{"name": ""}]}


def test_a_connection_is_kept_for_several_requests(service: RunningService) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE_S)
    for value, name in ((0, "dark"), (250, "bright"), (0, "dark")):
        connection.request("POST", "/predict", json.dumps({"content": base64_of(png(value))}), JSON)
        assert read(connection.getresponse())[1]["data"][0]["class"] == name
    connection.close()


def test_requests_that_arrive_while_the_net_works_share_a_batch(service: RunningService) -> None:
    before = len(service.backend.sizes)
    service.backend.entered.clear()
    service.backend.gate.clear()
    statuses: list[int] = []
    body = {"content": base64_of(png())}
    threads = [threading.Thread(target=lambda: statuses.append(service.send("/predict", body)[0])) for _ in range(6)]
    threads[0].start()
    assert service.backend.entered.wait(PATIENCE_S)
    for thread in threads[1:]:
        thread.start()
    wait(lambda: service.metric("service_queue_pictures") == 6)
    service.backend.gate.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 6
    assert service.backend.sizes[before:][0] == 1 and len(service.backend.sizes) - before <= 3
    assert sum(service.backend.sizes[before:]) == 6


# --- errors


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is not JSON"),
        (
            {"content": "https://example.org/a.png"},
            400,
            "content: addresses are not fetched; send the image itself, in base64",
        ),
        ({"content": ""}, 422, "content: it is empty (0 bytes)"),
        ({"content": [base64_of(png()), base64_of(b"text")]}, 422, "content[1]: it is not an image of a known format"),
        (
            {"content": base64_of(png(size=(1001, 1000)))},
            422,
            "content: 1001x1000 is more than max_pixels (1000000) allows",
        ),
        ({"content": [base64_of(png())] * 5}, 413, "a request may hold 4 images, this one has 5"),
        ({"content": "\ud800"}, 400, "content: it is neither base64 nor a data URL"),
        ({"content": "YQ==", "need_heatmap": "\udfff"}, 400, 'need_heatmap must be true or false, got "\udfff"'),
    ],
    ids=range(8),
)
def test_an_error_has_a_message(service: RunningService, body: object, status: int, message: str) -> None:
    got, response, headers = service.send("/predict", body)
    assert (got, response["code"], response["data"]) == (status, status, [])
    assert response["msg"].startswith(message)
    assert headers["content-type"] == "application/json"


def test_other_types_and_compressed_bodies(service: RunningService) -> None:
    assert service.send("/predict", b"{}", {})[1]["msg"].endswith("and there is none")
    status, response, _ = service.send("/predict", b"x", {**JSON, "content-encoding": "gzip"})
    assert (status, response["msg"]) == (415, "compressed bodies are not read; leave out Content-Encoding")


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/nowhere/../etc", 404, "there is no /nowhere/../etc here; see /docs"),
        ("GET", "/predict", 405, "/predict does not take GET; see /docs"),
        ("DELETE", "/metrics", 405, "/metrics does not take DELETE; see /docs"),
        ("GET", "/page/index.html", 404, "there is no /page/index.html here; see /docs"),
        ("GET", "/%00%22", 404, 'there is no /\x00" here; see /docs'),
    ],
)
def test_other_paths_and_methods(service: RunningService, method: str, path: str, status: int, message: str) -> None:
    got, response, headers = service.send(path, None, {}, method)
    assert (got, response) == (status, {"code": status, "msg": message, "data": []})
    assert status != 405 or headers["allow"]


def test_a_bug_reveals_nothing_in_the_response(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.service.handlers.read_upload", lambda *_: divmod(1, 0))
    status, response, _ = service.send("/predict", {"content": "YQ=="})
    assert (status, response) == (500, {"code": 500, "msg": "internal error; see the log of the service", "data": []})


def test_a_failure_of_the_net_is_503_and_logged(service: RunningService, caplog: pytest.LogCaptureFixture) -> None:
    service.backend.failure = BackendError("/a/path: the net broke")
    try:
        status, response, headers = service.send("/predict", {"content": base64_of(png())})
    finally:
        service.backend.failure = None
    assert (status, response["msg"], headers["retry-after"]) == (503, "the net failed; try again later", "1")
    assert "/a/path: the net broke" in caplog.text


# --- other routes


def test_the_page_has_a_strict_content_security_policy(service: RunningService) -> None:
    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
        ("/texts.js", "texts.js", "text/javascript"),
    ):
        status, content, headers = service.get(path)
        assert (status, content.decode(), headers["content-type"]) == (200, f"猫 {name}", f"{kind}; charset=utf-8")
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_a_missing_file_of_the_page_is_named(tmp_path: Path) -> None:
    message = r"index\.html: cannot read this file of the page: No such file"
    one = open_server(Predictor(GatedBackend(), METADATA), [NATIVE], flags(), page=tmp_path)
    with pytest.raises(ServiceError, match=message), one:
        pass


def test_info_health_and_the_description(service: RunningService) -> None:
    assert service.get("/info")[1] == {
        "classes": ["dark", "bright", "grey"],
        "net": "n",
        "input": "8x8",
        "images": 1,
        "heatmap": False,
        "calibrated": False,
        "task": "classification",
        "output": "logits",
    }
    assert service.get("/healthz")[:2] == (200, {"status": "ok"})
    assert service.get("/readyz")[:2] == (200, {"status": "ready"})
    description = service.get("/openapi.json")[1]
    body = description["paths"]["/other"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/x-www-form-urlencoded", "multipart/form-data"}
    assert body["application/json"]["schema"]["properties"]["loud"] == {"type": "boolean", "default": True}
    example = description["paths"]["/other"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert example == {"code": 200, "msg": "ok", "data": [{"name": "CAT"}]}  # no class of this net
    status, content, headers = service.get("/docs")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    text = content.decode()
    assert "POST /predict" in text and "need_heatmap" in text
    assert not re.search(r"https?://|<script|<link|<img", text)  # nothing is loaded


def test_metrics_count_requests_and_images(service: RunningService) -> None:
    names = (
        'service_requests_total{code="200",route="/other"}',
        "service_batch_pictures_sum",
        "service_net_seconds_count",
    )
    seconds = 'service_request_seconds_count{route="/other"}'
    errors = 'service_errors_total{code="422",route="/other"}'
    before = [service.metric(name) for name in (*names, seconds, errors)]
    service.send("/other", {"content": [base64_of(png())] * 3})
    service.send("/other", {"content": ""})
    requests, images, batches, counted, refused = (
        service.metric(name) - old for name, old in zip((*names, seconds, errors), before, strict=True)
    )
    assert (requests, images, counted, refused) == (1, 3, 2, 1)
    assert 1 <= batches <= 3
    assert service.metric("process_resident_memory_bytes") > 10**6
    text = service.get("/metrics")[1].decode()
    assert set(re.findall(r'route="([^"]*)"', text)) <= {"/predict", "/other", "other"}


def test_a_token_is_required_by_all_routes_about_images_and_nets(page: Path) -> None:
    with serving(page, token="sésame") as guarded:
        body = {"content": base64_of(png())}
        for given in (None, "sésame", "Bearer", "Bearer sesame", "Basic sésame", "Bearer sésame x"):
            headers = JSON if given is None else {**JSON, "authorization": given.encode().decode("latin-1")}
            status, response, got = guarded.send("/predict", body, headers)
            assert (status, response["msg"]) == (401, "the bearer token is missing or wrong"), given
            assert got["www-authenticate"] == "Bearer"
        with guarded.connect() as connection:
            connection.sendall(b"GET /info HTTP/1.1\r\nauthorization: Bearer \xff\xfe\r\nconnection: close\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 401 ")
        right = {"authorization": "bearer sésame".encode().decode("latin-1")}
        assert guarded.send("/predict", body, {**JSON, **right})[0] == 200
        assert guarded.get("/info")[0] == guarded.get("/metrics")[0] == 401
        assert guarded.get("/metrics", **right)[0] == 200
        for path in ("/healthz", "/readyz", "/", "/page.js", "/docs"):
            assert guarded.get(path)[0] == 200, path
