"""A folder served over HTTP on loopback, with faults."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.helpers.local_server import serving


class FolderHandler(BaseHTTPRequestHandler):
    """Answers with files, or parts of them where the server has ranges."""

    server: FolderServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.server.folder / unquote(self.path).lstrip("/")
        status = self.server.statuses.get(path.name, 200 if path.is_file() else 404)
        if status != 200:
            self.send_error(status)
            return
        content = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found and self.server.has_ranges:
            first, last = int(found[1]), min(int(found[2]), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with self.server.lock:
            sent = content[: self.server.left]
            self.server.left -= len(sent)
            self.server.sent[path.name] = self.server.sent.get(path.name, 0) + len(sent)
        with suppress(OSError):
            self.wfile.write(sent)


class FolderServer(ThreadingHTTPServer):
    """`left` bytes are sent until connections break off; `sent` are those of each file; `statuses` refuse files."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), FolderHandler)
        self.folder, self.has_ranges = folder, True
        self.left = 2**40
        self.sent: dict[str, int] = {}
        self.statuses: dict[str, int] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def folder_server(folder: Path) -> Iterator[FolderServer]:
    """Serve a folder."""
    with serving(FolderServer(folder)) as server:
        yield server
