"""The middleware around all routes."""

from __future__ import annotations

import hmac
import time

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.service.request_guard import CODE
from deploy.service.routes import OPEN_PATHS
from deploy.service.state import ServiceState


class AuthMetricsMiddleware:
    """Checks Host, Origin and the bearer token, and counts each request with its code and seconds."""

    def __init__(self, app: ASGIApp, state: ServiceState) -> None:
        self._app, self._metrics, self._error_response = app, state.metrics, state.guard.error_response
        self._token, self._draining = state.token.encode(), state.draining
        self._origins, self._root_path = state.origins, state.root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request to its route, or respond with an error; count it either way.

        A HEAD is answered as a GET; uvicorn leaves out the body.
        """
        if scope["type"] != "http":
            return
        path = scope["path"]
        if self._root_path and path.startswith(f"{self._root_path}/"):  # a proxy that does not remove it
            path = path.removeprefix(self._root_path)
        method = scope["method"]
        asked = "GET" if method == "HEAD" else method
        scope = {**scope, "path": path, "root_path": self._root_path, "method": asked}
        started, status = time.perf_counter(), 500

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._draining.is_set():  # a kept connection would send its next request into the shutdown
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        state = scope.setdefault("state", {})
        app: ASGIApp = self._app
        code, reason = self._origins.refusal(method, path, dict(scope["headers"]), scope["server"][0])
        if code:
            app = self._error_response(Request(scope), code, reason)
        elif self._token and path not in OPEN_PATHS and not self._is_authorized(scope):
            app = self._error_response(Request(scope), 401, "the bearer token is missing or wrong")
            app.headers["www-authenticate"] = "Bearer"
        try:
            await app(scope, receive, send_noting_status)
        finally:
            self._metrics.on_request(path, state.get(CODE, status), time.perf_counter() - started)

    def _is_authorized(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)
