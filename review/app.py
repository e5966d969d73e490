"""The ASGI application of a review: its routes, its page, and the headers of every response."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.service.origins import OWN_ORIGIN, AllowedOrigins
from deploy.service.page_headers import PAGE_POLICY, SECURITY_HEADERS
from review.api import Api, json_response
from review.desk import Desk
from review.errors import RefusedError

PAGE = Path(__file__).parent / "page"
SCRIPTS = tuple(path.name for path in PAGE.glob("*.js"))
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{name}": (name, "text/javascript; charset=utf-8") for name in SCRIPTS},
}
REFUSALS = {
    403: "a page of another origin may not send this",
    421: "this page is not called by that name; --allowed-hosts, or allowed_hosts in a script's config, adds one",
}
logger = logging.getLogger("review")


def make_app(desk: Desk) -> ASGIApp:
    """Return the application."""
    api = Api(desk)
    names = ("login", "logout", "open", "look", "change", "label", "undo", "finish")
    posts = {name: getattr(api, name) for name in names}
    routes = [
        *(Route(path, page_file(PAGE / name, kind)) for path, (name, kind) in PAGE_FILES.items()),
        Route("/api/session", api.session),
        Route("/api/list", api.list),
        Route("/image/{index}", api.image),
        *(Route(f"/api/{name}", endpoint, methods=["POST"]) for name, endpoint in posts.items()),
    ]
    return own_app(routes, desk.origins)


def own_app(routes: Sequence[Route], origins: AllowedOrigins, policy: str = PAGE_POLICY) -> ASGIApp:
    """Return an application of these routes, for pages of its own alone; `policy` is their Content-Security-Policy."""
    handlers = {RefusedError: _refused, HTTPException: _no_route, OSError: _not_written, Exception: _bug}
    app = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]
    app.router.redirect_slashes = False  # a redirect would name the Host that the client sent
    return OriginMiddleware(app, origins, policy)


def page_file(path: Path, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that responds with a file of a page."""
    content = path.read_bytes()

    async def respond(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return respond


class OriginMiddleware:
    """Refuses other hosts and origins, and adds the security headers to every response."""

    def __init__(self, app: ASGIApp, origins: AllowedOrigins, policy: str) -> None:
        self._app, self._origins = app, origins
        headers = {**SECURITY_HEADERS, "content-security-policy": policy, "cross-origin-resource-policy": "same-origin"}
        self._headers = [(name.encode(), text.encode()) for name, text in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on, or respond with an error."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        app = self._app
        headers = dict(scope["headers"])
        code, _ = self._origins.refusal(scope["method"], scope["path"], headers, scope["server"][0])
        if not code and scope["path"] != "/" and headers.get(b"sec-fetch-site", b"none") not in OWN_ORIGIN:
            code = 403  # else its images and scripts would begin sessions and keep decoders busy
        if code:
            app = json_response({"code": code, "msg": REFUSALS[code]}, code)
        await app(scope, receive, send_with_headers)


async def _refused(request: Request, error: RefusedError) -> Response:
    response = json_response({"code": error.status, "msg": str(error)}, error.status)
    if error.retry_after_s:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


async def _no_route(request: Request, error: HTTPException) -> Response:
    return json_response({"code": error.status_code, "msg": "there is nothing here"}, error.status_code)


async def _not_written(request: Request, error: OSError) -> Response:
    logger.error("%s: %s", error.filename, error.strerror)
    return json_response({"code": 507, "msg": f"it could not be written: {error.strerror or error}"}, 507)


async def _bug(request: Request, error: Exception) -> Response:
    return json_response({"code": 500, "msg": "internal error; see the server's log"}, 500)
