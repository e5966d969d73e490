"""What the service does with a request for answers: its body, the queue, the net, and the JSON that goes back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import ImageError
from deploy.backends.base import BackendError
from deploy.inference.prediction import Prediction
from deploy.service.admission import QueueFullError
from deploy.service.batching import MicroBatcher
from deploy.service.heatmaps import HeatMaps
from deploy.service.http_protocol import HAS_LEFT, PENDING
from deploy.service.limits import Limits
from deploy.service.request_parser import RequestError, Upload, name_of, read_upload
from deploy.service.routes import HEATMAP, Route

SMALL_BODY_BYTES = 65_536  # is read in less time than it takes to hand it to a thread
CODE = "code"  # in the scope's state: the true one of the answer, for the metrics
CLIENT_LEFT = 499  # seen by nobody but the metrics
LATER = "try again later"

T = TypeVar("T")
logger = logging.getLogger("service")


class Answering:
    """Answers the requests of every route with one net, within the limits."""

    def __init__(
        self,
        batcher: MicroBatcher,
        metadata: ModelMetadata,
        limits: Limits,
        heatmaps: HeatMaps | None,
        *,
        always_200: bool,
    ) -> None:
        self._batcher, self._metadata, self._limits, self._heatmaps = batcher, metadata, limits, heatmaps
        self._always_200 = always_200
        self._body_bytes = 0  # of all requests that are being answered

    async def answer(self, request: Request, route: Route) -> Response:
        """Give the answer for the images of a request, or its mistake."""
        deadline = asyncio.get_running_loop().time() + self._limits.request_timeout_s
        try:
            self._batcher.check_room()  # before the body is read: what is too much costs as little as it can
            with self._holding() as hold:
                return _json(200, {"code": 200, "msg": "ok", "data": await self._data(request, route, hold, deadline)})
        except RequestError as error:
            return self.mistake(request, error.status, str(error))
        except QueueFullError:
            return self.mistake(request, 503, f"{self._batcher.held} images are waiting; {LATER}")
        except BackendError as error:
            logger.error("%s", error)
            return self.mistake(request, 503, f"the net failed; {LATER}")
        except ImageError as error:  # of a heat map: memory that was there for the answer
            return self.mistake(request, 422, str(error))
        except (asyncio.CancelledError, ClientDisconnect) as error:
            if isinstance(error, asyncio.CancelledError) and HAS_LEFT not in request.scope["state"]:
                raise  # the service is being stopped by force
            return self.mistake(request, CLIENT_LEFT, "")
        except asyncio.TimeoutError:
            return self.mistake(request, 503, f"no answer within {self._limits.request_timeout_s:g} seconds; {LATER}")

    def is_ready(self) -> bool:
        """Say whether an image would be taken now."""
        return self._batcher.is_ready()

    def mistake(self, request: Request, code: int, sentence: str) -> Response:
        """Give the answer to a request that has none."""
        request.scope["state"][CODE] = code
        response = _json(200 if self._always_200 else code, {"code": code, "msg": sentence, "data": []})
        if code == 503:
            response.headers["retry-after"] = "1"
        return response

    async def _data(
        self, request: Request, route: Route, hold: Callable[[int], None], deadline: float
    ) -> list[dict[str, Any]]:
        upload = await self._upload(request, route, hold, deadline)
        answers = await self._waited(request, self._batcher.submit(upload.images), deadline)
        for index, answer in enumerate(answers):
            if answer.error:
                raise RequestError(422, f"{name_of(index, len(answers))}: {answer.error}")
        entries = [route.entry(answer, self._metadata, upload.switches) for answer in answers]
        if self._heatmaps is not None and upload.switches.get(f"need_{HEATMAP}"):
            for entry, data, answer in zip(entries, upload.images, answers, strict=True):
                entry[HEATMAP] = await self._waited(request, self._heatmap(data, answer), deadline)
        return entries

    async def _upload(self, request: Request, route: Route, hold: Callable[[int], None], deadline: float) -> Upload:
        try:
            body = await asyncio.wait_for(_read_body(request, self._limits, hold), _seconds_until(deadline))
        except asyncio.TimeoutError as error:
            seconds = f"{self._limits.request_timeout_s:g} seconds"
            raise RequestError(408, f"the request did not come within {seconds}") from error
        args = (body, request.headers.get("content-type", ""), route.switches, self._limits)
        if len(body) <= SMALL_BODY_BYTES:
            return read_upload(*args)
        return await asyncio.wrap_future(self._batcher.in_pool(read_upload, *args))

    def _heatmap(self, data: bytes, answer: Prediction) -> asyncio.Future[str]:
        assert self._heatmaps is not None
        return asyncio.ensure_future(self._heatmaps.data_url(data, answer.label))

    async def _waited(self, request: Request, coming: asyncio.Future[T], deadline: float) -> T:
        """Wait until the deadline, or until whoever asked has gone."""
        state = request.scope["state"]
        state[PENDING] = coming
        if HAS_LEFT in state:
            raise ClientDisconnect
        return await asyncio.wait_for(coming, _seconds_until(deadline))

    @contextmanager
    def _holding(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of a request's body among those of all. What it gives raises RequestError."""
        held, most = 0, self._limits.max_pending_mb

        def hold(count: int) -> None:
            nonlocal held
            if self._body_bytes + count > most * 10**6:
                raise RequestError(503, f"requests of {most} MB are being answered; {LATER}")
            held += count
            self._body_bytes += count

        try:
            yield hold
        finally:
            self._body_bytes -= held


async def _read_body(request: Request, limits: Limits, hold: Callable[[int], None]) -> bytes:
    """Read a body within its limit, told by Content-Length or not. Raises RequestError, ClientDisconnect."""
    most = limits.max_body_mb * 10**6
    length = request.headers.get("content-length", "")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "compressed bodies are not read; leave out Content-Encoding")
    if length.isdecimal() and int(length[:20]) > most:
        raise RequestError(413, f"the body has more than {limits.max_body_mb} MB")
    body = bytearray()  # a list would hold what comes byte by byte as so many objects
    async for chunk in request.stream():
        if len(body) + len(chunk) > most:
            raise RequestError(413, f"the body has more than {limits.max_body_mb} MB")
        hold(len(chunk))
        body += chunk
    return bytes(body)


def _seconds_until(deadline: float) -> float:
    return max(deadline - asyncio.get_running_loop().time(), 0.001)


def _json(status: int, values: dict[str, Any]) -> Response:
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    # a surrogate without its other half, which JSON can send and UTF-8 cannot, goes back as JSON writes it
    return Response(text.encode("utf-8", "backslashreplace"), status, media_type="application/json")
