"""The server of a review: uvicorn with the service's limits, until it is finished or a signal comes."""

from __future__ import annotations

import signal
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from deploy.service.http_protocol import server_config
from deploy.service.limits import Limits
from review.app import make_app
from review.desk import Desk

LIMITS = Limits(max_connections=256)
SHUTDOWN_S = 3  # for requests in progress


class ReviewServer(uvicorn.Server):
    """A server that notes the signal that ends it; a second one waits for no request."""

    received: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        self.force_exit = self.received is not None
        self.received, self.should_exit = sig, True


def server_of(app: ASGIApp) -> ReviewServer:
    """Return a server of an application, with the limits of all pages."""
    return ReviewServer(server_config(app, LIMITS, lambda code: None, SHUTDOWN_S))


def make_server(desk: Desk) -> ReviewServer:
    """Return a server, which ends once the review is finished."""
    server = server_of(make_app(desk))

    def finish() -> None:
        server.should_exit = True

    desk.finish = finish
    return server


def serve(desk: Desk, listener: socket.socket) -> int:
    """Serve until the review is finished or a signal comes; what there is of tags is written. Return the exit code.

    Raises OSError.
    """
    server = make_server(desk)
    server.run(sockets=[listener])
    if desk.is_finished:
        return 0
    if desk.options.feedback and not desk.options.task:  # of a labelling the journal has it all
        for review in desk.reviews.all():
            review.write_result()
    return 128 + (server.received or signal.SIGINT)
