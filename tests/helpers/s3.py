"""An S3 server on loopback, moto's, with a proxy before it that makes faults."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.helpers.local_server import serving

BUCKET = "ai-images"
KEY, SECRET = "AKIATESTTESTTEST", "wJalrXUtnFEMIbPxRfiCYEXAMPLEKEY"

Fault = Callable[["Proxy"], bool]  # answers a request itself and returns True, or lets it pass


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to the real server, but for those that a fault of the server answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyServer

    def do_GET(self) -> None:
        self._pass_on()

    def do_HEAD(self) -> None:
        self._pass_on()

    def do_PUT(self) -> None:
        self._pass_on()

    def do_DELETE(self) -> None:
        self._pass_on()

    def log_message(self, *_: Any) -> None:
        pass

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.fault is not None and self.server.fault(self):
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port_behind, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        self.answer(response.status, content, dict(response.getheaders()))

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None, cut: int = 0) -> None:
        """Send a response; with `cut`, its last bytes are missing and the connection ends."""
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = (headers or {}).get("Content-Length", str(len(content)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self.wfile.write(content[: len(content) - cut])
        if cut:
            self.close_connection = True


class FaultyServer(ThreadingHTTPServer):
    """The proxy's server; `fault` may be set at any time, and `requests` are all that came."""

    daemon_threads = True

    def __init__(self, port_behind: int) -> None:
        super().__init__(("127.0.0.1", 0), Proxy)
        self.port_behind = port_behind
        self.fault: Fault | None = None
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def moto_server() -> Iterator[int]:
    """Run moto's server in a process of its own; yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def faulty_server(port: int) -> Iterator[FaultyServer]:
    """Run the proxy before a server."""
    with serving(FaultyServer(port)) as server:
        yield server


def environment(url: str) -> dict[str, str]:
    """Return boto3's variables for a server."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def upload(client: Any, folder: Path, prefix: str) -> None:
    """Put all files below a folder into the bucket, with a placeholder for each folder, as consoles write them."""
    client.put_object(Bucket=BUCKET, Key=prefix, Body=b"")
    for path in sorted(folder.rglob("*")):
        key = prefix + path.relative_to(folder).as_posix()
        if path.is_dir():
            client.put_object(Bucket=BUCKET, Key=f"{key}/", Body=b"")
        else:
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
