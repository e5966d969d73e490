"""The ASGI application of a demo: its page, what is sent to the script, and what it answers."""

from __future__ import annotations

import base64
import secrets
from collections import OrderedDict
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import deploy.service.http_protocol
from deploy.service.page_headers import PAGE_POLICY
from review.api import json_response
from review.app import own_app, page_file
from review.asks import Asks
from review.errors import RefusedError
from review.recording import FILE, IMAGE, VIDEO, Item
from review.requests import body_of, bytes_of, text_in
from review.script_config import ScriptConfig

PAGE = Path(__file__).parent / "demo_page"
SERVICE_PAGE = Path(deploy.service.http_protocol.__file__).parent / "static"  # whose style the demo has
FILES = {
    "/": (PAGE / "index.html", "text/html; charset=utf-8"),
    "/service.css": (SERVICE_PAGE / "page.css", "text/css; charset=utf-8"),
    "/demo.css": (PAGE / "demo.css", "text/css; charset=utf-8"),
    "/demo.js": (PAGE / "demo.js", "text/javascript; charset=utf-8"),
    "/texts.js": (PAGE / "texts.js", "text/javascript; charset=utf-8"),
}
POLICY = f"{PAGE_POLICY}; media-src 'self'"
MOST_TEXT = 10_000  # letters
MOST_FILES = 256  # of answers that can still be fetched


def make_demo_app(asks: Asks, config: ScriptConfig) -> ASGIApp:
    """Return the application."""
    routes = _Routes(asks, config)
    own = [
        *(Route(path, page_file(file, kind)) for path, (file, kind) in FILES.items()),
        Route("/api/demo", routes.demo),
        Route("/api/image", routes.image, methods=["POST"]),
        Route("/api/text", routes.text, methods=["POST"]),
        Route("/file/{key}", routes.file),
    ]
    return own_app(own, config.place.origins(), POLICY)


class _Routes:
    def __init__(self, asks: Asks, config: ScriptConfig) -> None:
        self._asks, self._config = asks, config
        self._files: OrderedDict[str, Path] = OrderedDict()
        self._held_bytes = 0  # of bodies that arrive or wait

    async def demo(self, request: Request) -> Response:
        """Return the demo's name, and what it takes."""
        values = self._config.values
        takes = {"takes_images": values["support_user_upload"], "takes_text": values["support_user_input"]}
        limits = {"max_picture_mb": self._asks.limits.max_picture_mb, "max_text": MOST_TEXT}
        return json_response({"name": self._config.name, **takes, **limits})

    async def image(self, request: Request) -> Response:
        """Put an encoded image, the body, before the script."""
        limits = self._asks.limits
        if not self._config.values["support_user_upload"]:
            raise RefusedError(403, "this demo takes no images")
        most = limits.max_picture_mb * 10**6
        length = request.headers.get("content-length", "")
        size = min(int(length[:20]), most) if length.isdecimal() else most
        self._asks.reserve()
        if self._held_bytes + size > limits.max_pending_mb * 10**6:
            raise RefusedError(503, "too many images wait already; try again later", 1)
        self._held_bytes += size
        try:
            content = await bytes_of(request, most)
            if not content:
                raise RefusedError(400, "there is no image in the body")
            return self._response(*await self._asks.answer_to(content, request.scope["state"]))
        finally:
            self._held_bytes -= size

    async def text(self, request: Request) -> Response:
        """Put {"text": ...} before the script."""
        if not self._config.values["support_user_input"]:
            raise RefusedError(403, "this demo takes no text")
        body = await body_of(request, 8 * MOST_TEXT)
        return self._response(*await self._asks.answer_to(text_in(body, "text", MOST_TEXT), request.scope["state"]))

    async def file(self, request: Request) -> Response:
        """Return a file of an answer."""
        path = self._files.get(request.path_params["key"])
        if path is None or not path.is_file():
            raise RefusedError(404, "there is no such file any more")
        return FileResponse(path, filename=path.name)

    def _response(self, number: int, items: list[Item]) -> Response:
        return json_response({"id": number, "items": [self._view(item) for item in items]})

    def _view(self, item: Item) -> dict[str, Any]:
        view = {"title": item.title, "type": item.kind}
        if item.kind == IMAGE:
            return {**view, "data": f"data:image/png;base64,{base64.b64encode(item.data).decode()}"}
        if item.kind in (FILE, VIDEO):
            key = secrets.token_urlsafe(16)
            self._files[key] = item.data
            while len(self._files) > MOST_FILES:
                self._files.popitem(last=False)
            return {**view, "data": f"file/{key}", "name": item.data.name}
        return {**view, "data": item.data}
