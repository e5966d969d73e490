"""The service's routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    from artifacts.metadata import ModelMetadata
    from deploy.inference.prediction import Prediction

FEEDBACK = "/feedback"  # the path of labels, with --audit
HEATMAP = "heatmap"  # requested by the switch need_heatmap
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/texts.js": ("texts.js", "text/javascript; charset=utf-8"),
}
OPEN_PATHS = {
    *PAGE_FILES,
    "/healthz",
    "/readyz",
    "/docs",
    "/openapi.json",
}  # need no token: they reveal no image or net


class ServiceError(UserError):
    """A service that cannot start; the message is one sentence for the user."""


@dataclass(frozen=True)
class Route:
    """A path that takes images: the boolean fields of its requests, and one image's entry in its response."""

    path: str
    switches: Mapping[str, bool]  # with their defaults
    entry: Callable[[Prediction, ModelMetadata, Mapping[str, bool]], dict[str, Any]]


def native_entry(prediction: Prediction, metadata: ModelMetadata, switches: Mapping[str, bool]) -> dict[str, Any]:
    """Return a prediction as inference.py writes it, without the file; of masks with the mask itself."""
    return prediction.response()


NATIVE = Route("/predict", {f"need_{HEATMAP}": False}, native_entry)
ROUTES = (NATIVE,)  # of `python -m deploy.service`
