"""The service's routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    from artifacts.metadata import ModelMetadata
    from deploy.inference.prediction import Prediction

HEATMAP = "heatmap"  # the switch that asks for one is need_heatmap
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
OPEN_PATHS = {*PAGE_FILES, "/healthz", "/readyz", "/docs", "/openapi.json"}  # they tell nothing of images or nets


class ServiceError(UserError):
    """A service that cannot start; the message is one sentence for the user."""


@dataclass(frozen=True)
class Route:
    """A path that takes images: the boolean fields of its requests, and what it says of one image's answer."""

    path: str
    switches: Mapping[str, bool]  # with their defaults
    entry: Callable[[Prediction, ModelMetadata, Mapping[str, bool]], dict[str, Any]]


def native_entry(answer: Prediction, metadata: ModelMetadata, switches: Mapping[str, bool]) -> dict[str, Any]:
    """Give an answer as inference.py writes it, without the file."""
    return {key: value for key, value in answer.to_dict().items() if key != "file"}


NATIVE = Route("/predict", {f"need_{HEATMAP}": False}, native_entry)
