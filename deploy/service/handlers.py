"""The handler of prediction requests: the body is read, the images queued, and the predictions returned as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import ImageError
from deploy.backends.base import BackendError
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.prediction import Prediction
from deploy.service.admission import QueueFullError
from deploy.service.audit import Audit
from deploy.service.batching import MicroBatcher
from deploy.service.body_reader import read_body
from deploy.service.heatmaps import HeatMaps
from deploy.service.http_protocol import DISCONNECTED, PENDING
from deploy.service.limits import Limits
from deploy.service.request_parser import CONTENT, RequestError, Upload, content_name, read_upload
from deploy.service.routes import HEATMAP, Route

SMALL_BODY_BYTES = 65_536  # parsing it takes less time than handing it to a thread
CODE = "code"  # in the scope's state: the response's actual code, for the metrics
CLIENT_CLOSED_REQUEST = 499  # seen in the metrics only
LATER = "try again later"
RETRY_AFTER_S = 1

T = TypeVar("T")
logger = logging.getLogger("service")


class PredictHandler:
    """Handles the requests of every route with one net, within the limits."""

    def __init__(
        self,
        batcher: MicroBatcher,
        metadata: ModelMetadata,
        limits: Limits,
        heatmaps: HeatMaps | None,
        *,
        always_200: bool,
        audit: Audit | None = None,
    ) -> None:
        self._batcher, self._metadata, self._limits, self._heatmaps = batcher, metadata, limits, heatmaps
        self._always_200, self._audit = always_200, audit
        self._body_bytes = 0  # of all requests in progress

    async def handle(self, request: Request, route: Route) -> Response:
        """Return the response to a request: its predictions, or an error."""
        deadline = asyncio.get_running_loop().time() + self._limits.request_timeout_s
        try:
            self._batcher.check_room()  # before the body is read: a refusal should cost as little as possible
            with self._counted_body() as count:
                data = await self._entries(request, route, count, deadline)
                return json_response(200, {"code": 200, "msg": "ok", "data": data})
        except RequestError as error:
            return self.error_response(request, error.status, str(error))
        except QueueFullError:
            return self.error_response(request, 503, f"{self._batcher.held} images are waiting; {LATER}")
        except BackendError as error:
            logger.error("%s", error)
            return self.error_response(request, 503, f"the net failed; {LATER}")
        except ImageError as error:  # of a heat map: too little memory for what could be decoded before
            return self.error_response(request, 422, str(error))
        except (asyncio.CancelledError, ClientDisconnect) as error:
            if isinstance(error, asyncio.CancelledError) and DISCONNECTED not in request.scope["state"]:
                raise  # the service is being stopped by force
            return self.error_response(request, CLIENT_CLOSED_REQUEST, "")
        except asyncio.TimeoutError:
            seconds = f"{self._limits.request_timeout_s:g} seconds"
            return self.error_response(request, 503, f"no response within {seconds}; {LATER}")

    def is_ready(self) -> bool:
        """Return whether an image would be admitted now."""
        return self._batcher.is_ready()

    def error_response(self, request: Request, code: int, message: str) -> Response:
        """Return an error as JSON, and record its code for the metrics."""
        request.scope["state"][CODE] = code
        response = json_response(200 if self._always_200 else code, {"code": code, "msg": message, "data": []})
        if code == 503:
            response.headers["retry-after"] = str(RETRY_AFTER_S)
        return response

    async def _entries(
        self, request: Request, route: Route, count: Callable[[int], None], deadline: float
    ) -> list[dict[str, Any]]:
        """Return an entry for each image of the request, in order."""
        upload = await self._read_upload(request, route, count, deadline)
        self._check_pairs(upload)
        predictions = await self._wait(request, self._batcher.submit(upload.images), deadline)
        for index, prediction in enumerate(predictions):
            if prediction.error:
                place = index * self._metadata.preprocess.images
                raise RequestError(422, f"{content_name(place, len(upload.images))}: {prediction.error}")
        if any(prediction.is_slow for prediction in predictions):
            made = self._batcher.in_pool(self._made_entries, route, predictions, upload)
            entries = await self._wait(request, asyncio.wrap_future(made), deadline)
        else:
            entries = self._made_entries(route, predictions, upload)
        if self._heatmaps is not None and upload.switches.get(f"need_{HEATMAP}"):
            for entry, data, prediction in zip(entries, upload.images, predictions, strict=True):
                entry[HEATMAP] = await self._wait(request, self._heatmap(data, prediction), deadline)
        if self._audit is not None:  # last: what fails before is not drawn
            for entry, prediction in zip(entries, predictions, strict=True):
                entry |= self._audit.mark(prediction)
        return entries

    def _check_pairs(self, upload: Upload) -> None:
        """Raise RequestError where a net of pairs got an image without its partner."""
        if len(upload.images) % self._metadata.preprocess.images:
            got = f"got {len(upload.images)}"
            raise RequestError(
                400, f'this net takes pairs: "{CONTENT}" holds two images each, the earlier first; {got}'
            )

    def _made_entries(self, route: Route, predictions: Sequence[Prediction], upload: Upload) -> list[dict[str, Any]]:
        return [route.entry(prediction, self._metadata, upload.switches) for prediction in predictions]

    async def _read_upload(
        self, request: Request, route: Route, count: Callable[[int], None], deadline: float
    ) -> Upload:
        limits = self._limits
        max_bytes, timeout_s = limits.max_body_mb * 10**6, limits.request_timeout_s
        body = await read_body(request, max_bytes, timeout_s, _seconds_until(deadline), count)
        args = (body, request.headers.get("content-type", ""), route.switches, limits)
        if len(body) <= SMALL_BODY_BYTES:
            return read_upload(*args)
        return await asyncio.wrap_future(self._batcher.in_pool(read_upload, *args))

    def _heatmap(self, data: bytes, prediction: Prediction) -> asyncio.Future[str]:
        assert self._heatmaps is not None and isinstance(prediction, ClassPrediction)  # a checkpoint of classes
        return asyncio.ensure_future(self._heatmaps.data_url(data, prediction.label))

    async def _wait(self, request: Request, pending: asyncio.Future[T], deadline: float) -> T:
        """Wait until the deadline, or until the client disconnects."""
        state = request.scope["state"]
        state[PENDING] = pending
        if DISCONNECTED in state:
            raise ClientDisconnect
        return await asyncio.wait_for(pending, _seconds_until(deadline))

    @contextmanager
    def _counted_body(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that counts a body's bytes among those of all requests; it raises RequestError."""
        own, max_mb = 0, self._limits.max_pending_mb

        def count(num_bytes: int) -> None:
            nonlocal own
            if self._body_bytes + num_bytes > max_mb * 10**6:
                raise RequestError(503, f"requests of {max_mb} MB are in progress; {LATER}")
            own += num_bytes
            self._body_bytes += num_bytes

        try:
            yield count
        finally:
            self._body_bytes -= own


def _seconds_until(deadline: float) -> float:
    return max(deadline - asyncio.get_running_loop().time(), 0.001)


def json_response(status: int, values: dict[str, Any]) -> Response:
    """Return values as the JSON of a response."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    # a lone surrogate, which JSON can hold and UTF-8 cannot, is written as JSON's escape
    return Response(text.encode("utf-8", "backslashreplace"), status, media_type="application/json")
