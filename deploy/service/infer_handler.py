"""The handler of the Open Inference Protocol's inference requests: tensors in, the net's outputs out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response

from artifacts.outputs import INPUT_NAME, output_shape
from deploy.inference.prediction import NOT_FINITE, Prediction
from deploy.inference.predictor import Predictor
from deploy.inference.tiles import TiledPredictor
from deploy.service.infer_request import BINARY_SIZE, DTYPES, InferRequest, Signature, read_infer_request
from deploy.service.request_guard import Exchange, RequestGuard, json_response, json_text
from deploy.service.request_parser import RequestError
from deploy.service.routes import HEADER_LENGTH, MODEL_VERSION

MAX_JSON_NUMBERS = 1_000_000  # of a response: they take some 100 MB while they are written
PLATFORMS = {  # of a backend, by its name
    "onnxruntime": "onnx_onnxv1",
    "openvino": "onnx_onnxv1",
    "engine": "tensorrt_plan",
    "jit": "pytorch_torchscript",
}


class InferHandler:
    """Handles tensors for one net, by the queue and the limits of the other requests."""

    def __init__(self, guard: RequestGuard, predictor: Predictor, model_name: str) -> None:
        self._guard, self.model_name = guard, model_name
        self._backend, self._metadata = predictor.backend, predictor.metadata
        # What an encoded image gives by tiles is a prediction of its own size, not the net's outputs.
        is_tiled = isinstance(predictor, TiledPredictor)
        self._signature = Signature.of(predictor.metadata, takes_encoded=not is_tiled)

    def model_metadata(self) -> dict[str, Any]:
        """Return what the protocol says of a model."""
        signature = self._signature
        sizes = output_shape(self._metadata) or (None,)
        taken = {"name": INPUT_NAME, "datatype": signature.datatype, "shape": [-1, *signature.shape]}
        given = {
            "name": signature.output,
            "datatype": "FP32",
            "shape": [-1, *(-1 if size is None else size for size in sizes[1:])],
        }
        return {
            "name": self.model_name,
            "versions": [MODEL_VERSION],
            "platform": PLATFORMS.get(self._backend.name, f"pytorch_{self._backend.name}"),
            "inputs": [taken],
            "outputs": [given],
        }

    async def handle(self, request: Request) -> Response:
        """Return the response to a request: the net's outputs, or an error."""
        return await self._guard.respond(request, self._infer)

    async def _infer(self, exchange: Exchange) -> Response:
        header_length = exchange.request.headers.get(HEADER_LENGTH, "")
        asked = await exchange.parsed(
            partial(
                read_infer_request,
                header_length=header_length,
                signature=self._signature,
                limits=exchange.limits,
            )
        )
        results = await exchange.wait(exchange.batcher.submit_for_outputs(asked.images))
        return await exchange.in_pool(self._response, asked, _outputs(results))

    def _response(self, asked: InferRequest, outputs: np.ndarray) -> Response:
        """Return outputs (N, ...), as JSON or as bytes behind it. Raises RequestError."""
        data = outputs.astype(DTYPES["FP32"], copy=False).tobytes() if asked.wants_bytes else b""
        tensor: dict[str, Any] = {"name": self._signature.output, "datatype": "FP32", "shape": list(outputs.shape)}
        if asked.wants_bytes:
            tensor["parameters"] = {BINARY_SIZE: len(data)}
        elif outputs.size > MAX_JSON_NUMBERS:
            hint = "ask for bytes by the parameter binary_data_output, or send fewer images"
            raise RequestError(413, f"{outputs.size} numbers are too many for JSON; {hint}")
        else:
            tensor["data"] = outputs.ravel().tolist()
        values: dict[str, Any] = {"model_name": self.model_name, "model_version": MODEL_VERSION}
        values |= {"outputs": [tensor]} if asked.id is None else {"id": asked.id, "outputs": [tensor]}
        if not asked.wants_bytes:
            return json_response(200, values)
        text = json_text(values)
        headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
        return Response(text + data, headers=headers)


def _outputs(results: Sequence[Prediction | np.ndarray]) -> np.ndarray:
    """Return the outputs of all images, (N, ...). Raises RequestError for an image without finite ones."""
    outputs: list[np.ndarray] = []
    for index, result in enumerate(results):
        if isinstance(result, np.ndarray) and np.isfinite(result).all():
            outputs.append(result)
        else:
            reason = result.error if isinstance(result, Prediction) else NOT_FINITE
            raise RequestError(422, f"{INPUT_NAME}[{index}]: {reason}")
    return np.stack(outputs)
