"""A small S3 server on loopback that takes no request with a wrong signature.

`python -m tests.helpers.object_store COUNT BYTES` runs it with so many objects of a data set, and prints its URL: there
it looks at no signature, to be fast enough to measure a client.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from xml.sax.saxutils import escape

from tests.helpers.s3 import KEY, SECRET

PAGE = 1000
Answer = tuple[int, bytes]


class ObjectStore:
    """The objects of one bucket of any name, by their keys.

    `fault` may answer for the server; `counts` are the requests by method and kind, "list" or "get", and by status.
    """

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = dict(sorted(objects.items()))
        self.etags = {key: hashlib.md5(body).hexdigest() for key, body in self.objects.items()}
        self.checks_signatures = True
        self.fault: Callable[[str], Answer | None] = lambda key: None
        self.counts: Counter[str] = Counter()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Transport] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; after a `stop` at the same port."""

        async def listen() -> None:
            self._server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result()

    def stop(self) -> None:
        """Drop every connection, and listen no more."""

        async def close() -> None:
            assert self._server is not None
            for socket in self._server.sockets:
                self._loop.remove_reader(socket.fileno())
            await asyncio.sleep(0.01)  # what was accepted just before becomes a connection
            self._server.close()
            for transport in self._open:
                transport.abort()
            await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result()

    def end(self) -> None:
        """Stop for ever."""
        self.stop()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), self._loop).result()  # connections end
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def answer(self, line: str, headers: dict[str, str]) -> tuple[Answer, str]:
        """Return status and body for a request, and the ETag of an object."""
        method, target, _ = line.split(" ")
        path, _, query = target.partition("?")
        key = urllib.parse.unquote(path).lstrip("/").partition("/")[2]
        if self.checks_signatures and not is_signed(method, path, query, headers):
            return (403, _error("SignatureDoesNotMatch")), ""
        if (fault := self.fault(key)) is not None:
            return fault, ""
        if "list-type" in query:
            return (200, self._page(dict(urllib.parse.parse_qsl(query)))), ""
        if key not in self.objects:
            return (404, _error("NoSuchKey")), ""
        if headers.get("if-match", self.etags[key]).strip('"') != self.etags[key]:
            return (412, _error("PreconditionFailed")), ""
        return (200, self.objects[key]), self.etags[key]

    def _page(self, query: dict[str, str]) -> bytes:
        keys = [key for key in self.objects if key.startswith(query.get("prefix", ""))]
        start = int(query.get("continuation-token", 0))
        more = start + PAGE < len(keys)
        rows = [
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            f"<ETag>&quot;{self.etags[key]}&quot;</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys[start : start + PAGE]
        ]
        token = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if more else ""
        head = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        return f"<ListBucketResult>{head}{''.join(rows)}</ListBucketResult>".encode()


class _Connection(asyncio.Protocol):
    def __init__(self, store: ObjectStore) -> None:
        self.store, self.data = store, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.store._open.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.store._open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        while b"\r\n\r\n" in self.data:
            head, _, self.data = self.data.partition(b"\r\n\r\n")
            line, *rows = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
            (status, body), etag = self.store.answer(line, headers)
            kind = "list" if "list-type" in line else "get"
            self.store.counts.update([kind, f"{kind} {status}"])
            text = f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n" + (f'ETag: "{etag}"\r\n' if etag else "")
            self.transport.write(f"{text}\r\n".encode() + body)


def is_signed(method: str, path: str, query: str, headers: dict[str, str]) -> bool:
    """Return whether a request has AWS's signature of version 4, of the tests' key, counted as AWS describes it."""
    fields = dict(
        part.strip().partition("=")[::2] for part in headers.get("authorization", "").partition(" ")[2].split(",")
    )
    names = fields.get("SignedHeaders", "").split(";")
    user, _, scope = fields.get("Credential", "").partition("/")
    if user != KEY or not {"host", "x-amz-date"} <= set(names):
        return False
    lines = [f"{name}:{' '.join(headers.get(name, '').split())}" for name in names]
    parts = (method, path, "&".join(sorted(query.split("&"))), *lines, "", ";".join(names))
    request = "\n".join((*parts, headers.get("x-amz-content-sha256", "")))
    text = "\n".join(
        ("AWS4-HMAC-SHA256", headers["x-amz-date"], scope, hashlib.sha256(request.encode("latin-1")).hexdigest())
    )
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), fields.get("Signature", ""))


@contextmanager
def object_store(objects: Mapping[str, bytes]) -> Iterator[ObjectStore]:
    """Run a server in a thread."""
    store = ObjectStore(objects)
    store.start()
    try:
        yield store
    finally:
        store.end()


def data_set(count: int, size: int) -> dict[str, bytes]:
    """Return so many images and labels below sets/d1/, a tenth of them valid, each of other bytes."""
    names = [
        f"sets/d1/{'valid' if number % 10 == 9 else 'train'}/{folder}"
        for number in range(count // 2)
        for folder in (f"images/{number:06d}.jpg", f"labels/{number:06d}.png")
    ]
    return {name: hashlib.sha256(name.encode()).digest() * (size // 32) for name in names}


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


if __name__ == "__main__":
    with object_store(data_set(int(sys.argv[1]), int(sys.argv[2]))) as running:
        running.checks_signatures = False
        print(running.url, flush=True)
        while True:
            time.sleep(60)
