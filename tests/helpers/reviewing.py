"""A review's server in the tests' own process, and its client."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common.paths import ROOT
from deploy.service.origins import AllowedOrigins
from review.desk import Desk, OpenReviews, Options
from review.images import ImageShow
from review.requests import TOKEN_HEADER
from review.server import make_server
from review.users import Users

PATIENCE_S = 30
Response = tuple[int, Any, Mapping[str, str]]  # status, JSON or bytes, headers


class Client:
    """One browser: its cookie and its token."""

    def __init__(self, port: int) -> None:
        self.port, self.cookie, self.token = port, "", ""

    def send(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
        """Send a request over a new connection, and return the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            own = {"content-type": "application/json", "cookie": self.cookie, TOKEN_HEADER: self.token}
            content = json.dumps(body) if body is not None and not isinstance(body, bytes) else body
            connection.request(method, path, content, {**own, **(headers or {})})
            response = connection.getresponse()
            data = response.read()
            found = {name.lower(): text for name, text in response.headers.items()}
            if "set-cookie" in found:
                self.cookie = found["set-cookie"].partition(";")[0]
            is_json = found.get("content-type") == "application/json"
            return response.status, json.loads(data) if is_json else data, found
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Any:
        """Return what a GET is answered with; it must be 200."""
        status, content, _ = self.send("GET", path, headers=headers)
        assert status == 200, content
        return content

    def post(self, name: str, **body: Any) -> Any:
        """Return what a POST is answered with; it must be 200."""
        status, content, _ = self.send("POST", f"/api/{name}", body)
        assert status == 200, content
        return content

    def refused(self, name: str, **body: Any) -> tuple[int, str]:
        """Return status and message of a POST that is refused."""
        status, content, _ = self.send("POST", f"/api/{name}", body)
        assert status >= 400, content
        return status, content["msg"]

    def begin(self) -> dict[str, Any]:
        """Get a session; return what it says."""
        found: dict[str, Any] = self.get("/api/session")
        self.token = found.get("token", "")
        return found

    def login(self, user: str, password: str) -> dict[str, Any]:
        """Log in; return what the session says."""
        self.post("login", user=user, password=password)
        return self.begin()


@contextmanager
def reviewing(
    source: Path | None, *tags: str, users: Mapping[str, str] | None = None, **options: Any
) -> Iterator[tuple[int, Desk]]:
    """Run the server of a review in a thread; yield its port and desk."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        how = Options(tags, **{"feedback": True, **options})
        reviews = stack.enter_context(OpenReviews(how))
        if source:
            reviews.get(source)
        images = ImageShow(workers=1)
        stack.callback(images.close)
        desk = Desk(how, source, reviews, images, Users(users or {}), AllowedOrigins(), lambda: None, "review_test")
        server = make_server(desk)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until = time.monotonic() + PATIENCE_S
            while not server.started and time.monotonic() < until:
                time.sleep(0.01)
            yield listener.getsockname()[1], desk
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@contextmanager
def started(source: Path, *flags: str, verb: str = "browser/images") -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """Start the command on any free port; yield its process and a client with a session."""
    words = [verb, "--src", str(source), "--port", "0", *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.antgo", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout and process.stderr
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        found = re.search(r"http://127\.0\.0\.1:(\d+)", lines[1])
        assert found, process.stderr.read()
        client = Client(int(found[1]))
        client.begin()
        yield process, client
    finally:
        process.kill()
        process.communicate()
