"""The load of `tools.soak`: requests at a steady rate whatever the responses, hostile ones, and slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import io
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from tools.loadtest.http_client import LENGTH, make_request

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
TIMEOUT_S = 60.0
IDLE_S = 60.0  # the service closes a connection that was idle for 75 s
LOST = 0  # the status of a request that got no response


@dataclass(frozen=True)
class Outcome:
    """The result of a request: `status` is LOST if no response came; it was sent `late_s` after its due time."""

    status: int
    seconds: float
    has_retry_after: bool = False
    late_s: float = 0.0


@dataclass
class Connections:
    """Kept connections; the one that was used last is used first."""

    port: int
    idle: list[tuple[float, Connection]] = field(default_factory=list)  # since when

    async def send(self, request: bytes) -> Outcome:
        """Send a request and return its outcome. Raises OSError where no server listens."""
        reader, writer = self._pop() or await asyncio.open_connection("127.0.0.1", self.port)
        started = time.perf_counter()
        try:
            writer.write(request)
            head, _ = await asyncio.wait_for(read_response(reader), TIMEOUT_S)
        except (OSError, EOFError, TimeoutError):
            writer.close()
            return Outcome(LOST, time.perf_counter() - started)
        now = time.perf_counter()
        if b"\r\nconnection: close" in head.lower():
            writer.close()
        else:
            self.idle.append((now, (reader, writer)))
        return Outcome(int(head[9:12]), now - started, b"\r\nretry-after:" in head.lower())

    def close(self) -> None:
        """Close the idle connections."""
        for _, (_, writer) in self.idle:
            writer.close()
        self.idle.clear()

    def _pop(self) -> Connection | None:
        """Return a connection that was idle for less than IDLE_S; if the newest was idle for longer, all were."""
        if self.idle and time.perf_counter() - self.idle[-1][0] > IDLE_S:
            self.close()
        return self.idle.pop()[1] if self.idle else None


async def read_response(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return a response's head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    return head, await reader.readexactly(int(length[1]) if length else 0)


async def steady(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> list[Outcome]:
    """Send requests in turn as a Poisson process of a rate (1/s), and return all outcomes in order."""
    connections = Connections(port)
    generator = np.random.default_rng(0)
    outcomes: list[Outcome] = []

    async def send(number: int, late_s: float) -> None:
        with contextlib.suppress(OSError):  # no server listens: it is lost
            outcomes[number] = replace(await connections.send(requests[number % len(requests)]), late_s=late_s)

    started, due = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        while (due := due + float(generator.exponential(1 / rate))) < seconds:
            await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
            outcomes.append(Outcome(LOST, 0.0))
            group.create_task(send(len(outcomes) - 1, max(0.0, time.perf_counter() - started - due)))
    connections.close()
    return outcomes


async def closed_loop(port: int, requests: Sequence[bytes], is_over: Callable[[list[Outcome]], bool]) -> list[Outcome]:
    """Let a client for each request send it repeatedly until `is_over(outcomes)`, or until no server listens."""
    outcomes: list[Outcome] = []

    async def client(request: bytes) -> None:
        connections = Connections(port)
        with contextlib.suppress(OSError):
            while not is_over(outcomes):
                outcomes.append(await connections.send(request))
        connections.close()

    await asyncio.gather(*(client(request) for request in requests))
    return outcomes


async def harass(port: int, rate: float, seconds: float) -> int:
    """Send hostile requests at a rate (1/s), a connection each, and return how many got 5xx but 503."""
    shapes = hostile(make_request)
    faults = 0

    async def send(request: bytes) -> None:
        nonlocal faults
        faults += await _is_fault(port, request)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
            group.create_task(send(shapes[number % len(shapes)]))
    return faults


async def _is_fault(port: int, request: bytes) -> bool:
    """Return whether the response, awaited for a second, is 5xx but 503."""
    with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1.0)
            return head[9:10] == b"5" and head[9:12] != b"503"
        finally:
            writer.close()
    return False


def hostile(request: Callable[[str, bytes], bytes]) -> list[bytes]:
    """Return invalid and costly requests, complete and truncated."""
    images = [b"", b"no image", _jpeg()[:200], empty_png(60_000, 60_000), empty_png(20_000, 1)]
    bodies = [b"[" * 100_000, b'{"content": "http://127.0.0.1/a"}', b'{"content": 1e999}', b"\xff" * 1000]
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    shapes = [request("/predict", image) for image in images] + [head % len(body) + body for body in bodies]
    shapes += [b"\x16\x03\x01" * 100, b"GET / HTTP/9.9\r\n\r\n", head % 10**12, head % 1000 + b"half", shapes[2][:300]]
    return [*shapes, b"POST /predict HTTP/1.1\r\n" + b"A: " + b"a" * 20_000 + b"\r\n\r\n"]


def empty_png(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size, with hardly any data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


async def drip(port: int, seconds: float) -> None:
    """Send a request's body a byte a second."""
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n")
        until = time.perf_counter() + seconds
        while time.perf_counter() < until and not writer.is_closing():
            writer.write(b"a")
            await asyncio.sleep(1.0)
        writer.close()


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (320, 240), "teal").save(file, "JPEG")
    return file.getvalue()
