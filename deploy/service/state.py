"""What the service holds while it runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.metadata import ModelMetadata
from deploy.service.audit import Audit
from deploy.service.feedback import FeedbackHandler
from deploy.service.handlers import PredictHandler
from deploy.service.infer_handler import InferHandler
from deploy.service.metrics import Metrics
from deploy.service.origins import AllowedOrigins
from deploy.service.request_guard import RequestGuard
from deploy.service.routes import Route


@dataclass(frozen=True)
class ServiceState:
    """The parts that the routes and the middleware share."""

    routes: Sequence[Route]
    guard: RequestGuard
    handler: PredictHandler
    infer: InferHandler
    metadata: ModelMetadata
    metrics: Metrics
    has_heatmaps: bool
    token: str  # empty: none is required
    origins: AllowedOrigins
    root_path: str  # that a proxy serves it below; empty: none
    draining: threading.Event  # set once the service is about to stop
    audit: Audit | None = None
    feedback: FeedbackHandler | None = None  # with an audit

    def is_ready(self) -> bool:
        """Return whether an image would be admitted now, and no shutdown is near."""
        return self.guard.is_ready() and not self.draining.is_set()
