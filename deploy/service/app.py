"""The service's ASGI application: its routes, error responses and middleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from deploy.inference.prediction_types import prediction_type
from deploy.service.feedback import FeedbackHandler
from deploy.service.middleware import AuthMetricsMiddleware
from deploy.service.open_inference import add_open_inference
from deploy.service.openapi import DOCS_POLICY, docs_page, feedback_operation, operation
from deploy.service.page_headers import PAGE_POLICY, SECURITY_HEADERS
from deploy.service.routes import FEEDBACK, HEADER_LENGTH, HEATMAP, PAGE_FILES, Route, ServiceError
from deploy.service.state import ServiceState

PAGE = Path(__file__).parent / "static"
EXAMPLE_CLASSES = ("cat", "dog")  # invented: /docs needs no token, which the names of the net do


def make_app(state: ServiceState, page: Path = PAGE) -> ASGIApp:
    """Make the application. Raises ServiceError where a file of the page is missing."""
    app = FastAPI(
        title="Image predictions",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # a redirect would name the Host that the client sent
    )
    for route in state.routes:
        _add_route(app, state, route)
    if state.feedback is not None:
        _add_feedback(app, state.feedback, has_token=bool(state.token))
    _add_status_routes(app, state)
    add_open_inference(app, state)
    _add_page(app, page)
    error_response = state.guard.error_response

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"there is no {request.url.path} here; see /docs"
        if error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}; see /docs"
        response = error_response(request, error.status_code, message)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        return error_response(request, 500, "internal error; see the log of the service")

    checked: ASGIApp = AuthMetricsMiddleware(app, state)
    if not state.origins.origins:
        return checked
    return CORSMiddleware(  # outermost: a page may read the errors too
        checked,
        allow_origins=list(state.origins.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", HEADER_LENGTH],
        expose_headers=["retry-after", HEADER_LENGTH],
    )


def _add_route(app: FastAPI, state: ServiceState, route: Route) -> None:
    async def predict(request: Request) -> Response:
        return await state.handler.handle(request, route)

    example = prediction_type(state.metadata.output).example(EXAMPLE_CLASSES)
    entry = route.entry(example, replace(state.metadata, class_names=EXAMPLE_CLASSES), route.switches)
    if state.has_heatmaps and f"need_{HEATMAP}" in route.switches:
        entry[HEATMAP] = "data:image/jpeg;base64,... (with need_heatmap)"
    errors = [code for code in (400, 401, 403, 408, 413, 415, 421, 422, 503) if code != 401 or state.token]
    app.post(
        route.path,
        summary="Predict for one or more images",
        openapi_extra=operation(route.switches, entry, errors),
        response_class=JSONResponse,
    )(predict)


def _add_feedback(app: FastAPI, handler: FeedbackHandler, *, has_token: bool) -> None:
    async def feedback(request: Request) -> Response:
        return await handler.handle(request)

    errors = [code for code in (400, 401, 403, 408, 409, 413, 415, 421, 422, 503) if code != 401 or has_token]
    summary = "Give the true class of a prediction that was drawn for the audit"
    operation = feedback_operation(EXAMPLE_CLASSES[0], errors)
    app.post(FEEDBACK, summary=summary, openapi_extra=operation, response_class=JSONResponse)(feedback)


def _add_status_routes(app: FastAPI, state: ServiceState) -> None:
    metadata = state.metadata

    @app.get("/info", summary="The net and its classes")
    async def info() -> Response:
        size = f"{metadata.preprocess.width}x{metadata.preprocess.height}"
        values: dict[str, Any] = {
            "classes": list(metadata.class_names),
            "net": metadata.net.get("name", ""),
            "input": size,
            "heatmap": state.has_heatmaps,
            "calibrated": metadata.calibration is not None,
            "task": metadata.task,
            "output": metadata.output,
            "images": metadata.preprocess.images,  # of a prediction
        }
        return JSONResponse(values)

    @app.get("/healthz", summary="Liveness: the process responds")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", summary="Readiness: the net is warm, the queue is not full, and no shutdown has begun")
    async def readyz() -> Response:
        is_ready = state.is_ready()
        values: dict[str, Any] = {"status": "ready" if is_ready else "not ready"}
        if state.audit is not None:
            values |= {"calibration_target": state.audit.status, "drift": state.audit.has_drifted}
        return JSONResponse(values, 200 if is_ready else 503)

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type=state.metrics.content_type)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(
            docs_page(app.openapi()), headers={**SECURITY_HEADERS, "content-security-policy": DOCS_POLICY}
        )


def _add_page(app: FastAPI, folder: Path) -> None:
    async def respond(content: bytes, kind: str) -> Response:
        return Response(
            content, headers={**SECURITY_HEADERS, "content-type": kind, "content-security-policy": PAGE_POLICY}
        )

    for path, (name, kind) in PAGE_FILES.items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise ServiceError(f"{folder / name}: cannot read this file of the page: {error.strerror}") from error
        endpoint: Callable[[], Awaitable[Response]] = partial(respond, content, kind)
        app.add_api_route(path, endpoint, methods=["GET"], include_in_schema=False)
