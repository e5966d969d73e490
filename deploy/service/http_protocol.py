"""The service's side of HTTP/1.1 below its routes: uvicorn's protocol, with limits on what comes before a request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deploy.service.limits import Limits

PENDING = "pending"  # in the scope's state: the future that the request waits for
HAS_LEFT = "has_left"  # there too: its sender has gone
LINGER_S = 5.0  # for what is still sent of a body that has been answered: a close before would lose the answer
MAX_AHEAD = 64  # requests of one connection that wait for an earlier one's answer
GRACE_S = 2.0  # after the request's own time, in which its answer says so


def protocol_within(limits: Limits, on_refusal: Callable[[int], None]) -> type[HttpToolsProtocol]:
    """Give the protocol that holds connections to the limits; `on_refusal` hears each refusal's code."""
    members = {"limits": limits, "on_refusal": staticmethod(on_refusal)}
    return type("ServiceProtocol", (LimitedProtocol,), members)


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A mistake that uvicorn would answer in plain text, or not at all, is answered as others are."""

    limits: Limits
    on_refusal: Callable[[int], None]
    _timer: asyncio.TimerHandle | None = None
    _refusal: tuple[int, str] | None = None
    _head_bytes = 0
    _gap_bytes = 0  # since the last of a body: a chunk's head, or the trailers
    _is_in_head = True  # of a request that has begun, or that is to come
    _is_in_body = False
    _is_refused = False
    _unanswered: tuple[RequestResponseCycle, ...] = ()  # uvicorn itself remembers the newest alone

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, or refuse one connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self.refuse(503, f"{self.limits.max_connections} connections are open; try again later")
        else:
            self._within(self.limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let a request end whose sender has gone."""
        self._within(None)
        self._end_requests()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read, and count what comes before a request's body, and between and after its chunks."""
        if self._is_refused:
            return
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._timer is None:  # even empty lines, with which no request has begun, are given no more time
                self._within(self.limits.header_timeout_s)
        self._gap_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > self.limits.max_header_bytes:
            self.refuse(*self._too_long())
        elif self._is_in_body and self._gap_bytes > self.limits.max_header_bytes:
            self.transport.close()  # nobody sends such trailers; uvicorn would keep them all

    def on_message_begin(self) -> None:
        """Start the clock of the headers."""
        super().on_message_begin()
        self._within(self.limits.header_timeout_s)
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        """Hold the headers to their limit, and start the clock of the body."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self._refusal = self._too_long()
            raise ValueError(self._refusal[1])  # ends the parser, which has send_400_response called
        self._is_in_head, self._is_in_body, self._head_bytes, self._gap_bytes = False, True, 0, 0
        if len(self.pipeline) >= MAX_AHEAD:
            self._take_no_more()
        self._within(self.limits.request_timeout_s + GRACE_S)
        super().on_headers_complete()
        self._unanswered = (*self._still_unanswered(), self.cycle)

    def on_body(self, body: bytes) -> None:
        """Take what `data_received` has counted for a body's."""
        self._gap_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the clock: the request is whole."""
        super().on_message_complete()
        self._is_in_head, self._is_in_body = True, False
        self._within(None)

    def on_response_complete(self) -> None:
        """Let what is still sent of an answered body come for a while."""
        super().on_response_complete()
        if self._is_in_body and not self.transport.is_closing():
            self._within(LINGER_S)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or passes a limit."""
        self.refuse(*(self._refusal or (400, "this is not a request of HTTP/1.1")))

    def refuse(self, status: int, sentence: str) -> None:
        """Answer without a request, and close: after a while, since what is still sent would wipe the answer out.

        Where a whole request waits for its answer, that one alone comes before the end.
        """
        self._unset_keepalive_if_required()
        self._within(None)
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        if self.pipeline or (self._is_answering() and not self._is_in_body):
            (self.pipeline[0][0] if self.pipeline else self.cycle).keep_alive = False  # the newest
            self._abort_later()
            return
        self._end_requests()
        self.on_refusal(status)
        body = json.dumps({"code": status, "msg": sentence, "data": []}).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        retry = "retry-after: 1\r\n" if status == 503 else ""
        end = f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(f"{head}{retry}{end}".encode() + body)
        if status == 503:  # there are too many already
            self.transport.close()
        else:
            self.transport.write_eof()
            self._within(LINGER_S)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also where its answer is never read."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _still_unanswered(self) -> Iterator[RequestResponseCycle]:
        return (cycle for cycle in self._unanswered if not cycle.response_complete)

    def _end_requests(self) -> None:
        """Tell the requests that are being answered that nobody waits any more, and let them write nothing."""
        for cycle in self._still_unanswered():
            state = cycle.scope["state"]
            state[HAS_LEFT] = True
            if PENDING in state:
                state[PENDING].cancel()
            cycle.disconnected = True
            cycle.message_event.set()

    def _take_no_more(self) -> None:
        """Answer what waits, and close: uvicorn would read on after each answer, thousands of requests at a time."""
        self.pipeline[0][0].keep_alive = False  # the newest
        self._is_refused = True
        self._abort_later()
        raise ValueError("too many requests ahead")  # ends the parser

    def _too_long(self) -> tuple[int, str]:
        return 431, f"the first line and headers have more than {self.limits.max_header_bytes} bytes"

    def _within(self, seconds: float | None) -> None:
        """Give what comes next so long."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._out_of_time)

    def _out_of_time(self) -> None:
        if self._is_in_body or self._is_refused:
            self.transport.close()
        elif not self._is_answering():
            self.refuse(408, f"the headers did not come within {self.limits.header_timeout_s:g} seconds")
        else:
            self.cycle.keep_alive = False  # a second request is half there; the first is still being answered
            return
        self._abort_later()

    def _abort_later(self) -> None:
        self.loop.call_later(self.limits.request_timeout_s, self.transport.abort)
