"""The service's flags, its limits among them."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import fields

from common.cli import named_path, number
from deploy.backends.base import ACCEPT_CHANGED_HELP, DEFAULT_OVERLAP, PRECISION_HELP, PRECISIONS, RUNTIMES
from deploy.service.limits import Limits
from deploy.service.origins import AllowedOrigins, is_address, is_origin

TOKEN_VARIABLE = "SERVICE_TOKEN"
EPILOG = f"""\
The environment variable {TOKEN_VARIABLE}, if set, is the bearer token that
requests must carry. On SIGTERM and Ctrl-C, requests in flight are completed first."""


def add_service_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags of the service but --weights, --device and --service_port, which each program names itself."""
    add = parser.add_argument_group("service").add_argument
    add("--host", default="127.0.0.1", help="the address to listen on (default 127.0.0.1: this machine only)")
    add(
        "--http_status",
        choices=("true", "ok"),
        default="true",
        help="HTTP status of an error response: the actual code (default), or 200 with the code in the body only",
    )
    add("--topk", metavar="K", type=number(1, 10**9), default=5, help="classes listed for an image (default 5)")
    add("--runtime", choices=RUNTIMES, default="auto", help="what runs an ONNX file (default auto)")
    add("--precision", choices=PRECISIONS, default="auto", help=PRECISION_HELP)
    add("--accept_changed", action="store_true", help=ACCEPT_CHANGED_HELP)
    workers = min(max(os.cpu_count() or 1, 2), 16)  # two at least: one bad image must not hold up the others
    add("--workers", metavar="N", type=number(1, 256), default=workers, help=f"decoding processes (default {workers})")
    add("--batch_size", metavar="N", type=number(1, 1024), default=8, help="images in the net at once (default 8)")
    add("--no_batching", action="store_true", help="one image at a time: --batch_size 1")
    add(
        "--batch_wait_ms",
        metavar="MS",
        type=number(0.0, 1000.0),
        default=0.0,
        help="how long a batch that is not full waits for more images (default 0)",
    )
    add(
        "--tiles",
        metavar="OVERLAP",
        type=number(0.0, 0.9),
        nargs="?",
        const=DEFAULT_OVERLAP,
        help="nets that give masks or boxes: see images at their own scale, in tiles of the net's input size that "
        f"overlap by this share (default {DEFAULT_OVERLAP}), as inference.py --tiles does",
    )
    add(
        "--drain_s",
        metavar="S",
        type=number(0.0, 3600.0),
        default=2.0,
        help="how long after SIGTERM requests are still served, while /readyz fails (default 2)",
    )
    _add_audit_flags(parser)
    _add_web_flags(parser)
    add_limit = parser.add_argument_group("limits").add_argument
    for item in fields(Limits):
        default, low, high = item.default, item.metadata["low"], item.metadata["high"]
        text = f"{item.metadata['text']} (default {default:g})"
        add_limit(f"--{item.name}", metavar="N", type=number(low, high), default=default, help=text)


def _add_audit_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("audit").add_argument
    add(
        "--audit",
        metavar="F",
        type=named_path,
        help="test the calibration while it is used: draw accepted predictions, take their true classes at POST "
        "/feedback, and keep them in this file",
    )
    add(
        "--audit_share",
        metavar="P",
        type=number(1e-6, 1.0),
        default=0.05,
        help="share of the accepted predictions that is drawn (default 0.05)",
    )


def _add_web_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("web").add_argument
    add(
        "--allowed_hosts",
        metavar="NAME",
        nargs="+",
        type=str.lower,
        default=[],
        help="names, beside localhost, that clients may call the service by (* for all); numbers need none on --host "
        "addresses of a network",
    )
    add(
        "--cors_origins",
        metavar="ORIGIN",
        nargs="+",
        type=_origin,
        default=[],
        help="origins, such as https://www.example.org, whose pages may use the service (* for all; default: none)",
    )
    add(
        "--root_path",
        metavar="PATH",
        type=_root_path,
        default="",
        help="the path below which a proxy serves it, such as /classify",
    )
    add(
        "--model_name",
        metavar="NAME",
        type=_model_name,
        default="",
        help="the net's name below /v2/models, for clients of the Open Inference Protocol (default: the file's without "
        "its ending)",
    )


def _origin(text: str) -> str:
    if not is_origin(text):
        raise argparse.ArgumentTypeError(f'must be an origin such as https://www.example.org, or *, got "{text}"')
    return text


def _model_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f'must be of letters, digits, "." "_" and "-", got "{text}"')
    return text


def _root_path(text: str) -> str:
    if text and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", text):
        raise argparse.ArgumentTypeError(f'must be a path such as /classify, without a slash at its end, got "{text}"')
    return text


def limits_from(args: argparse.Namespace) -> Limits:
    """Return the limits that the flags set."""
    return Limits(**{item.name: getattr(args, item.name) for item in fields(Limits)})


def origins_from(args: argparse.Namespace) -> AllowedOrigins:
    """Return the names and origins that the flags allow; a name to listen on is one of them."""
    named = set() if is_address(args.host) else {args.host.lower()}
    return AllowedOrigins(named | set(args.allowed_hosts), frozenset(args.cors_origins))
