"""A service in the tests' own process, and what asks it."""

import argparse
import base64
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.inference.predictor import Predictor
from deploy.service.cli_args import add_service_flags
from deploy.service.routes import NATIVE, Route
from deploy.service.server import service_of
from tests.deploy.service.test_batching import METADATA, GatedBackend

JSON = {"content-type": "application/json"}
PATIENCE_S = 60
OTHER = Route(
    "/other", {"loud": True}, lambda answer, metadata, on: {"said": answer.class_name.upper() if on["loud"] else ""}
)


@dataclass
class Served:
    """A service in this process, and its net."""

    port: int
    backend: GatedBackend

    def ask(
        self, path: str = "/predict", body: object = None, headers: Mapping[str, str] = JSON, method: str = "POST"
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Send a request over a new connection; give status, JSON or bytes, and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, sent, dict(headers))
            return read(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, Any, Mapping[str, str]]:
        return self.ask(path, None, headers, "GET")

    def metric(self, name: str) -> float:
        line = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1].decode(), re.MULTILINE)
        return float(line[1]) if line else 0.0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def is_empty(self) -> bool:
        return self.metric("service_queue_pictures") == 0


def read(response: http.client.HTTPResponse) -> tuple[int, Any, Mapping[str, str]]:
    content = response.read()
    is_json = response.headers.get("content-type") == "application/json"
    headers = {name.lower(): value for name, value in response.headers.items()}
    return response.status, json.loads(content) if is_json else content, headers


def all_of(connection: socket.socket) -> bytes:
    """Read until the service closes."""
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def flags(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_service_flags(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@contextmanager
def serving(page: Path, *arguments: object, token: str = "") -> Iterator[Served]:
    backend = GatedBackend()
    predictor = Predictor(backend, METADATA)
    with service_of(predictor, [NATIVE, OTHER], flags("--workers", 2, *arguments), token, page) as server:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait(lambda: server.started)
            yield Served(port, backend)
        finally:
            backend.gate.set()
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def write_page(folder: Path) -> Path:
    """Write files in the page's place: the service is tested without it."""
    for name in ("index.html", "page.css", "page.js"):
        (folder / name).write_text(f"猫 {name}", encoding="utf-8")
    return folder
