"""Decoding in other processes, each killed at a deadline and kept within a limit of memory.

A decoder is third-party C, which nothing in its own process can stop: some small, valid images keep one busy for a
minute, or make it take gigabytes. Here such an image costs its own deadline, and no other image anything.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from common.errors import ProgramError
from common.paths import ROOT
from data_loader.band_image import Decoded, image_of
from data_loader.decode_guard import GUARD
from data_loader.decoder_worker import BAD, BYTES, FIT, LOOK, MEASURE, PATH, PIXELS, REPLY, REQUEST, SHOW, SIZE, WHOLE
from data_loader.preprocess import ImageError, Preprocess

WORKER = "data_loader.decoder_worker"
START_S = 600.0  # for a process to start: minutes on a machine that is overloaded; one that dies is noticed at once
MAX_REPLY_BYTES = 1 << 28  # the largest input of a net has 201 MB
SLICES = 8  # of a deadline: while this process itself is paused, at most one of them passes
FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # each takes addresses

ENDING = "the program is ending"


class Fitted(NamedTuple):
    """An image fitted to a net's input, and the (width, height) that it was decoded at."""

    image: Decoded
    size: tuple[int, int]
    gaps: np.ndarray | None = None  # (H, W) of the image as decoded: where its pixels hold no data


class DecodeTimeoutError(ImageError):
    """An image whose decoder did not end in time."""


class DecoderStartError(ProgramError):
    """A decoder's process that does not start."""


class DecoderPool:
    """Decodes in `count` processes for as many threads; a process that fails is replaced.

    An image may take `timeout_s` (by default the guard's), and `memory_bytes` beside what its process has from the
    start. Processes start when they are first needed, or by `start`.
    """

    def __init__(
        self, preprocess: Preprocess, count: int, timeout_s: float | None = None, memory_bytes: int | None = None
    ) -> None:
        self._preprocess = preprocess
        timeout_s = GUARD.timeout_s if timeout_s is None else timeout_s
        self._decoders = [_Decoder(preprocess, timeout_s, memory_bytes) for _ in range(count)]
        self._idle: queue.LifoQueue[_Decoder] = queue.LifoQueue()
        for decoder in self._decoders:
            self._idle.put(decoder)
        self._progressed_at = time.monotonic()

    def start(self) -> None:
        """Start all processes, and wait for them. Raises DecoderStartError."""
        for decoder in self._decoders:
            decoder.start()
        for decoder in self._decoders:
            decoder.await_start()

    def fit(self, source: str | bytes, max_pixels: int) -> Fitted:
        """Return an image fitted to the net's input. Raises ImageError, DecodeTimeoutError, DecoderStartError."""
        return self._fitted(self._call(lambda decoder: decoder.call(FIT, source, max_pixels)))

    def whole(self, source: str | bytes, max_pixels: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return an image at its own size, uint8 (H, W, C), and which of its pixels (H, W) hold no data, if any.

        Raises ImageError, DecodeTimeoutError, DecoderStartError.
        """
        most_bytes = SIZE.size + max_pixels * (self._preprocess.image_channels + 1)
        content = self._call(lambda decoder: decoder.call(WHOLE, source, max_pixels, most_bytes=most_bytes))
        width, height = SIZE.unpack_from(content)
        shape = height, width, self._preprocess.image_channels
        return self._pixels_and_gaps(content, shape, (width, height))

    def show(self, source: str | bytes, max_pixels: int, side_px: int) -> tuple[Image.Image, Decoded]:
        """Return an RGB image to look at, no side longer than `side_px`, and the one that is fitted to the net's input.

        Raises ImageError, DecodeTimeoutError, DecoderStartError.
        """
        content = self._call(lambda decoder: decoder.call(SHOW, source, max_pixels, side_px))
        width, height = SIZE.unpack_from(content)
        end = SIZE.size + width * height * 3
        return Image.frombytes("RGB", (width, height), content[SIZE.size : end]), self._fitted(content[end:]).image

    def look(self, source: str | bytes, max_pixels: int, side_px: int) -> Image.Image:
        """Return an RGB image to look at, no side longer than `side_px`; of a JPEG no more pixels are decoded.

        Raises ImageError, DecodeTimeoutError, DecoderStartError.
        """
        content = self._call(lambda decoder: decoder.call(LOOK, source, max_pixels, side_px))
        return Image.frombytes("RGB", SIZE.unpack_from(content), content[SIZE.size :])

    def measure(self, source: str | bytes, max_pixels: int) -> tuple[int, int]:
        """Return an image's (width, height), from its head.

        Raises ImageError, DecodeTimeoutError, DecoderStartError.
        """
        width, height = SIZE.unpack(self._call(lambda decoder: decoder.call(MEASURE, source, max_pixels)))
        return width, height

    def is_stalled(self, seconds: float) -> bool:
        """Return whether every process is busy, and none has finished anything for so long."""
        return self._idle.empty() and time.monotonic() - self._progressed_at > seconds

    def close(self) -> None:
        """Kill the processes, whatever they do; a thread that waits for one gets ImageError."""
        for decoder in self._decoders:
            decoder.close()

    def _call(self, work: Callable[[_Decoder], bytes]) -> bytes:
        decoder = self._idle.get()
        if self._idle.qsize() == len(self._decoders) - 1:  # all were idle until now
            self._progressed_at = time.monotonic()
        try:
            return work(decoder)
        finally:
            self._progressed_at = time.monotonic()
            self._idle.put(decoder)

    def _fitted(self, content: bytes) -> Fitted:
        shape = self._preprocess.height, self._preprocess.width, self._preprocess.image_channels
        size = SIZE.unpack_from(content)
        pixels, gaps = self._pixels_and_gaps(content, shape, size)
        return Fitted(image_of(pixels), size, gaps)

    @staticmethod
    def _pixels_and_gaps(
        content: bytes, shape: tuple[int, int, int], size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        end = SIZE.size + math.prod(shape)
        pixels = np.frombuffer(content, np.uint8, math.prod(shape), SIZE.size).reshape(shape)
        if len(content) == end:
            return pixels, None
        bits = np.unpackbits(np.frombuffer(content, np.uint8, offset=end), count=math.prod(size))
        return pixels, bits.reshape(size[1], size[0]).astype(bool)


class _Decoder:
    """One process at a time, for one thread at a time; the lock is never held while something is decoded."""

    def __init__(self, preprocess: Preprocess, timeout_s: float, memory_bytes: int | None) -> None:
        values = {"preprocess": preprocess.to_dict(), "timeout_s": timeout_s, "memory_bytes": memory_bytes}
        self._settings, self._timeout_s = json.dumps(values), timeout_s
        self._child: _Child | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def start(self) -> _Child:
        """Return the process, started if there is none. Raises ImageError after `close`."""
        with self._lock:
            if self._is_closed:
                raise ImageError(ENDING)
            if self._child is None:
                self._child = _Child(self._settings)
            return self._child

    def await_start(self) -> None:
        """Wait until the process is ready. Raises DecoderStartError."""
        self.start().await_start()

    def call(
        self,
        kind: bytes,
        source: str | bytes,
        max_pixels: int,
        side_px: int = 0,
        most_bytes: int = MAX_REPLY_BYTES,
    ) -> bytes:
        """Return the reply of the process, `most_bytes` at most.

        Raises ImageError, DecodeTimeoutError, DecoderStartError.
        """
        form, data = (BYTES, source) if isinstance(source, bytes) else (PATH, os.fsencode(source))
        child = self.start()
        try:
            child.await_start()
            child.send(REQUEST.pack(kind, form, max_pixels, side_px, len(data)), data, self._timeout_s)
            status, content = child.reply(self._timeout_s, most_bytes)
        except DecoderStartError as error:
            if self._is_closed:
                raise ImageError(ENDING) from error
            raise
        except TimeoutError as error:
            self._replace()
            raise DecodeTimeoutError(f"its decoder did not end within {self._timeout_s:g} seconds") from error
        except (EOFError, OSError) as error:
            self._replace()
            raise ImageError(ENDING if self._is_closed else "its decoder crashed") from error
        if status == PIXELS:
            return content
        text = content.decode("utf-8", "surrogateescape")
        raise ImageError(text) if status == BAD else RuntimeError(text)

    def close(self) -> None:
        """Kill the process."""
        with self._lock:
            self._is_closed = True
            if self._child is not None:
                self._child.kill()

    def _replace(self) -> None:
        with self._lock:
            if self._child is not None:
                self._child.kill()
            self._child = None
        with contextlib.suppress(ImageError):
            self.start()


class _Child:
    """A process of data_loader.decoder_worker, and the socket to it."""

    def __init__(self, settings: str) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._connection, theirs = socket.socketpair()
        self._is_ready = False
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER, settings],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, **FEW_THREADS, "PYTHONPATH": path},
            )

    def await_start(self) -> None:
        """Wait until the process is ready to decode. Raises DecoderStartError."""
        if self._is_ready:
            return
        try:
            self.reply(START_S)
        except (TimeoutError, EOFError, OSError) as error:
            raise DecoderStartError(f"a decoder process did not start: {str(error) or 'it ended'}") from error
        self._is_ready = True

    def send(self, head: bytes, data: bytes, timeout_s: float) -> None:
        """Send a request. Raises TimeoutError, OSError."""
        self._connection.settimeout(timeout_s)
        self._connection.sendall(head)
        self._connection.sendall(data)

    def reply(self, timeout_s: float, most_bytes: int = MAX_REPLY_BYTES) -> tuple[bytes, bytes]:
        """Return the status and the content of a reply. Raises TimeoutError, OSError; EOFError after the end."""
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        if not any(poller.poll(timeout_s * 1000 / SLICES) for _ in range(SLICES)):
            raise TimeoutError
        self._connection.settimeout(timeout_s)
        status, size = REPLY.unpack(self._read(REPLY.size))
        if size > most_bytes:  # a decoder that an image has taken over
            raise EOFError
        return status, bytes(self._read(size))

    def kill(self) -> None:
        """Kill the process, and wait for its end; what still reads from it gets an error."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self, size: int) -> bytearray:
        content = bytearray(size)
        done, view = 0, memoryview(content)
        while done < size:
            count = self._connection.recv_into(view[done:])
            if not count:
                raise EOFError
            done += count
        return content
