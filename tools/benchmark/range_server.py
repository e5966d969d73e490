"""A folder behind HTTP on loopback, with ranges, for `tools.benchmark stream`.

`python -m tools.benchmark.range_server DIR` prints its address, and ends with its standard input.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from common.paths import ROOT


class _Handler(BaseHTTPRequestHandler):
    """Sends files of the folder, whole or a part; the connection stays open."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Send a file's bytes."""
        path = self.folder / Path(unquote(self.path)).name
        if not path.is_file():
            self.send_error(404)
            return
        with path.open("rb") as file:
            size = path.stat().st_size
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(found[1]), min(int(found[2]), size - 1)) if found else (0, size - 1)
            self.send_response(206 if found else 200)
            if found:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            with suppress(ConnectionError):
                self.connection.sendfile(file, first, last - first + 1)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder by a process of its own; yield its address."""
    command = [sys.executable, "-m", "tools.benchmark.range_server", str(folder.resolve())]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def main() -> None:
    """Serve until standard input ends."""
    _Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
