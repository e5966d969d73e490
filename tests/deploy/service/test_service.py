"""The service as it is used: a real server on a real port, good requests and mistaken ones."""

import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.backends.base import BackendError
from deploy.inference.predictor import Predictor
from deploy.service.routes import NATIVE, ServiceError
from deploy.service.server import service_of
from tests.deploy.service.test_batching import METADATA, GatedBackend, png
from tests.deploy.service.test_request_parser import multipart
from tests.helpers.serving import JSON, PATIENCE_S, Served, all_of, read, serving, wait, write_page
from tests.helpers.serving import base64_of as base64_of
from tests.helpers.serving import flags as flags


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def served(page: Path) -> Iterator[Served]:
    with serving(page, "--max_body_mb", 1, "--max_picture_mb", 1, "--max_megapixels", 1, "--max_pictures", 4) as one:
        yield one


# --- answers


def test_every_kind_of_body_gives_the_same_answer(served: Served) -> None:
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
        status, answer, got = served.ask("/predict", sent, headers)
        assert (status, answer["code"], answer["msg"], got["content-type"]) == (200, 200, "ok", "application/json")
        assert answer["data"] == [json.loads(json.dumps(expected))]  # one image alone: to the bit


def test_several_images_in_order_and_a_route_of_another_shape(served: Served) -> None:
    images = [base64_of(png(value)) for value in (0, 250, 0)]
    answer = served.ask("/predict", {"content": images})[1]
    assert [entry["class"] for entry in answer["data"]] == ["dark", "bright", "dark"]
    assert served.ask("/other", {"content": images})[1]["data"] == [
        {"said": "DARK"},
        {"said": "BRIGHT"},
        {"said": "DARK"},
    ]
    quiet = served.ask("/other", {"content": images[0], "loud": False})[1]
    assert quiet == {"code": 200, "msg": "ok", "data": [{"said": ""}]}


def test_a_kept_connection_answers_again_and_again(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)
    for value, name in ((0, "dark"), (250, "bright"), (0, "dark")):
        connection.request("POST", "/predict", json.dumps({"content": base64_of(png(value))}), JSON)
        assert read(connection.getresponse())[1]["data"][0]["class"] == name
    connection.close()


def test_requests_that_come_while_the_net_works_go_together(served: Served) -> None:
    before = len(served.backend.sizes)
    served.backend.entered.clear()
    served.backend.gate.clear()
    answers: list[int] = []
    body = {"content": base64_of(png())}
    threads = [threading.Thread(target=lambda: answers.append(served.ask("/predict", body)[0])) for _ in range(6)]
    threads[0].start()
    assert served.backend.entered.wait(PATIENCE_S)
    for thread in threads[1:]:
        thread.start()
    wait(lambda: served.metric("service_queue_pictures") == 6)
    served.backend.gate.set()
    for thread in threads:
        thread.join()
    assert answers == [200] * 6
    assert served.backend.sizes[before:][0] == 1 and len(served.backend.sizes) - before <= 3
    assert sum(served.backend.sizes[before:]) == 6


# --- mistakes


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
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
def test_a_mistake_is_a_sentence(served: Served, body: object, status: int, sentence: str) -> None:
    got, answer, headers = served.ask("/predict", body)
    assert (got, answer["code"], answer["data"]) == (status, status, [])
    assert answer["msg"].startswith(sentence)
    assert headers["content-type"] == "application/json"


def test_other_types_and_compressed_bodies(served: Served) -> None:
    assert served.ask("/predict", b"{}", {})[1]["msg"].endswith("and there is none")
    status, answer, _ = served.ask("/predict", b"x", {**JSON, "content-encoding": "gzip"})
    assert (status, answer["msg"]) == (415, "compressed bodies are not read; leave out Content-Encoding")


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("POST", "/nowhere/../etc", 404, "there is no /nowhere/../etc here; see /docs"),
        ("GET", "/predict", 405, "/predict does not take GET; see /docs"),
        ("DELETE", "/metrics", 405, "/metrics does not take DELETE; see /docs"),
        ("GET", "/page/index.html", 404, "there is no /page/index.html here; see /docs"),
        ("GET", "/%00%22", 404, 'there is no /\x00" here; see /docs'),
    ],
)
def test_other_paths_and_methods(served: Served, method: str, path: str, status: int, sentence: str) -> None:
    got, answer, headers = served.ask(path, None, {}, method)
    assert (got, answer) == (status, {"code": status, "msg": sentence, "data": []})
    assert status != 405 or headers["allow"]


def test_a_fault_of_the_service_shows_nothing_of_itself(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.service.handlers.read_upload", lambda *_: divmod(1, 0))
    status, answer, _ = served.ask("/predict", {"content": "YQ=="})
    assert (status, answer) == (500, {"code": 500, "msg": "the service failed; its log says why", "data": []})


def test_a_net_that_fails_is_busy_and_says_why_in_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.backend.failure = BackendError("/a/path: the net broke")
    try:
        status, answer, headers = served.ask("/predict", {"content": base64_of(png())})
    finally:
        served.backend.failure = None
    assert (status, answer["msg"], headers["retry-after"]) == (503, "the net failed; try again later", "1")
    assert "/a/path: the net broke" in caplog.text


# --- what else is served


def test_the_page_comes_whole_with_a_strict_policy(served: Served) -> None:
    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
    ):
        status, content, headers = served.get(path)
        assert (status, content.decode(), headers["content-type"]) == (200, f"猫 {name}", f"{kind}; charset=utf-8")
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_a_missing_file_of_the_page_is_named(tmp_path: Path) -> None:
    sentence = r"index\.html: cannot read this file of the page: No such file"
    one = service_of(Predictor(GatedBackend(), METADATA), [NATIVE], flags(), page=tmp_path)
    with pytest.raises(ServiceError, match=sentence), one:
        pass


def test_info_health_and_the_description(served: Served) -> None:
    assert served.get("/info")[1] == {
        "classes": ["dark", "bright", "grey"],
        "net": "n",
        "input": "8x8",
        "heatmap": False,
        "calibrated": False,
    }
    assert served.get("/healthz")[:2] == (200, {"status": "ok"})
    assert served.get("/readyz")[:2] == (200, {"status": "ready"})
    told = served.get("/openapi.json")[1]
    body = told["paths"]["/other"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/x-www-form-urlencoded", "multipart/form-data"}
    assert body["application/json"]["schema"]["properties"]["loud"] == {"type": "boolean", "default": True}
    example = told["paths"]["/other"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert example == {"code": 200, "msg": "ok", "data": [{"said": "DARK"}]}
    status, content, headers = served.get("/docs")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    text = content.decode()
    assert "POST /predict" in text and "need_heatmap" in text
    assert not re.search(r"https?://|<script|<link|<img", text)  # nothing comes from anywhere


def test_metrics_count_what_happens(served: Served) -> None:
    names = (
        'service_requests_total{code="200",route="/other"}',
        "service_batch_pictures_sum",
        "service_net_seconds_count",
    )
    seconds = 'service_request_seconds_count{route="/other"}'
    errors = 'service_errors_total{code="422",route="/other"}'
    before = [served.metric(name) for name in (*names, seconds, errors)]
    served.ask("/other", {"content": [base64_of(png())] * 3})
    served.ask("/other", {"content": ""})
    requests, images, batches, counted, refused = (
        served.metric(name) - old for name, old in zip((*names, seconds, errors), before, strict=True)
    )
    assert (requests, images, counted, refused) == (1, 3, 2, 1)
    assert 1 <= batches <= 3
    assert served.metric("process_resident_memory_bytes") > 10**6
    text = served.get("/metrics")[1].decode()
    assert set(re.findall(r'route="([^"]*)"', text)) <= {"/predict", "/other", "other"}


def test_a_token_is_asked_for_by_all_that_tells_something(page: Path) -> None:
    with serving(page, token="sésame") as guarded:
        body = {"content": base64_of(png())}
        for given in (None, "sésame", "Bearer", "Bearer sesame", "Basic sésame", "Bearer sésame x"):
            headers = JSON if given is None else {**JSON, "authorization": given.encode().decode("latin-1")}
            status, answer, got = guarded.ask("/predict", body, headers)
            assert (status, answer["msg"]) == (401, "the bearer token is missing or wrong"), given
            assert got["www-authenticate"] == "Bearer"
        with guarded.connect() as connection:
            connection.sendall(b"GET /info HTTP/1.1\r\nauthorization: Bearer \xff\xfe\r\nconnection: close\r\n\r\n")
            assert all_of(connection).startswith(b"HTTP/1.1 401 ")
        right = {"authorization": "bearer sésame".encode().decode("latin-1")}
        assert guarded.ask("/predict", body, {**JSON, **right})[0] == 200
        assert guarded.get("/info")[0] == guarded.get("/metrics")[0] == 401
        assert guarded.get("/metrics", **right)[0] == 200
        for path in ("/healthz", "/readyz", "/", "/page.js", "/docs"):
            assert guarded.get(path)[0] == 200, path
