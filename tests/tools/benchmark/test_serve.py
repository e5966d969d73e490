"""The load on a service: the client's counts, and a service that is stopped between its rounds."""

import asyncio
import io
import os
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from common.errors import BenchmarkError
from tools.benchmark.serve_runner import ServiceSide
from tools.loadtest import http_client, service_process
from tools.loadtest.service_process import memory_mb

SERVICE = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.respond()
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.respond()
    def respond(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args):
        pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_client_counts_responses_and_errors() -> None:
    received: list[bytes] = []
    tasks: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        for number in range(1, 10):  # then it closes the connection
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            received.append(await reader.readexactly(length))
            status = b"503 Busy" if number % 3 == 0 else b"200 OK"
            writer.write(b"HTTP/1.1 %b\r\ncontent-length: 4\r\n\r\nbody" % status)
            await asyncio.sleep(0.005)
        writer.close()
        await writer.wait_closed()

    async def both() -> http_client.LoadResult:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            requests = [http_client.make_request("/predict", f"image {number}".encode()) for number in range(4)]
            seen = await http_client.run_clients(port, requests, 0.3)
            await asyncio.gather(*filter(None, tasks))
            return seen

    seen = asyncio.run(both())
    bodies = set(received)
    assert len(bodies) == 4  # each client its own image
    assert seen.errors["HTTP/1.1 503 body"] > 0 and seen.errors["IncompleteReadError"] > 0
    assert len(seen.latencies_s) + seen.errors["HTTP/1.1 503 body"] == len(received)
    assert all(latency > 0 for latency in seen.latencies_s)


def test_images_differ_and_have_the_size() -> None:
    assert http_client.make_image(0) != http_client.make_image(1)
    assert Image.open(io.BytesIO(http_client.make_image(0))).size == (320, 240)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs Linux's /proc")
def test_a_service_is_loaded_and_stopped(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "service.py"), "{port}"]
    side = ServiceSide("theirs", command, "/health", clients=2, seconds=0.3)
    try:
        pid = side.process.pid
        figures = side.play()
        assert figures["rate"] > 0 and figures["errors"] == 0 and figures["p50 ms"] <= figures["p99 ms"]
        assert 0 < figures["cores"] <= (os.cpu_count() or 1) + 0.5
        assert 1 < figures["MB at start"] < 200 and 1 < figures["MB at end"] < 200
        for _ in range(1000):  # a signal arrives a little later
            if is_stopped := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                break
            time.sleep(0.01)
        assert is_stopped
    finally:
        side.close()
    assert side.process.returncode is not None and memory_mb(pid) == 0.0


def test_a_service_that_ends_gives_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('the port is taken')"]
    with pytest.raises(BenchmarkError, match=r"^theirs: it did not start: the port is taken$"):
        ServiceSide("theirs", command, "/health", clients=2, seconds=0.3)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs Linux's /proc")
def test_memory_is_below_what_the_system_counts_twice() -> None:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    assert 1 < memory_mb(os.getpid()) < resident + 500 and service_process.memory_mb(2**22 + 1) == 0.0
