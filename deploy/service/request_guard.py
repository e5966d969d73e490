"""What all requests for predictions share: the body within its limits, a deadline, and the error responses."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from data_loader.preprocess import ImageError
from deploy.backends.base import BackendError
from deploy.service.admission import QueueFullError
from deploy.service.batching import MicroBatcher
from deploy.service.body_reader import read_body
from deploy.service.http_protocol import DISCONNECTED, PENDING
from deploy.service.limits import Limits
from deploy.service.request_parser import RequestError
from deploy.service.routes import is_open_inference

SMALL_BODY_BYTES = 65_536  # parsing it takes less time than handing it to a thread
CODE = "code"  # in the scope's state: the response's actual code, for the metrics
CLIENT_CLOSED_REQUEST = 499  # seen in the metrics only
LATER = "try again later"
RETRY_AFTER_S = 1

T = TypeVar("T")
logger = logging.getLogger("service")


@dataclass(frozen=True)
class Exchange:
    """One request that is being answered: how to read its body, and how long it may take."""

    request: Request
    batcher: MicroBatcher
    limits: Limits
    deadline: float  # of the event loop's clock
    count: Callable[[int], None]  # gets the size of each part of the body; raises RequestError

    async def parsed(self, parse: Callable[[bytes], T]) -> T:
        """Read the body, and return what `parse` makes of it, of a large one in a thread.

        Raises RequestError, ClientDisconnect.
        """
        max_bytes, timeout_s = self.limits.max_body_mb * 10**6, self.limits.request_timeout_s
        body = await read_body(self.request, max_bytes, timeout_s, self._seconds_left(), self.count)
        if len(body) <= SMALL_BODY_BYTES:
            return parse(body)
        return await asyncio.wrap_future(self.batcher.in_pool(parse, body))

    async def wait(self, pending: asyncio.Future[T]) -> T:
        """Wait until the deadline, or until the client disconnects."""
        state = self.request.scope["state"]
        state[PENDING] = pending
        if DISCONNECTED in state:
            raise ClientDisconnect
        return await asyncio.wait_for(pending, self._seconds_left())

    async def in_pool(self, function: Callable[..., T], *args: Any) -> T:
        """Return what a function gives in a thread, as `wait` does."""
        return await self.wait(asyncio.wrap_future(self.batcher.in_pool(function, *args)))

    def _seconds_left(self) -> float:
        return max(self.deadline - asyncio.get_running_loop().time(), 0.001)


class RequestGuard:
    """Lets requests in within the limits of all together, and turns what fails into error responses."""

    def __init__(self, batcher: MicroBatcher, limits: Limits, *, always_200: bool) -> None:
        self._batcher, self._limits, self._always_200 = batcher, limits, always_200
        self._body_bytes = 0  # of all requests in progress

    async def respond(self, request: Request, work: Callable[[Exchange], Awaitable[Response]]) -> Response:
        """Return what `work` responds to a request, or an error."""
        deadline = asyncio.get_running_loop().time() + self._limits.request_timeout_s
        try:
            self._batcher.check_room()  # before the body is read: a refusal should cost as little as possible
            with self._counted_body() as count:
                return await work(Exchange(request, self._batcher, self._limits, deadline, count))
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
        except TimeoutError:
            seconds = f"{self._limits.request_timeout_s:g} seconds"
            return self.error_response(request, 503, f"no response within {seconds}; {LATER}")

    def is_ready(self) -> bool:
        """Return whether an image would be admitted now."""
        return self._batcher.is_ready()

    def error_response(self, request: Request, code: int, message: str) -> Response:
        """Return an error as JSON, below /v2 as the protocol has it, and record its code for the metrics."""
        request.scope["state"][CODE] = code
        if is_open_inference(request.scope["path"]):
            response = json_response(code, {"error": message})
        else:
            response = json_response(200 if self._always_200 else code, {"code": code, "msg": message, "data": []})
        if code == 503:
            response.headers["retry-after"] = str(RETRY_AFTER_S)
        return response

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


def json_text(values: dict[str, Any]) -> bytes:
    """Return values as JSON."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    # a lone surrogate, which JSON can hold and UTF-8 cannot, is written as JSON's escape
    return text.encode("utf-8", "backslashreplace")


def json_response(status: int, values: dict[str, Any]) -> Response:
    """Return values as the JSON of a response."""
    return Response(json_text(values), status, media_type="application/json")
