"""Uploads: encoded images and switches, read from a request's body within limits."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.service.form_parser import Field, FormError, multipart_fields, urlencoded_fields
from deploy.service.limits import Limits

CONTENT = "content"
KINDS = ("application/json", "application/x-www-form-urlencoded", "multipart/form-data")
MAX_JSON_VALUES = 10_000  # a body of brackets alone would take twenty times its size in memory
MAX_DATA_URL_HEAD = 256
SWITCHES = {"true": True, "1": True, "false": False, "0": False}
ADDRESS = re.compile(r"\s*[a-zA-Z][a-zA-Z0-9+.-]{0,31}://")
SHOWN_CHARACTERS = 40


class RequestError(Exception):
    """A request that is refused: the HTTP status, and the reason as one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Upload:
    """The encoded images of a request, in order, and its switches."""

    images: list[bytes]
    switches: dict[str, bool]


def read_upload(body: bytes, content_type: str, defaults: Mapping[str, bool], limits: Limits) -> Upload:
    """Read a body that is JSON, an urlencoded or a multipart form. Unknown fields are ignored.

    `content` is one image or several: base64, a data URL, or a file of a multipart form. Raises RequestError.
    """
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == KINDS[0]:
            contents, given = _read_json(body, defaults)
        elif kind in KINDS:
            contents, given = _read_form(_fields(kind, body, content_type, limits), defaults)
        else:
            got = f"got {quote(kind)}" if kind else "and there is none"
            raise RequestError(415, f"the Content-Type must be {', '.join(KINDS[:2])} or {KINDS[2]}, {got}")
    except FormError as error:
        raise RequestError(error.status, str(error)) from error
    if not contents:
        raise RequestError(400, f'there is no image: "{CONTENT}" is missing or empty')
    count = len(contents)
    if count > limits.max_pictures:
        raise RequestError(413, f"a request may hold {limits.max_pictures} images, this one has {count}")
    images = [encoded_image(content, content_name(index, count), limits) for index, content in enumerate(contents)]
    return Upload(images, {**defaults, **{name: _switch(name, value) for name, value in given.items()}})


def content_name(index: int, count: int) -> str:
    """Return the name of an image in messages: its place in the request."""
    return CONTENT if count == 1 else f"{CONTENT}[{index}]"


def quote(value: object) -> str:
    """Quote a value of the request, cut to SHOWN_CHARACTERS."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    return json.dumps(text, ensure_ascii=False) if isinstance(value, str) else text


def encoded_image(content: object, name: str, limits: Limits) -> bytes:
    """Return an image that a request holds as bytes, or as a text in base64. Raises RequestError."""
    max_bytes = limits.max_picture_mb * 10**6
    if isinstance(content, str):
        text = _base64_of(content, name)
        if len(text) * 3 // 4 - text[-2:].count("=") > max_bytes:
            raise RequestError(413, f"{name}: the image has more than {limits.max_picture_mb} MB")
        try:
            return base64.b64decode(text, validate=True)
        except ValueError as error:
            raise RequestError(400, f"{name}: it is neither base64 nor a data URL") from error
    if not isinstance(content, bytes):
        raise RequestError(400, f"{name} must be a text in base64, got {quote(content)}")
    if len(content) > max_bytes:
        raise RequestError(413, f"{name}: the image has more than {limits.max_picture_mb} MB")
    return content


def _read_json(body: bytes, defaults: Mapping[str, bool]) -> tuple[list[Any], dict[str, Any]]:
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_VALUES:
        raise RequestError(413, f"the JSON holds more than {MAX_JSON_VALUES} values")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "the body is not JSON") from error
    if not isinstance(values, dict):
        raise RequestError(400, f'the JSON must be an object: {{"{CONTENT}": ...}}')
    content = values.get(CONTENT)
    contents = content if isinstance(content, list) else [] if content is None else [content]
    return contents, {name: values[name] for name in defaults if name in values}


def _read_form(fields: Sequence[Field], defaults: Mapping[str, bool]) -> tuple[list[Any], dict[str, Any]]:
    contents: list[Any] = []
    given: dict[str, Any] = {}
    for item in fields:
        if item.name == CONTENT:
            contents += [item.value] if item.is_file else _texts(item.value)
        elif item.name in defaults:
            given[item.name] = item.value.decode("latin-1")
    return contents, given


def _fields(kind: str, body: bytes, content_type: str, limits: Limits) -> list[Field]:
    if kind == KINDS[1]:
        return urlencoded_fields(body, limits.max_parts)
    return multipart_fields(body, content_type, limits.max_parts, limits.max_part_header_bytes)


def _texts(value: bytes) -> list[Any]:
    """Return the texts of a form's field: one, none where it is empty, or those of a JSON list."""
    text = value.decode("latin-1").strip()
    if not text.startswith("["):
        # An unescaped "+" of base64 arrives as a space
        return [text.replace(" ", "+")] if text else []
    return _read_json(b'{"content": %b}' % value, {})[0]


def _base64_of(text: str, name: str) -> str:
    """Return a text's base64 without white space; of a data URL, the part after its head."""
    if ADDRESS.match(text):
        raise RequestError(400, f"{name}: addresses are not fetched; send the image itself, in base64")
    if text[:5].lower() == "data:":
        head, comma, _ = text[:MAX_DATA_URL_HEAD].partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RequestError(400, f"{name}: a data URL must be data:image/...;base64,...")
        text = text[len(head) + 1 :]
    return "".join(text.split()) if any(space in text for space in " \t\r\n") else text


def _switch(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    found = SWITCHES.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None:
        raise RequestError(400, f"{name} must be true or false, got {quote(value)}")
    return found
