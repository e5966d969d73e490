"""The parser of requests, for which an offer of another protocol is a header like any other.

RFC 9110, 7.8: a server may ignore Upgrade. httptools stops at the end of such a request's headers instead, and leaves
its body, and all that follows, unread. Here another parser goes on there, and hides the head that it is given for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

FRAMING = (b"content-length", b"transfer-encoding", b"connection")  # the headers that say where a request ends


class UpgradeIgnoringParser:
    """Parses the requests of one connection, and calls the protocol as httptools' parser does."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol
        self._parser = self._new_parser()
        self._is_repeating = False  # the head of a request whose head the protocol has

    def feed_data(self, data: bytes) -> None:
        """Parse the next bytes. Raises HttpParserError."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            head = self._head()
            self._parser, self._is_repeating = self._new_parser(), True
            self._parser.feed_data(head)
            self._is_repeating = False
            if rest := data[offer.args[0] :]:
                self.feed_data(rest)

    def should_upgrade(self) -> bool:
        """Return False: no offer is taken."""
        return False

    def should_keep_alive(self) -> bool:
        """Return whether the connection stays open after the response."""
        return bool(self._parser.should_keep_alive())

    def get_http_version(self) -> str:
        """Return the version of the request, such as "1.1"."""
        return str(self._parser.get_http_version())

    def get_method(self) -> bytes:
        """Return the method of the request."""
        return bytes(self._parser.get_method())

    def on_message_begin(self) -> None:
        """Pass the beginning of a request on."""
        if not self._is_repeating:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Pass a part of the URL on."""
        if not self._is_repeating:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Pass a header on."""
        if not self._is_repeating:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        """Pass the end of the headers on."""
        if not self._is_repeating:
            self._protocol.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        """Pass the end of a request on, unless it is only where httptools stops reading."""
        if not self._parser.should_upgrade():
            self._protocol.on_message_complete()

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
        return parser

    def _head(self) -> bytes:
        """Return a head after which a body is read as after the request's own."""
        framing = [b"%s: %s\r\n" % header for header in self._protocol.headers if header[0] in FRAMING]
        return b"POST / HTTP/%s\r\n%s\r\n" % (self.get_http_version().encode(), b"".join(framing))
