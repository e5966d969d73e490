"""The body of a request, read within its limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import Request

from deploy.service.request_parser import RequestError


async def read_body(
    request: Request, max_bytes: int, timeout_s: float, seconds_left: float, count: Callable[[int], None]
) -> bytes:
    """Return a body, with or without Content-Length; `count` gets the size of each part as it arrives.

    `seconds_left` of the request's `timeout_s` remain. Raises RequestError, ClientDisconnect, and what `count` raises.
    """
    try:
        return await asyncio.wait_for(_read(request, max_bytes, count), seconds_left)
    except TimeoutError as error:
        raise RequestError(408, f"the request did not come within {timeout_s:g} seconds") from error


async def _read(request: Request, max_bytes: int, count: Callable[[int], None]) -> bytes:
    size = f"{max_bytes // 10**6} MB" if max_bytes >= 10**6 else f"{max_bytes} bytes"
    too_large = RequestError(413, f"the body has more than {size}")
    length = request.headers.get("content-length", "")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "compressed bodies are not read; leave out Content-Encoding")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    body = bytearray()  # a list would hold an object for each byte of a slow body
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            raise too_large
        count(len(chunk))
        body += chunk
    return bytes(body)
