"""The limits of the service; each is a flag of the same name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _limit(default: float, low: float, high: float, text: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "text": text})


@dataclass(frozen=True)
class Limits:
    """What one request, and all requests together, may take. MB are 10^6 bytes."""

    max_body_mb: int = _limit(32, 1, 4096, "of one request")
    max_picture_mb: int = _limit(16, 1, 4096, "of one encoded image; base64 is measured before it is decoded")
    max_megapixels: int = _limit(24, 1, 1000, "of one image; the net's own max_pixels counts as well")
    max_pictures: int = _limit(16, 1, 10_000, "in one request")
    max_parts: int = _limit(64, 1, 10_000, "fields or parts of a form")
    max_part_header_bytes: int = _limit(4096, 64, 65_536, "headers of one part of a form")
    max_header_bytes: int = _limit(16_384, 256, 1_048_576, "first line and headers of a request")
    header_timeout_s: float = _limit(10.0, 0.1, 3600, "for the first line and headers to arrive")
    request_timeout_s: float = _limit(30.0, 0.1, 3600, "from the headers to the response; a slow client gets 408")
    keep_alive_s: int = _limit(75, 0, 3600, "an idle connection is kept")
    max_connections: int = _limit(512, 1, 65_536, "open at once; one more gets 503")
    max_pending_mb: int = _limit(256, 1, 1_048_576, "of bodies held at once; one more gets 503")
    queue: int = _limit(64, 1, 100_000, "images in a burst; under overload some requests get 503")
    decode_memory_mb: int = _limit(1536, 1, 1_048_576, "that decoding may take at once: 40 bytes a pixel at worst")
    tile_memory_mb: int = _limit(1024, 1, 1_048_576, "of --tiles: half for one large image, half for all small ones")
    decode_timeout_s: float = _limit(10.0, 0.1, 3600, "for decoding one image, which is then given up with 422")
