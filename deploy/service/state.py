"""What the service holds while it runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.metadata import ModelMetadata
from deploy.service.audit import Audit
from deploy.service.feedback import FeedbackHandler
from deploy.service.handlers import PredictHandler
from deploy.service.metrics import Metrics
from deploy.service.origins import AllowedOrigins
from deploy.service.routes import Route


@dataclass(frozen=True)
class ServiceState:
    """The parts that the routes and the middleware share."""

    routes: Sequence[Route]
    handler: PredictHandler
    metadata: ModelMetadata
    metrics: Metrics
    has_heatmaps: bool
    token: str  # empty: none is required
    origins: AllowedOrigins
    root_path: str  # that a proxy serves it below; empty: none
    draining: threading.Event  # set once the service is about to stop
    audit: Audit | None = None
    feedback: FeedbackHandler | None = None  # with an audit
