"""HTTP/1.1 below the routes: uvicorn's protocol, with limits on what arrives before and between requests.

It builds on members of uvicorn that are no public interface. tests/deploy/service/test_uvicorn_members.py lists them
and the versions that were tested, and fails when uvicorn changes one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from http import HTTPStatus

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deploy.service.limits import Limits
from deploy.service.request_framing import UpgradeIgnoringParser

PENDING = "pending"  # in the scope's state: the future that the request waits for
DISCONNECTED = "disconnected"  # there too: its client has gone
LINGER_S = 5.0  # for the rest of a body after its response: closing at once would discard the response
MAX_PIPELINED = 64  # requests of one connection that wait for an earlier one's response
LEAST_READ_BYTES = 16_384  # of a response that waits for its client, within the request's time limit
GRACE_S = 2.0  # after the request's own time limit, for the response that reports it


def protocol_class(limits: Limits, on_rejection: Callable[[int], None]) -> type[HttpToolsProtocol]:
    """Return the protocol class with these limits; `on_rejection` is called with each rejection's code."""
    members = {"limits": limits, "on_rejection": staticmethod(on_rejection)}
    return type("ServiceProtocol", (LimitedProtocol,), members)


def server_config(app: ASGIApp, limits: Limits, on_rejection: Callable[[int], None], shutdown_s: int) -> uvicorn.Config:
    """Return uvicorn's settings for a server with these limits, which ends `shutdown_s` after it is told to."""
    return uvicorn.Config(
        app,
        http=protocol_class(limits, on_rejection),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=shutdown_s,
    )


class LimitedProtocol(HttpToolsProtocol):
    """One connection. What uvicorn would reject in plain text, or not at all, gets the service's JSON error."""

    limits: Limits
    on_rejection: Callable[[int], None]
    _timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _rejection: tuple[int, str] | None = None
    _head_bytes = 0
    _gap_bytes = 0  # since the body's last bytes: a chunk's head, or the trailers
    _is_in_head = True  # of a request that has begun, or of the next one
    _is_in_body = False
    _is_rejected = False
    _open_cycles: tuple[RequestResponseCycle, ...] = ()  # uvicorn itself keeps the newest only

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer, or reject a connection too many."""
        super().connection_made(transport)
        self.parser = UpgradeIgnoringParser(self)  # type: ignore[assignment]
        if len(self.connections) > self.limits.max_connections:
            self.reject(503, f"{self.limits.max_connections} connections are open; try again later")
        else:
            self._set_timer(self.limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the requests of a client that has gone."""
        self._set_timer(None)
        self._stop_unread_timer()
        self._end_requests()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the timer of a client that does not read its response."""
        super().pause_writing()
        self._set_unread_timer()

    def resume_writing(self) -> None:
        """Stop that timer: the client has read."""
        self._stop_unread_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse, and count the bytes before a request's body, and between and after its chunks."""
        if self._is_rejected:
            return
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._timer is None:  # empty lines begin no request, and get no more time either
                self._set_timer(self.limits.header_timeout_s)
        self._gap_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > self.limits.max_header_bytes:
            self.reject(*self._too_long())
        elif self._is_in_body and self._gap_bytes > self.limits.max_header_bytes:
            self.transport.close()  # no client sends such trailers; uvicorn would keep them all

    def on_message_begin(self) -> None:
        """Start the timer of the headers."""
        super().on_message_begin()
        self._set_timer(self.limits.header_timeout_s)
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        """Check the size of the headers, and start the timer of the body."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self._rejection = self._too_long()
            raise ValueError(self._rejection[1])  # ends the parser; uvicorn then calls send_400_response
        self._is_in_head, self._is_in_body, self._head_bytes, self._gap_bytes = False, True, 0, 0
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop_reading()
        self._set_timer(self.limits.request_timeout_s + GRACE_S)
        super().on_headers_complete()
        self._open_cycles = (*self._incomplete_cycles(), self.cycle)

    def on_body(self, body: bytes) -> None:
        """Restart the count of bytes beside the body."""
        self._gap_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the timer: the request is complete."""
        super().on_message_complete()
        self._is_in_head, self._is_in_body = True, False
        self._set_timer(None)

    def on_response_complete(self) -> None:
        """Start a timer for the rest of a body whose response is complete already."""
        super().on_response_complete()
        if self._is_in_body and not self.transport.is_closing():
            self._set_timer(LINGER_S)

    def send_400_response(self, msg: str) -> None:
        """Reject what is no HTTP, or exceeds a limit."""
        self.reject(*(self._rejection or (400, "this is not a request of HTTP/1.1")))

    def reject(self, status: int, message: str) -> None:
        """Send an error without a request, and close; not at once, as bytes that still arrive would discard the error.

        If a complete request waits for its response, only that is sent before the end.
        """
        self._unset_keepalive_if_required()
        self._set_timer(None)
        if self._is_rejected or self.transport.is_closing():
            return
        self._is_rejected = True
        if self.pipeline or (self._is_responding() and not self._is_in_body):
            self.cycle.keep_alive = False
            self._abort_later()
            return
        self._end_requests()
        self.on_rejection(status)
        self.transport.write(_rejection_bytes(status, message))
        if status == 503:  # there are too many already
            self.transport.close()
        else:
            self.transport.write_eof()
            self._set_timer(LINGER_S)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if its response is never read."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _incomplete_cycles(self) -> Iterator[RequestResponseCycle]:
        return (cycle for cycle in self._open_cycles if not cycle.response_complete)

    def _end_requests(self) -> None:
        """Cancel what the open requests wait for, and let them write nothing."""
        for cycle in self._incomplete_cycles():
            state = cycle.scope["state"]
            state[DISCONNECTED] = True
            if PENDING in state:
                state[PENDING].cancel()
            cycle.disconnected = True
            cycle.message_event.set()

    def _stop_reading(self) -> None:
        """Respond to what is pipelined, and close: uvicorn would go on reading, thousands of requests at a time."""
        self.cycle.keep_alive = False
        self._is_rejected = True
        self._abort_later()
        raise ValueError("too many pipelined requests")  # ends the parser

    def _too_long(self) -> tuple[int, str]:
        return 431, f"the first line and headers have more than {self.limits.max_header_bytes} bytes"

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._on_timeout)

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _set_unread_timer(self) -> None:
        self._stop_unread_timer()
        most = self.transport.get_write_buffer_size() - LEAST_READ_BYTES
        self._unread_timer = self.loop.call_later(self.limits.request_timeout_s, self._on_unread, most)

    def _on_unread(self, most: int) -> None:
        if self.transport.get_write_buffer_size() > most:
            self.transport.abort()  # `close` would wait for the client
        else:
            self._set_unread_timer()

    def _on_timeout(self) -> None:
        if self._is_in_body or self._is_rejected:
            self.transport.close()
        elif not self._is_responding():
            self.reject(408, f"the headers did not come within {self.limits.header_timeout_s:g} seconds")
        else:
            self.cycle.keep_alive = False  # half of a second request is here; the first still gets its response
            return
        self._abort_later()

    def _abort_later(self) -> None:
        self.loop.call_later(self.limits.request_timeout_s, self.transport.abort)


def _rejection_bytes(status: int, message: str) -> bytes:
    body = json.dumps({"code": status, "msg": message, "data": []}).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
    retry = "retry-after: 1\r\n" if status == 503 else ""
    return f"{head}{retry}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body
