"""The service's flags, and among them its limits."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from deploy.inference.cli_args import PRECISION_HELP, PRECISIONS, RUNTIMES

TOKEN_VARIABLE = "SERVICE_TOKEN"
EPILOG = f"""\
The environment variable {TOKEN_VARIABLE}, where it is set, is a bearer token that
requests must carry. SIGTERM and Ctrl-C let what is in flight end first."""


def _limit(default: float, low: float, high: float, text: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "text": text})


@dataclass(frozen=True)
class Limits:
    """What a request, and all of them together, may cost. Each is a flag of the same name; MB are 10^6 bytes."""

    max_body_mb: int = _limit(32, 1, 4096, "of one request")
    max_picture_mb: int = _limit(16, 1, 4096, "of one picture, encoded; base64 is measured before it is decoded")
    max_megapixels: int = _limit(24, 1, 1000, "of one picture; the net's own max_pixels counts as well")
    max_pictures: int = _limit(16, 1, 10_000, "in one request")
    max_parts: int = _limit(64, 1, 10_000, "fields or parts of a form")
    max_part_header_bytes: int = _limit(4096, 64, 65_536, "headers of one part of a form")
    max_header_bytes: int = _limit(16_384, 256, 1_048_576, "first line and headers of a request")
    header_timeout_s: float = _limit(10.0, 0.1, 3600, "for the first line and headers to come")
    request_timeout_s: float = _limit(30.0, 0.1, 3600, "from the headers to the answer; a slow sender gets 408")
    keep_alive_s: int = _limit(75, 0, 3600, "an idle connection is kept")
    max_connections: int = _limit(512, 1, 65_536, "at once; one more gets 503")
    max_pending_mb: int = _limit(256, 1, 1_048_576, "of bodies held at once; one more gets 503")
    queue: int = _limit(64, 1, 100_000, "pictures that may come at once; of more than it can answer, some get 503")
    decode_memory_mb: int = _limit(1536, 1, 1_048_576, "that decoding may take at once: 40 bytes a pixel at worst")


def add_service_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag of the service but --weights, --device and --service_port, which programs name each their way."""
    add = parser.add_argument_group("service").add_argument
    add("--host", default="127.0.0.1", help="the address to listen on (default 127.0.0.1: this machine alone)")
    add(
        "--http_status",
        choices=("true", "ok"),
        default="true",
        help="HTTP status of a mistake's answer: the true one (default), or 200, with the code in the answer alone",
    )
    add("--topk", metavar="K", type=number(1, 10**9), default=5, help="classes told of a picture (default 5)")
    add("--runtime", choices=RUNTIMES, default="auto", help="what runs an ONNX file (default auto)")
    add("--precision", choices=PRECISIONS, default="auto", help=PRECISION_HELP)
    workers = min(os.cpu_count() or 1, 16)
    add("--workers", metavar="N", type=number(1, 256), default=workers, help=f"threads that decode (default {workers})")
    add("--batch_size", metavar="N", type=number(1, 1024), default=8, help="pictures in the net at once (default 8)")
    add("--no_batching", action="store_true", help="the net takes pictures one by one: --batch_size 1")
    add(
        "--batch_wait_ms",
        metavar="MS",
        type=number(0.0, 1000.0),
        default=0.0,
        help="how long a batch that is not full waits for more (default 0)",
    )
    add(
        "--drain_s",
        metavar="S",
        type=number(0.0, 3600.0),
        default=2.0,
        help="how long after SIGTERM requests are still taken, while /readyz says no (default 2)",
    )
    add_limit = parser.add_argument_group("limits").add_argument
    for item in fields(Limits):
        default, low, high = item.default, item.metadata["low"], item.metadata["high"]
        text = f"{item.metadata['text']} (default {default:g})"
        add_limit(f"--{item.name}", metavar="N", type=number(low, high), default=default, help=text)


def limits_of(args: argparse.Namespace) -> Limits:
    """Give the limits that the flags say."""
    return Limits(**{item.name: getattr(args, item.name) for item in fields(Limits)})


def number(low: float, high: float) -> Callable[[str], float]:
    """Give what reads a number from `low` to `high` off the command line: a whole one where `low` is."""
    is_whole = isinstance(low, int)

    def parse(text: str) -> float:
        try:
            value = int(text) if is_whole else float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            title = "a whole number" if is_whole else "a number"
            raise argparse.ArgumentTypeError(f'must be {title} from {low} to {high}, got "{text}"')
        return value

    return parse
