"""The routes of the Open Inference Protocol, version 2, with which clients of Triton and KServe ask the net.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from artifacts.metadata import PRODUCER
from common.version import VERSION
from deploy.service.openapi import infer_operation
from deploy.service.request_guard import json_response
from deploy.service.request_parser import KINDS
from deploy.service.routes import MODEL_VERSION, OPEN_INFERENCE
from deploy.service.state import ServiceState

EXTENSIONS = ("binary_tensor_data",)
ERRORS = {  # of the model's routes, in the documentation
    "4XX": {"description": "an error", "content": {KINDS[0]: {"example": {"error": "what is wrong"}}}}
}
MODEL = f"{OPEN_INFERENCE}/models/{{name}}"
MODELS = (MODEL, f"{MODEL}/versions/{{version}}")


def add_open_inference(app: FastAPI, state: ServiceState) -> None:
    """Add the protocol's routes, of the server and of its one model."""
    _add_server_routes(app, state)
    _add_model_routes(app, state)


def _add_server_routes(app: FastAPI, state: ServiceState) -> None:
    @app.get(OPEN_INFERENCE, summary="Open Inference Protocol: the server")
    async def server() -> Response:
        return JSONResponse({"name": PRODUCER, "version": VERSION, "extensions": list(EXTENSIONS)})

    @app.get(f"{OPEN_INFERENCE}/health/live", summary="Open Inference Protocol: the process responds")
    async def live() -> Response:
        return JSONResponse({"live": True})

    @app.get(f"{OPEN_INFERENCE}/health/ready", summary="Open Inference Protocol: as /readyz")
    async def ready() -> Response:
        is_ready = state.is_ready()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


def _add_model_routes(app: FastAPI, state: ServiceState) -> None:
    def missing(request: Request, name: str, version: str) -> Response | None:
        """Return the error for another model or version than the service's."""
        own = state.infer.model_name
        if (name, version) == (own, MODEL_VERSION):
            return None
        message = f'there is no model "{name}" of version {version} here, but "{own}" of version {MODEL_VERSION}'
        return state.guard.error_response(request, 404, message)

    async def metadata(request: Request, name: str, version: str = MODEL_VERSION) -> Response:
        return missing(request, name, version) or json_response(200, state.infer.model_metadata())

    async def ready(request: Request, name: str, version: str = MODEL_VERSION) -> Response:
        is_ready = state.is_ready()
        values: dict[str, Any] = {"name": name, "ready": is_ready}
        return missing(request, name, version) or json_response(200 if is_ready else 503, values)

    async def infer(request: Request, name: str, version: str = MODEL_VERSION) -> Response:
        return missing(request, name, version) or await state.infer.handle(request)

    for path in MODELS:
        options: dict[str, Any] = {"include_in_schema": path == MODEL, "responses": ERRORS}
        app.get(path, summary="Open Inference Protocol: what the model takes and gives", **options)(metadata)
        app.get(f"{path}/ready", summary="Open Inference Protocol: whether the model is ready", **options)(ready)
        app.post(
            f"{path}/infer",
            summary="Open Inference Protocol: the net's outputs for tensors or images",
            openapi_extra=infer_operation(),
            **options,
        )(infer)
