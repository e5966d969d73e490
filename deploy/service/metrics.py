"""What GET /metrics tells, in Prometheus's words."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
OTHER = "other"  # the route of whatever nobody serves: a label must not grow with what is asked


class Metrics:
    """Counters and histograms of one service, in a registry of its own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = frozenset(paths)
        self._registry = CollectorRegistry()
        to, of = self._registry, ("route", "code")
        self._requests = Counter("service_requests", "Requests answered, by code", of, registry=to)
        self._errors = Counter("service_errors", "Requests answered with a code from 400", of, registry=to)
        self._seconds = Histogram(
            "service_request_seconds", "From the headers to the answer", ("route",), buckets=SECONDS, registry=to
        )
        self._batch = Histogram("service_batch_pictures", "Images in a batch", buckets=BATCH_SIZES, registry=to)
        self._net = Histogram("service_net_seconds", "What the net took for a batch", buckets=SECONDS, registry=to)
        self._queue = Gauge("service_queue_pictures", "Images decoding, waiting or in the net", registry=to)
        ProcessCollector(registry=to)

    def watch_queue(self, held: Callable[[], int]) -> None:
        """Ask `held` for the length of the queue whenever the metrics are asked for."""
        self._queue.set_function(held)

    def on_batch(self, count: int, seconds: float) -> None:
        """Note a batch that the net answered."""
        self._batch.observe(count)
        self._net.observe(seconds)

    def on_request(self, path: str, code: int, seconds: float) -> None:
        """Note an answer; `code` is the true one, whatever the HTTP status says."""
        route = path if path in self._paths else OTHER
        self._count(route, code)
        self._seconds.labels(route).observe(seconds)

    def on_refusal(self, code: int) -> None:
        """Note an answer to what never became a request: headers that are too long or late, a connection too many."""
        self._count(OTHER, code)

    def text(self) -> bytes:
        """Give the metrics as text."""
        return generate_latest(self._registry)

    def _count(self, route: str, code: int) -> None:
        self._requests.labels(route, str(code)).inc()
        if code >= 400:
            self._errors.labels(route, str(code)).inc()
