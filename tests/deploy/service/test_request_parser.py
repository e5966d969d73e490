"""Request bodies: what is parsed, what is refused, and with which message."""

import base64
import json
import sys
import tracemalloc
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest

from deploy.service.limits import Limits
from deploy.service.request_parser import RequestError, Upload, read_upload
from tests.helpers.serving import multipart

SWITCHES = {"need_a": True, "need_b": False}
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
IMAGE = bytes(range(256)) + b"\xfb\xff\xfe" * 7  # its base64 has "+" and "/" in it
TEXT = base64.b64encode(IMAGE).decode()
Parts = list[tuple[str, str | None, bytes]]


def read(body: bytes, content_type: str, **limits: Any) -> Upload:
    return read_upload(body, content_type, SWITCHES, Limits(**limits))


def read_json(values: object, **limits: Any) -> Upload:
    return read(json.dumps(values).encode(), JSON, **limits)


def refusal(*args: Any, **limits: Any) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        read(*args, **limits)
    return caught.value.status, str(caught.value)


# --- what is parsed


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/png;name=a.png;Base64,{TEXT}",
        f"data:;base64,{TEXT}",
        base64.encodebytes(IMAGE).decode(),  # in lines of 76
        f" {TEXT}\r\n",
    ],
)
def test_json_takes_base64_and_data_urls(text: str) -> None:
    assert read_json({"content": text}) == Upload([IMAGE], SWITCHES)


def test_one_image_or_several_in_order_with_their_switches() -> None:
    images = [b"a", b"b", b"a"]
    texts = [base64.b64encode(image).decode() for image in images]
    expected = Upload(images, {"need_a": False, "need_b": True})
    assert read_json({"content": texts, "need_a": False, "need_b": True, "other": [1, {}]}) == expected
    pairs = [("content", texts[0]), ("need_a", "False"), ("content", texts[1]), ("need_b", "1"), ("content", texts[2])]
    assert read(urlencode(pairs).encode(), FORM) == expected
    listed = urlencode({"content": json.dumps(texts), "need_a": "false", "need_b": "true"})
    assert read(listed.encode(), f"{FORM}; charset=utf-8") == expected
    parts: Parts = [("content", "a.png", b"a"), ("need_a", None, b"0"), ("content", None, texts[1].encode())]
    assert read(*multipart([*parts, ("need_b", None, b"TRUE"), ("content", "", b"a")])) == expected


def test_base64_whose_plus_was_not_escaped_is_parsed() -> None:
    assert "+" in TEXT
    assert read(b"content=" + TEXT.encode(), FORM).images == [IMAGE]
    assert read(f"content={quote_plus(TEXT)}".encode(), FORM).images == [IMAGE]


@pytest.mark.parametrize("content", [IMAGE, b"", b"\r\n--not the boundary\r\n\r\n", b"\r\n", b"--" * 1000, b"\r"])
def test_a_file_arrives_to_the_byte(content: bytes) -> None:
    assert read(*multipart([("content", "猫.png", content)])).images == [content]


def test_a_part_that_is_no_text_is_a_file_without_a_file_name() -> None:
    body = b"--x\r\ncontent-disposition: form-data; name=content\r\ncontent-type: image/jpeg\r\n\r\n\xff\xd8\r\n--x--"
    assert read(body, "Multipart/Form-Data; boundary=x").images == [b"\xff\xd8"]


# --- what is refused


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is not JSON"),
        (b"{", 400, "the body is not JSON"),
        (b"\xff\xfe\x00", 400, "the body is not JSON"),
        (b"[" * 9_000, 400, "the body is not JSON"),
        (b'{"content": ' + b"9" * 5_000 + b"}", 400, "the body is not JSON"),
        (b"[]", 400, 'the JSON must be an object: {"content": ...}'),
        (b"{}", 400, 'there is no image: "content" is missing or empty'),
        (b'{"content": null}', 400, 'there is no image: "content" is missing or empty'),
        (b'{"content": []}', 400, 'there is no image: "content" is missing or empty'),
        (b'{"content": 1.5}', 400, "content must be a text in base64, got 1.5"),
        (b'{"content": ["YQ==", {"a": 1}]}', 400, 'content[1] must be a text in base64, got {"a": 1}'),
        (b'{"content": [["YQ=="]]}', 400, 'content must be a text in base64, got ["YQ=="]'),
        (b'{"content": "YQ="}', 400, "content: it is neither base64 nor a data URL"),
        (b'{"content": ["YQ==", "Y\\u732bQ=="]}', 400, "content[1]: it is neither base64 nor a data URL"),
        (b'{"content": "YQ-_"}', 400, "content: it is neither base64 nor a data URL"),
        (b'{"content": "YQ==", "need_a": "maybe"}', 400, 'need_a must be true or false, got "maybe"'),
        (b'{"content": "YQ==", "need_a": null}', 400, "need_a must be true or false, got null"),
        (
            b'{"content": "YQ==", "need_b": "%b"}' % (b"x" * 99),
            400,
            f'need_b must be true or false, got "{"x" * 40}..."',
        ),
        (b"[" * 10_001, 413, "the JSON holds more than 10000 values"),
    ],
    ids=range(19),
)
def test_json_that_is_refused(body: bytes, status: int, message: str) -> None:
    assert refusal(body, JSON) == (status, message)


@pytest.mark.parametrize("text", ["http://a/b.png", " HTTPS://a", "file:///etc/passwd", "ftp://a", "s3+x.y-z://a"])
@pytest.mark.parametrize("form", [True, False])
def test_an_address_is_not_fetched(text: str, form: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", None)
    monkeypatch.setattr("socket.getaddrinfo", None)
    body, kind = (urlencode({"content": text}), FORM) if form else (json.dumps({"content": text}), JSON)
    message = "content: addresses are not fetched; send the image itself, in base64"
    assert refusal(body.encode(), kind) == (400, message)


@pytest.mark.parametrize("text", ["data:", "data:image/png,abc", "data:image/png;base64" + " " * 300 + ",YQ=="])
def test_an_invalid_data_url(text: str) -> None:
    message = "content: a data URL must be data:image/...;base64,..."
    assert refusal(json.dumps({"content": text}).encode(), JSON) == (400, message)


@pytest.mark.parametrize(("kind", "got"), [("", "and there is none"), ("Text/Plain; a=b", 'got "text/plain"')])
def test_an_unknown_content_type_is_named(kind: str, got: str) -> None:
    known = "application/json, application/x-www-form-urlencoded or multipart/form-data"
    assert refusal(b"{}", kind) == (415, f"the Content-Type must be {known}, {got}")


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"--x\r\n", "multipart/form-data", "the form's Content-Type names no boundary"),
        (b"--x\r\n", f"multipart/form-data; boundary={'x' * 71}", "the form's Content-Type names no boundary"),
        (b"x", "multipart/form-data; boundary=x", "the multipart form is damaged"),
        (b"--x\r\nno header\r\n\r\n", "multipart/form-data; boundary=x", "the multipart form is damaged"),
        (b"", "multipart/form-data; boundary=x", "the multipart form ends too early"),
        (multipart([("content", "a", b"abc")])[0][:-20], multipart([])[1], "the multipart form ends too early"),
        (b"--x\r\na: b\r\n\r\nc\r\n--x--", "multipart/form-data; boundary=x", "a part of the form has no name"),
    ],
    ids=range(7),
)
def test_forms_that_are_refused(body: bytes, kind: str, message: str) -> None:
    assert refusal(body, kind) == (400, message)


# --- limits


def test_images_are_counted_and_measured_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    most = base64.b64encode(bytes(10**6)).decode()
    assert len(read_json({"content": most}, max_picture_mb=1).images[0]) == 10**6
    too_large = [base64.b64encode(bytes(10**6 + 3)).decode()]
    monkeypatch.setattr("base64.b64decode", None)  # nothing is decoded
    message = "content: the image has more than 1 MB"
    body = json.dumps({"content": too_large}).encode()
    assert refusal(body, JSON, max_picture_mb=1) == (413, message)
    assert refusal(*multipart([("content", "a", bytes(10**6 + 1))]), max_picture_mb=1) == (413, message)
    three = json.dumps({"content": ["YQ=="] * 3}).encode()
    assert refusal(three, JSON, max_pictures=2) == (413, "a request may hold 2 images, this one has 3")


def test_a_form_has_limits_on_parts_and_headers() -> None:
    parts: Parts = [("content", "a", b"a"), ("x", None, b""), ("y", None, b"")]
    assert read(*multipart(parts), max_parts=3).images == [b"a"]
    assert refusal(*multipart(parts), max_parts=2) == (413, "the form has more than 2 parts")
    assert read(b"content=YQ==&x&y", FORM, max_parts=3).images == [b"a"]
    assert refusal(b"content=YQ==&x&y", FORM, max_parts=2) == (413, "the form has more than 2 fields")
    message = "a part of the form has more than 100 bytes of headers"
    assert refusal(*multipart([("content", "a" * 99, b"a")]), max_part_header_bytes=100) == (413, message)
    many = b"--x\r\n" + b"a: b\r\n" * 60 + b"\r\n\r\n--x--"
    assert refusal(many, "multipart/form-data; boundary=x", max_part_header_bytes=100) == (413, message)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"content": [' + b"[]," * 300_000 + b"1]}", JSON),
        (b'{"content": [' + b'{"a":1},' * 120_000 + b"1]}", JSON),
        (b"content=" + b"%41" * 2_000_001, FORM),
        (b"a=&" * 300_000, FORM),
        (b"--x\r\n" * 200_000, "multipart/form-data; boundary=x"),
        (b"--x\r\n" + b"a: b\r\n" * 150_000, "multipart/form-data; boundary=x"),
        (b"--x\r\nContent-Disposition: form-data; name=a" + b";a=a" * 200_000, "multipart/form-data; boundary=x"),
    ],
    ids=range(7),
)
def test_hostile_bodies_cost_little(body: bytes, kind: str) -> None:
    """Such bodies took twenty times their size, or seconds, before their parts were counted first."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1

    tracemalloc.start()
    status, _ = refusal(body, kind)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sys.setprofile(count)
    refusal(body, kind)
    sys.setprofile(None)
    assert status in (400, 413)
    assert peak < 3 * len(body)
    assert calls < len(body) / 5  # the pure-Python multipart parser takes some 30 calls a header, up to its limit
