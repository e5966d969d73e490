"""The server, ready to listen: predictor, threads, application and uvicorn put together."""

from __future__ import annotations

import argparse
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from common.errors import UserError
from deploy.backends.base import HeatMapper
from deploy.backends.torch_backend import CheckpointBackend
from deploy.inference.predictor import Predictor
from deploy.service.app import PAGE, make_app
from deploy.service.audit import Audit, check_audited
from deploy.service.audit_file import open_audit_file
from deploy.service.batching import MicroBatcher
from deploy.service.cli_args import limits_from, origins_from
from deploy.service.feedback import FeedbackHandler
from deploy.service.handlers import PredictHandler
from deploy.service.heatmaps import HeatMaps
from deploy.service.http_protocol import GRACE_S, server_config
from deploy.service.image_decoder import ImageDecoder
from deploy.service.infer_handler import InferHandler
from deploy.service.limits import Limits
from deploy.service.metrics import Metrics
from deploy.service.request_guard import RequestGuard
from deploy.service.routes import FEEDBACK, Route, ServiceError, infer_paths
from deploy.service.state import ServiceState

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DrainingServer(uvicorn.Server):
    """A server that drains before it stops.

    For `drain_s` after SIGTERM /readyz fails and connections are closed after their response, while requests are still
    served: a load balancer has time to send the next ones elsewhere.
    """

    def __init__(
        self, config: uvicorn.Config, drain_s: float, draining: threading.Event, tick: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain_s, self._draining, self._tick = drain_s, draining, tick
        self._stop_at = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; on Ctrl-C close the port at once, and on a second signal wait for no request either."""
        if self._draining.is_set() or self.should_exit:
            self.should_exit = self.force_exit = True
        elif sig == signal.SIGTERM:
            self._draining.set()
            self._stop_at = time.monotonic() + self._drain_s
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop; uvicorn calls this every tenth of a second (TICK_S)."""
        self._tick()
        self.should_exit = self.should_exit or time.monotonic() >= self._stop_at
        return await super().on_tick(counter)


@contextmanager
def open_server(
    predictor: Predictor,
    routes: Sequence[Route],
    args: argparse.Namespace,
    token: str = "",
    page: Path = PAGE,
    model_name: str = "model",
) -> Iterator[DrainingServer]:
    """Yield a server that is warmed up; its threads and processes end with the context.

    `model_name` is the net's in the paths of the Open Inference Protocol, unless --model_name gives another.

    Raises ServiceError, DecodingError, DecoderStartError, BackendError.
    """
    limits = limits_from(args)
    if limits.max_pictures > limits.queue:
        raise ServiceError(f"--queue must be at least --max_pictures, got {limits.queue} and {limits.max_pictures}")
    model_name = args.model_name or model_name
    audited = [FEEDBACK] if args.audit else []
    metrics = Metrics([*(route.path for route in routes), *infer_paths(model_name), *audited])
    with (
        _open_audit(predictor, args, metrics) as audit,
        _open_batcher(predictor, limits, args, metrics) as (decoder, batcher),
    ):
        mapper = _heat_mapper(predictor)
        heatmaps = HeatMaps(mapper, predictor.metadata, decoder, batcher, args.workers) if mapper else None
        guard = RequestGuard(batcher, limits, always_200=args.http_status == "ok")
        draining = threading.Event()
        state = ServiceState(
            routes,
            guard,
            PredictHandler(guard, predictor.metadata, heatmaps, audit),
            InferHandler(guard, predictor, model_name),
            predictor.metadata,
            metrics,
            mapper is not None,
            token,
            origins_from(args),
            args.root_path,
            draining,
            audit,
            FeedbackHandler(audit, limits, guard) if audit is not None else None,
        )
        yield DrainingServer(_config(make_app(state, page), limits, metrics), args.drain_s, draining, batcher.tick)


@contextmanager
def stop_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C stop the server, not the process: uvicorn raises them again once it has stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _open_audit(predictor: Predictor, args: argparse.Namespace, metrics: Metrics) -> Iterator[Audit | None]:
    """Yield the audit that --audit asks for, None without it. Raises ServiceError, ResultsError."""
    if args.audit is None:
        yield None
        return
    check_audited(predictor.metadata)
    with open_audit_file(args.audit, predictor.metadata) as file:
        audit = Audit(file, predictor.metadata, args.audit_share)
        metrics.watch_audit(audit)
        yield audit


@contextmanager
def _open_batcher(
    predictor: Predictor, limits: Limits, args: argparse.Namespace, metrics: Metrics
) -> Iterator[tuple[ImageDecoder, MicroBatcher]]:
    """Yield decoder and batcher, warmed up; they are closed at the end, when every request has its response."""
    decoder = _decoder(predictor, limits, args.workers)
    batcher = MicroBatcher(
        predictor,
        decoder,
        batch_size=1 if args.no_batching else args.batch_size,
        queue_size=limits.queue,
        workers=args.workers,
        batch_wait_ms=args.batch_wait_ms,
        topk=args.topk,
        tile_memory_mb=limits.tile_memory_mb,
        on_batch=metrics.on_batch,
    )
    try:
        metrics.watch_queue(lambda: batcher.held)
        if error := batcher.warm_up().error:
            raise ServiceError(f"the net has no prediction for a grey image: {error}")
        decoder.start()
        yield decoder, batcher
    finally:
        decoder.close()
        batcher.close()


def _decoder(predictor: Predictor, limits: Limits, workers: int) -> ImageDecoder:
    max_pixels, memory_bytes = limits.max_megapixels * 10**6, limits.decode_memory_mb * 10**6
    return ImageDecoder(predictor.metadata, max_pixels, memory_bytes, workers, limits.decode_timeout_s)


def _heat_mapper(predictor: Predictor) -> HeatMapper | None:
    """Return the heat mapper of a checkpoint whose net has positions to map, else None."""
    if not isinstance(predictor.backend, CheckpointBackend) or predictor.metadata.output != "logits":
        return None
    try:
        return predictor.backend.heat_mapper(predictor.metadata)
    except UserError:
        return None


def _config(app: ASGIApp, limits: Limits, metrics: Metrics) -> uvicorn.Config:
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every damaged form
    return server_config(app, limits, metrics.on_rejection, math.ceil(limits.request_timeout_s + 2 * GRACE_S))
