"""A service in the tests' own process, its client, and the images and forms that tests send."""

import argparse
import base64
import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from artifacts.metadata import ModelMetadata
from common.paths import ROOT
from data_loader.preprocess import Preprocess
from deploy.inference.predictor import Predictor
from deploy.service.app import PAGE
from deploy.service.cli_args import add_service_flags
from deploy.service.routes import NATIVE, PAGE_FILES, Route
from deploy.service.server import open_server

JSON = {"content-type": "application/json"}
PATIENCE_S = 60
METADATA = ModelMetadata(("dark", "bright", "grey"), Preprocess(8, 8), {"module": "m", "name": "n", "args": {}})
OTHER = Route(
    "/other", {"loud": True}, lambda found, metadata, on: {"name": found.class_name.upper() if on["loud"] else ""}
)
Response = tuple[int, Any, Mapping[str, str]]  # status, JSON or bytes, headers


class GatedBackend:
    """Logits from the mean brightness; it waits for `gate`, and records batch sizes and threads."""

    def __init__(self, name: str = "fake") -> None:
        self.name, self.device = name, "cpu"
        self.sizes: list[int] = []
        self.threads: set[str] = set()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images))
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        mean = images.mean(axis=(1, 2, 3))
        return np.stack([-mean, mean, np.zeros_like(mean)], axis=1).astype(np.float32)


@dataclass
class RunningService:
    """A service on a port of this machine, and its net where it runs in this process."""

    port: int
    backend: GatedBackend

    def send(
        self, path: str = "/predict", body: object = None, headers: Mapping[str, str] = JSON, method: str = "POST"
    ) -> Response:
        """Send a request over a new connection, and return the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, content, dict(headers))
            return read(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Response:
        return self.send(path, None, headers, "GET")

    def metric(self, name: str) -> float:
        line = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1].decode(), re.MULTILINE)
        return float(line[1]) if line else 0.0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def is_empty(self) -> bool:
        return self.metric("service_queue_pictures") == 0


@contextmanager
def serving(page: Path, *arguments: object, token: str = "") -> Iterator[RunningService]:
    """Run a service of a GatedBackend with two routes in a thread."""
    backend = GatedBackend()
    args = flags("--workers", 2, *arguments)
    with running(Predictor(backend, METADATA), args, token, page, (NATIVE, OTHER)) as port:
        try:
            yield RunningService(port, backend)
        finally:
            backend.gate.set()


@contextmanager
def running(
    predictor: Predictor,
    args: argparse.Namespace,
    token: str = "",
    page: Path = PAGE,
    routes: tuple[Route, ...] = (NATIVE,),
) -> Iterator[int]:
    """Run a service in a thread, and yield its port."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        open_server(predictor, routes, args, token, page) as server,
    ):
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait(lambda: server.started)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def start(code: str, *arguments: object, **variables: str) -> "subprocess.Popen[str]":
    """Start a Python program that serves."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def port_of(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for a service's start, and return its port and the lines that it printed."""
    assert process.stdout is not None and process.stderr is not None
    lines = "".join(islice(process.stdout, 4))
    found = re.search(r"http://127\.0\.0\.1:(\d+)", lines)
    assert found, lines + process.stderr.read()
    return int(found[1]), lines


def flags(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_service_flags(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def write_page(folder: Path) -> Path:
    """Write files in place of the page: the service is tested without it."""
    for name, _ in PAGE_FILES.values():
        (folder / name).write_text(f"猫 {name}", encoding="utf-8")
    return folder


def read(response: http.client.HTTPResponse) -> Response:
    content = response.read()
    is_json = response.headers.get("content-type") == "application/json"
    headers = {name.lower(): value for name, value in response.headers.items()}
    return response.status, json.loads(content) if is_json else content, headers


def read_all(connection: socket.socket) -> bytes:
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


def png(value: int = 128, size: tuple[int, int] = (9, 7)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return file.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def multipart(parts: list[tuple[str, str | None, bytes]], boundary: str = "----b0und") -> tuple[bytes, str]:
    """Return a form as RFC 7578 defines it, and its type; a part is name, file name or None, and content."""
    body = b""
    for name, file, content in parts:
        ending = f'; filename="{file}"\r\nContent-Type: image/png' if file is not None else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{ending}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
