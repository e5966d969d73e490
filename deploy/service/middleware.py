"""What every request passes before its route."""

from __future__ import annotations

import hmac
import time

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.service.handlers import CODE
from deploy.service.routes import OPEN_PATHS
from deploy.service.state import Served


class Door:
    """What every request passes: the token, and the metrics."""

    def __init__(self, app: ASGIApp, served: Served) -> None:
        self._app, self._metrics, self._mistake = app, served.metrics, served.answering.mistake
        self._token = served.token.encode()
        self._departing = served.departing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, and note what became of it."""
        if scope["type"] != "http":
            return
        started, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._departing.is_set():  # whoever keeps a connection would send into its end
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        state = scope.setdefault("state", {})
        app: ASGIApp = self._app
        if self._token and scope["path"] not in OPEN_PATHS and not self._carries_token(scope):
            app = self._mistake(Request(scope), 401, "the bearer token is missing or wrong")
            app.headers["www-authenticate"] = "Bearer"
        try:
            await app(scope, receive, noting)
        finally:
            self._metrics.on_request(scope["path"], state.get(CODE, status), time.perf_counter() - started)

    def _carries_token(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)
