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
OPEN_INFERENCE = "/v2"  # the paths of the Open Inference Protocol
MODEL_VERSION = "1"  # of the one net, as that protocol calls it
HEADER_LENGTH = "inference-header-content-length"  # that protocol's: the bytes of the JSON before binary tensors
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
    f"{OPEN_INFERENCE}/health/live",
    f"{OPEN_INFERENCE}/health/ready",
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


def is_open_inference(path: str) -> bool:
    """Return whether a path is one of the Open Inference Protocol, whose errors have a form of their own."""
    return path == OPEN_INFERENCE or path.startswith(f"{OPEN_INFERENCE}/")


def infer_paths(model_name: str) -> tuple[str, ...]:
    """Return the paths that take tensors."""
    model = f"{OPEN_INFERENCE}/models/{model_name}"
    return f"{model}/infer", f"{model}/versions/{MODEL_VERSION}/infer"


NATIVE = Route("/predict", {f"need_{HEATMAP}": False}, native_entry)
ROUTES = (NATIVE,)  # of `python -m deploy.service`
