"""POST /feedback: a person's label of a prediction that the audit drew."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from deploy.service.audit import Audit
from deploy.service.body_reader import read_body
from deploy.service.limits import Limits
from deploy.service.request_guard import CLIENT_CLOSED_REQUEST, RequestGuard, json_response
from deploy.service.request_parser import KINDS, RequestError, quote

MAX_BYTES = 16_384
ID, CLASS = "audit_id", "class"


class FeedbackHandler:
    """Handles the labels of one service, with the errors of its predictions."""

    def __init__(self, audit: Audit, limits: Limits, guard: RequestGuard) -> None:
        self._audit, self._limits, self._guard = audit, limits, guard

    async def handle(self, request: Request) -> Response:
        """Return what is known with this label, or an error."""
        timeout_s = self._limits.request_timeout_s
        try:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != KINDS[0]:
                raise RequestError(415, f"the Content-Type must be {KINDS[0]}")
            body = await read_body(request, MAX_BYTES, timeout_s, timeout_s, lambda size: None)
            known = await asyncio.to_thread(self._audit.take_label, *_label_of(body))  # it waits for the disk
        except RequestError as error:
            return self._guard.error_response(request, error.status, str(error))
        except ClientDisconnect:
            return self._guard.error_response(request, CLIENT_CLOSED_REQUEST, "")
        return json_response(200, {"code": 200, "msg": "ok", "data": [known]})


def _label_of(body: bytes) -> tuple[str, str | None]:
    """Return the audit_id and the class of a body. Raises RequestError."""
    try:
        values: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "the body is no JSON") from error
    if not isinstance(values, dict) or set(values) != {ID, CLASS}:
        raise RequestError(400, f'the body must be {{"{ID}": "...", "{CLASS}": "..."}}')
    audit_id, class_name = values[ID], values[CLASS]
    if not isinstance(audit_id, str):
        raise RequestError(400, f'"{ID}" must be a text, got {quote(audit_id)}')
    if class_name is not None and not isinstance(class_name, str):
        raise RequestError(400, f'"{CLASS}" must be the name of a class, or null, got {quote(class_name)}')
    return audit_id, class_name
