"""The Prometheus metrics of GET /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from deploy.service.audit import Audit

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
AUDIT = {
    "drawn": "Accepted predictions drawn since the start",
    "labelled": "Labels of drawn predictions",
    "wrong": "Labels that are not what was predicted",
    "evidence": "Against the target risk: 20 is enough",
    "exceeded": "1: the risk among the accepted is above its target",
    "drift": "1: more images are set aside than at the calibration",
}
OTHER = "other"  # the label of all other paths: unknown ones must not grow the number of labels


class Metrics:
    """Counters and histograms of one service, in a registry of its own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = frozenset(paths)
        self._registry = CollectorRegistry()
        registry, labels = self._registry, ("route", "code")
        self._requests = Counter("service_requests", "Requests by route and code", labels, registry=registry)
        self._errors = Counter("service_errors", "Requests with a code of 400 or above", labels, registry=registry)
        self._seconds = Histogram(
            "service_request_seconds",
            "From the headers to the response",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self._batch = Histogram("service_batch_pictures", "Images in a batch", buckets=BATCH_SIZES, registry=registry)
        self._net = Histogram("service_net_seconds", "Time of a batch in the net", buckets=SECONDS, registry=registry)
        self._queue = Gauge("service_queue_pictures", "Images decoding, waiting or in the net", registry=registry)
        ProcessCollector(registry=registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Read the queue's length from `length` at each scrape."""
        self._queue.set_function(length)

    def watch_audit(self, audit: Audit) -> None:
        """Read the audit's numbers at each scrape."""
        for name, text in AUDIT.items():
            gauge = Gauge(f"service_audit_{name}", text, registry=self._registry)
            gauge.set_function(lambda name=name: audit.metrics()[name])  # type: ignore[misc]

    def on_batch(self, count: int, seconds: float) -> None:
        """Count a batch that the net has run."""
        self._batch.observe(count)
        self._net.observe(seconds)

    def on_request(self, path: str, code: int, seconds: float) -> None:
        """Count a response; `code` is the actual one, also where --http_status ok sends 200."""
        route = path if path in self._paths else OTHER
        self._count(route, code)
        self._seconds.labels(route).observe(seconds)

    def on_rejection(self, code: int) -> None:
        """Count what never became a request: headers that are too long or late, a connection too many."""
        self._count(OTHER, code)

    def text(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _count(self, route: str, code: int) -> None:
        self._requests.labels(route, str(code)).inc()
        if code >= 400:
            self._errors.labels(route, str(code)).inc()
