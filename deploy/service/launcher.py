"""The HTTP service: `python -m deploy.service --weights F` predicts for the images that clients send.

A program with flags of its own adds `add_service_flags` to its parser, defines --device and --service_port itself, and
calls `serve` with its routes.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import FlagParser, number, run_program
from deploy.service.cli_args import EPILOG, TOKEN_VARIABLE, add_service_flags
from deploy.service.listener import address_of, bind, is_local, listen
from deploy.service.routes import FEEDBACK, ROUTES, Route, ServiceError

if TYPE_CHECKING:
    from deploy.inference.predictor import Predictor

PORT_FLAG = "--service_port"
PROGRAM = "python -m deploy.service"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes, and return the exit code: 0, or 2 for a mistake of the user's."""
    parser = FlagParser(
        prog=PROGRAM,
        description="Predict for images over HTTP.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights", metavar="F", type=Path, required=True, help="a checkpoint, or any file that deploy.export wrote")
    add("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--service_port", metavar="N", type=number(0, 65535), default=8080, help="default 8080; 0: any that is free")
    add_service_flags(parser)
    args = parser.parse_args(argv)
    return run_program(PROGRAM, lambda: serve(args.weights, ROUTES, args))


def serve(weights: Path, routes: Sequence[Route], args: argparse.Namespace) -> int:
    """Serve the routes until SIGTERM or Ctrl-C, complete the requests in flight, and return the exit code 0.

    `args` has the flags of `add_service_flags`, `device` and `service_port`. Raises UserError.
    """
    from artifacts.formats import artifact_kind
    from common.malloc import return_freed_memory

    artifact_kind(weights)  # a missing file is an error before the libraries are loaded
    token = _token()
    return_freed_memory()
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata in clients' images
    with bind(args.host, args.service_port, PORT_FLAG) as listener:
        from deploy.backends.base import CHANGED
        from deploy.backends.loading import load_backend
        from deploy.inference.decision import foreign_calibration
        from deploy.inference.predictor import Predictor
        from deploy.inference.tiles import TiledPredictor
        from deploy.service.server import open_server, stop_on_signals

        how = {"runtime": args.runtime, "precision": args.precision, "accept_changed": args.accept_changed}
        backend, metadata = load_backend(weights, device=args.device, **how)
        predictor = Predictor(backend, metadata)
        if args.tiles is not None:
            predictor = TiledPredictor(backend, metadata, args.tiles)
        opened = open_server(predictor, routes, args, token, model_name=weights.stem)
        with opened as server, stop_on_signals(server):
            listen(listener, PORT_FLAG)
            paths = [*(route.path for route in routes), *([FEEDBACK] if args.audit else [])]
            print(_start_message(weights, predictor, paths, listener), flush=True)
            changed = CHANGED if metadata.is_changed else ""
            for text in filter(None, (changed, foreign_calibration(metadata, backend.name, args.precision))):
                print(f"warning: {weights}: {text}", file=sys.stderr)
            if not token and not is_local(listener):
                print(f"any client on the network may use it: {TOKEN_VARIABLE} sets a bearer token", file=sys.stderr)
            server.run(sockets=[listener])
    return 0


def _token() -> str:
    """Return the bearer token of the environment, "" where none is set. Raises ServiceError."""
    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and (not token.strip() or token != token.strip() or not token.isprintable()):
        raise ServiceError(f"{TOKEN_VARIABLE} must be a token without spaces around it; unset it to require none")
    return token or ""


def _start_message(weights: Path, predictor: Predictor, paths: Sequence[str], listener: socket.socket) -> str:
    metadata, backend = predictor.metadata, predictor.backend
    size = f"{metadata.preprocess.width}x{metadata.preprocess.height}"
    name, classes = metadata.net.get("name", "a net"), metadata.num_classes
    net = f"{name} ({classes} classes, {size}) on {backend.name} {backend.device}"
    posted, where = ", ".join(f"POST {path}" for path in paths), address_of(listener)
    return f"serving {net}\n  address  {where}\n  net      {weights}\n  paths    {posted}; GET / /docs /metrics /v2"
