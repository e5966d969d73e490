"""What the service holds while it runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.metadata import ModelMetadata
from deploy.service.handlers import Answering
from deploy.service.metrics import Metrics
from deploy.service.routes import Route


@dataclass(frozen=True)
class Served:
    """What there is to serve."""

    routes: Sequence[Route]
    answering: Answering
    metadata: ModelMetadata
    metrics: Metrics
    has_heatmaps: bool
    token: str  # empty: none is asked for
    departing: threading.Event  # set once the service is about to stop
