"""Forms: the fields of an urlencoded or multipart body, read within limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from common.errors import UserError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_ESCAPES = 2_000_000  # Python holds each %41 as an object of its own; base64 has one in 32 characters
BOUNDARY = re.compile(rb"[ -~]{1,70}")  # RFC 2046, 5.1.1
QUOTED = re.compile(rb'"(?:\\.|[^"\\])*"')
FILE_NAME = re.compile(rb";\s*filename\*\s*=", re.IGNORECASE)  # alone: the parser leaves it out (RFC 6266, 4.3)


class FormError(UserError):
    """A form that cannot be read, or that exceeds a limit; the message is one sentence for the client."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Field:
    """One field: a file's bytes, or the bytes of a text."""

    name: str
    value: bytes
    is_file: bool = False


def urlencoded_fields(body: bytes, max_fields: int) -> list[Field]:
    """Read an urlencoded form. Raises FormError."""
    if body.count(b"&") >= max_fields:
        raise FormError(f"the form has more than {max_fields} fields", 413)
    if body.count(b"%") > MAX_ESCAPES:
        raise FormError(f"the form has more than {MAX_ESCAPES} percent escapes", 413)
    pairs = (pair.partition(b"=") for pair in body.split(b"&"))
    return [Field(_unescape(name).decode("utf-8", "replace"), _unescape(value)) for name, _, value in pairs]


def multipart_fields(body: bytes, content_type: str, max_parts: int, max_header_bytes: int) -> list[Field]:
    """Read a multipart form, whose boundary the content type names. Raises FormError."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not BOUNDARY.fullmatch(boundary):
        raise FormError("the form's Content-Type names no boundary")
    reader = _Reader(max_parts, max_header_bytes)
    try:
        size = len(body)  # the parser's own limits are off: the reader's messages are clearer
        parser = MultipartParser(boundary, reader.callbacks(), max_header_count=size, max_header_size=size)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise FormError("the multipart form is damaged") from error
    if not reader.is_complete:
        raise FormError("the multipart form ends too early")
    return reader.fields


def _unescape(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


@dataclass
class _Reader:
    """The callbacks of python_multipart's parser."""

    max_parts: int
    max_header_bytes: int
    fields: list[Field] = field(default_factory=list)
    is_complete: bool = False
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _name: bytes = b""
    _value: bytes = b""
    _header_bytes: int = 0
    _data: list[bytes] = field(default_factory=list)

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        if len(self.fields) >= self.max_parts:
            raise FormError(f"the form has more than {self.max_parts} parts", 413)
        self._headers, self._data, self._header_bytes = {}, [], 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self.max_header_bytes:
            raise FormError(f"a part of the form has more than {self.max_header_bytes} bytes of headers", 413)

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        options = parse_options_header(disposition)[1]
        disposition = QUOTED.sub(b"", disposition)
        if b"name" not in options:
            raise FormError("a part of the form has no name")
        kind = self._headers.get(b"content-type", b"text/plain").lower()
        is_file = b"filename" in options or FILE_NAME.search(disposition) or not kind.startswith(b"text/")
        name = options[b"name"].decode("utf-8", "replace")
        self.fields.append(Field(name, b"".join(self._data), bool(is_file)))

    def _complete(self) -> None:
        self.is_complete = True
