"""What a request holds, checked: its session and token, its JSON, and its filters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request

from review.desk import Desk
from review.errors import RefusedError
from review.review import MOST_AT_ONCE, ORDERS, Choice
from review.sessions import Session
from review.users import LONGEST

MAX_BODY_BYTES, MAX_LABELS_BYTES = 16_384, 4_194_304
TOKEN_HEADER = "x-review-token"
CHOICES = {"reviewed": ("", "yes", "no"), "net": ("", "contradicts", "set_aside", "wrong_label"), "order": ORDERS}


def session_of(desk: Desk, request: Request) -> Session | None:
    """Return the session of a request's cookie."""
    return desk.sessions.find(request.cookies.get(desk.cookie, ""))


def known_session(desk: Desk, request: Request) -> Session:
    """Return the session of a request. Raises RefusedError where it has none."""
    session = session_of(desk, request)
    if session is None:
        raise RefusedError(401, "log in first")
    return session


def changing_session(desk: Desk, request: Request) -> Session:
    """Return the session of a request that changes something. Raises RefusedError without its token."""
    session = known_session(desk, request)
    if desk.is_finished:
        raise RefusedError(410, "the review is finished")
    if not session.has_token(request.headers.get(TOKEN_HEADER, "")):
        raise RefusedError(403, "the token of this page is missing or wrong; load the page again")
    return session


async def body_of(request: Request, most_bytes: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """Return a request's JSON. Raises RefusedError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "the body must be application/json")
    body = await bytes_of(request, most_bytes)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "the body is not JSON") from error
    if not isinstance(content, dict):
        raise RefusedError(400, "the body must be an object")
    return content


async def bytes_of(request: Request, most_bytes: int) -> bytes:
    """Return a request's body. Raises RefusedError."""
    length = request.headers.get("content-length", "")
    body = bytearray()
    too_long = RefusedError(413, f"the body has more than {most_bytes} bytes")
    if length.isdecimal() and int(length[:20]) > most_bytes:
        raise too_long
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most_bytes:
                raise too_long
    except ClientDisconnect as error:
        raise RefusedError(400, "the body is not complete") from error
    return bytes(body)


def records_in(body: Mapping[str, Any], num_records: int) -> list[int]:
    """Return the records that a body names, each once. Raises RefusedError."""
    found = body.get("records")
    if not isinstance(found, list) or not 1 <= len(found) <= MOST_AT_ONCE:
        raise RefusedError(400, f"records must be a list of 1 to {MOST_AT_ONCE} records")
    if any(type(index) is not int or not 0 <= index < num_records for index in found):
        raise RefusedError(400, f"a record must be a whole number from 0 to {num_records - 1}")
    return list(dict.fromkeys(found))


def text_in(body: Mapping[str, Any], key: str, most: int = LONGEST) -> str:
    """Return a text of a body, "" where it has none. Raises RefusedError."""
    found = body.get(key, "")
    if not isinstance(found, str) or len(found) > most:
        raise RefusedError(400, f"{key} must be text of at most {most} letters")
    return found


def choice_in(query: Mapping[str, str]) -> Choice:
    """Return the filters and the order of a query. Raises RefusedError."""
    for key, allowed in CHOICES.items():
        if query.get(key, allowed[0]) not in allowed:
            raise RefusedError(400, f"{key} must be one of {', '.join(allowed[1:])}")
    texts = {key: query.get(key, "")[:LONGEST] for key in ("tag", "reviewed", "net", "name")}
    label, near = (_whole(query, key) for key in ("label", "near"))
    return Choice(label, **texts, doubt=_share(query, "doubt"), order=query.get("order", ORDERS[0]), near=near)


def _whole(query: Mapping[str, str], key: str) -> int | None:
    text = query.get(key, "")
    if text and not (text.removeprefix("-").isdecimal() and len(text) < 10):
        raise RefusedError(400, f"{key} must be a whole number")
    return int(text) if text else None


def _share(query: Mapping[str, str], key: str) -> float | None:
    text = query.get(key, "")
    if not text:
        return None
    with suppress(ValueError):
        if 0 <= (number := float(text)) <= 1:
            return number
    raise RefusedError(400, f"{key} must be a number from 0 to 1")
