"""Bodies of a megabyte that are made to cost much, and a client that sends one."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

MEGABYTE = 10**6


class UploadThread:
    """A request that is sent by urllib in a thread."""

    def __init__(self, port: int, path: str, body: bytes, kind: str) -> None:
        self._request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"content-type": kind})
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(self._send)
        self._pool.shutdown(wait=False)

    def is_done(self) -> bool:
        """Return whether the response has arrived."""
        return self._done.done()

    def wait(self) -> None:
        """Wait for the response."""
        self._done.result()

    def _send(self) -> None:
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(self._request, timeout=60):
            pass


def large_uploads() -> Iterator[tuple[bytes, str]]:
    """Yield bodies of about a megabyte and their types: large images, decompression bombs, forms and texts."""
    yield _in_json(_flat_png(7000, 3400)), "application/json"  # within 24 megapixels
    yield _in_json(_flat_png(20_000, 9_000)), "application/json"
    noise = np.random.default_rng(0).integers(0, 256, (560, 560, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    yield _in_json(file.getvalue()), "application/json"
    yield b'{"content": ' + b"[" * MEGABYTE, "application/json"
    yield b'{"content": "' + b"A" * MEGABYTE + b'"}', "application/json"
    yield b"&".join([b"a=b"] * (MEGABYTE // 4)), "application/x-www-form-urlencoded"
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'
    yield part * (MEGABYTE // len(part)), "multipart/form-data; boundary=x"


def _flat_png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def _in_json(content: bytes) -> bytes:
    """Return an image's request, padded with blanks to a megabyte."""
    return json.dumps({"content": base64.b64encode(content).decode()}).encode().ljust(MEGABYTE)
