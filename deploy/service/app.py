"""The service's application: its routes, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from deploy.inference.prediction import Prediction
from deploy.service.middleware import Door
from deploy.service.openapi import DOCS_POLICY, docs_page, operation
from deploy.service.routes import HEATMAP, PAGE_FILES, Route, ServiceError
from deploy.service.state import Served

PAGE = Path(__file__).parent / "static"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFETY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}


def make_app(served: Served, page: Path = PAGE) -> ASGIApp:
    """Make the application. Raises ServiceError where a file of the page is missing."""
    app = FastAPI(title="Image classifier", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    for route in served.routes:
        _add_route(app, served, route)
    _add_telling(app, served)
    _add_page(app, page)
    mistake = served.answering.mistake

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        sentence = f"there is no {request.url.path} here; see /docs"
        if error.status_code == 405:
            sentence = f"{request.url.path} does not take {request.method}; see /docs"
        response = mistake(request, error.status_code, sentence)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return mistake(request, 500, "the service failed; its log says why")

    return Door(app, served)


def _add_route(app: FastAPI, served: Served, route: Route) -> None:
    async def predict(request: Request) -> Response:
        return await served.answering.answer(request, route)

    names = served.metadata.class_names
    best = Prediction("", 0, names[0], 0.9, ((names[0], 0.9), (names[1], 0.1)))
    entry = route.entry(best, served.metadata, route.switches)
    if served.has_heatmaps and f"need_{HEATMAP}" in route.switches:
        entry[HEATMAP] = "data:image/jpeg;base64,... (with need_heatmap)"
    mistakes = [code for code in (400, 401, 408, 413, 415, 422, 503) if code != 401 or served.token]
    app.post(
        route.path,
        summary="Classify an image, or several",
        openapi_extra=operation(route.switches, entry, mistakes),
        response_class=JSONResponse,
    )(predict)


def _add_telling(app: FastAPI, served: Served) -> None:
    metadata = served.metadata

    @app.get("/info", summary="What the net is")
    async def info() -> Response:
        size = f"{metadata.preprocess.width}x{metadata.preprocess.height}"
        told: dict[str, Any] = {
            "classes": list(metadata.class_names),
            "net": metadata.net.get("name", ""),
            "input": size,
        }
        return JSONResponse({**told, "heatmap": served.has_heatmaps, "calibrated": metadata.calibration is not None})

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", summary="Whether to send images: the net is warm, the queue is not full, and no end is near")
    async def readyz() -> Response:
        is_ready = served.answering.is_ready() and not served.departing.is_set()
        return JSONResponse({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(served.metrics.text(), media_type=served.metrics.content_type)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi()), headers={**SAFETY, "content-security-policy": DOCS_POLICY})


def _add_page(app: FastAPI, folder: Path) -> None:
    async def give(content: bytes, kind: str) -> Response:
        return Response(content, headers={**SAFETY, "content-type": kind, "content-security-policy": PAGE_POLICY})

    for path, (name, kind) in PAGE_FILES.items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise ServiceError(f"{folder / name}: cannot read this file of the page: {error.strerror}") from error
        endpoint: Callable[[], Awaitable[Response]] = partial(give, content, kind)
        app.add_api_route(path, endpoint, methods=["GET"], include_in_schema=False)
