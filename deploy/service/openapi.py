"""The OpenAPI description of a prediction route, and the page at /docs: plain HTML that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from artifacts.outputs import INPUT_NAME
from deploy.service.request_parser import CONTENT, KINDS

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "pre{background:#8882;padding:.7rem;overflow:auto}h2{margin-top:2.5rem}code{font-size:.95em}"
    ":root{color-scheme:light dark}"
)
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
DOCS_POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; frame-ancestors 'none'"

ERRORS = {
    400: "the body cannot be understood",
    401: "the bearer token is missing or wrong",
    403: "a web page of another origin sent it",
    408: "the request arrived too slowly",
    409: "the prediction has another label already, or no more labels are kept",
    413: "the body, an image or the number of images exceeds a limit",
    415: "the body has another Content-Type, or is compressed",
    421: "the service is not called by the name in Host",
    422: "an image cannot be decoded, or has too many pixels",
    503: "the queue is full, or the net failed; Retry-After is the time until another try, in seconds",
}


def operation(switches: Mapping[str, bool], entry: Mapping[str, Any], errors: Iterable[int]) -> dict[str, Any]:
    """Return the OpenAPI operation of a route that takes images; `entry` is an example of one image's entry."""
    text = {"type": "string", "description": "an image in base64, or a data URL"}
    file = {"type": "string", "format": "binary", "description": "an image file"}
    bodies = {KINDS[0]: [text], KINDS[1]: [text], KINDS[2]: [file, text]}
    good = _content({"code": 200, "msg": "ok", "data": [entry]})
    return {
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": _body_schema(images, switches)} for kind, images in bodies.items()},
        },
        "responses": {
            "200": {"description": "one entry per image, or pair, in order", "content": good},
            **_errors(errors),
        },
    }


def feedback_operation(class_name: str, errors: Iterable[int]) -> dict[str, Any]:
    """Return the OpenAPI operation of the route that takes labels."""
    text = {"type": "string"}
    name = {"type": ["string", "null"], "description": "a class of the net; null: none of them"}
    schema = {"type": "object", "required": ["audit_id", "class"], "properties": {"audit_id": text, "class": name}}
    example = {"audit_id": "0123456789abcdef.0.0123456789abcdef0123456789abcdef", "class": class_name}
    known = {"labelled": 120, "wrong": 2, "calibration_target": "held"}
    good = _content({"code": 200, "msg": "ok", "data": [known]})
    return {
        "requestBody": {"required": True, "content": {KINDS[0]: {"schema": schema, "example": example}}},
        "responses": {"200": {"description": "what all labels say", "content": good}, **_errors(errors)},
    }


def infer_operation() -> dict[str, Any]:
    """Return the OpenAPI operation of the Open Inference Protocol's inference route, with an encoded image in JSON."""
    tensor = {
        "name": INPUT_NAME,
        "datatype": "BYTES, or FP32 or UINT8 as the model's metadata say",
        "shape": [1],
        "data": ["an image in base64, or the numbers of the tensor"],
    }
    output = {"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -0.5]}
    good = {"model_name": "model", "model_version": "1", "outputs": [output]}
    return {
        "requestBody": {
            "required": True,
            "content": {KINDS[0]: {"schema": {"type": "object", "example": {"inputs": [tensor]}}}},
        },
        "responses": {"200": {"description": "the net's output", "content": {KINDS[0]: {"example": good}}}},
    }


def docs_page(description: Mapping[str, Any]) -> str:
    """Return the HTML page of an OpenAPI description."""
    parts = []
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(route['summary'])}</p>")
            for kind, content in route.get("requestBody", {}).get("content", {}).items():
                parts.append(f"<p>Body, <code>{kind}</code>:</p>{_pre(content['schema'])}")
            for code, response in route["responses"].items():
                parts.append(f"<p><b>{code}</b> {escape(response['description'])}</p>")
                parts += [
                    _pre(content["example"]) for content in response.get("content", {}).values() if "example" in content
                ]
    title = escape(description["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f'<h1>{title}</h1><p>Machine-readable: <a href="openapi.json">openapi.json</a></p>{"".join(parts)}</html>'
    )


def _errors(codes: Iterable[int]) -> dict[str, Any]:
    return {
        str(code): {"description": ERRORS[code], "content": _content({"code": code, "msg": ERRORS[code], "data": []})}
        for code in codes
    }


def _body_schema(images: Sequence[Mapping[str, Any]], switches: Mapping[str, bool]) -> dict[str, Any]:
    one = images[0] if len(images) == 1 else {"oneOf": [*images]}
    content = {"oneOf": [*images, {"type": "array", "items": one, "minItems": 1}]}
    flags = {name: {"type": "boolean", "default": default} for name, default in switches.items()}
    return {"type": "object", "required": [CONTENT], "properties": {CONTENT: content, **flags}}


def _content(example: Mapping[str, Any]) -> dict[str, Any]:
    data = {"type": "array", "items": {"type": "object"}}
    properties = {"code": {"type": "integer"}, "msg": {"type": "string"}, "data": data}
    return {KINDS[0]: {"schema": {"type": "object", "properties": properties}, "example": dict(example)}}


def _pre(value: object) -> str:
    return f"<pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"
