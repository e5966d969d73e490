"""The load of `tools.benchmark serve`: clients that each send one image repeatedly, on a connection of their own.

`python -m tools.loadtest.http_client --port P --clients 32 --seconds 60` prints a line of JSON. As it shares the cores
with the service, its requests are built beforehand, and of a response it parses status and length only.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

IMAGE = (320, 240)  # width, height
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CONTENT = "content"
SHOWN_BYTES = 200  # of an error's body


@dataclass
class LoadResult:
    """The latencies of all clients' successful requests, and how often each error came."""

    latencies_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


def make_image(seed: int) -> bytes:
    """Return a JPEG of coloured clouds, about 12 kB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(IMAGE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_request(path: str, content: bytes) -> bytes:
    """Return a request with an image in base64."""
    body = json.dumps({CONTENT: base64.b64encode(content).decode()}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def run_clients(port: int, requests: Sequence[bytes], seconds: float) -> LoadResult:
    """Let a client for each request send it repeatedly for so long; return the result after the last responses."""
    result = LoadResult()
    until = time.perf_counter() + seconds
    await asyncio.gather(*(_client(port, request, until, result) for request in requests))
    return result


async def _client(port: int, request: bytes, until: float, result: LoadResult) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (started := time.perf_counter()) < until:
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = LENGTH.search(head)
            body = await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, EOFError) as error:
            result.errors[type(error).__name__] += 1
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            continue
        if head[9:12] == b"200" and body:
            result.latencies_s.append(time.perf_counter() - started)
        else:
            result.errors[(head[:12] + b" " + body[:SHOWN_BYTES]).decode(errors="replace")] += 1
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def main() -> None:
    """Load a service and print requests a second, latencies, errors and the client's own processor time."""
    parser = argparse.ArgumentParser(prog="python -m tools.loadtest.http_client", allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/predict")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    if sys.platform != "win32":
        import uvloop

        uvloop.install()
    requests = [make_request(args.path, make_image(number)) for number in range(args.clients)]
    started, used = time.perf_counter(), time.process_time()
    result = asyncio.run(run_clients(args.port, requests, args.seconds))
    wall = time.perf_counter() - started
    found = np.array(result.latencies_s or [float("nan")]) * 1000
    for message, count in result.errors.most_common(3):
        print(f"{count} times: {message}", file=sys.stderr)
    values = {"rate": len(result.latencies_s) / wall, "seconds": wall, "errors": result.errors.total()}
    values |= {f"p{rank} ms": float(np.percentile(found, rank)) for rank in (50, 99)}
    print(json.dumps({**values, "client cores": (time.process_time() - used) / wall}))


if __name__ == "__main__":
    main()
