"""Several passes over an image: dropout kept on, several views, several nets; each returns scores (M, N, K)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from artifacts.metadata import ModelMetadata
from deploy.backends.base import Backend
from deploy.backends.torch_backend import CheckpointBackend
from deploy.inference.uncertainty_scores import PASS_SCORES, UncertaintyError, softmax, split_entropy

SEED = 0
SHIFT, SCALES = 1 / 16, (0.9, 1.1)  # of the image's side; a scale above 1 enlarges
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
RATES = ("drop_rate", "dropout", "attention_dropout")  # of DenseNet's layers and of attention: no layer of its own

Passes = Callable[[np.ndarray], np.ndarray]  # prepared images (N, ...) -> scores (M, N, K)


class Repetition:
    """The uncertainty of repeated passes, as a `Measure` of the Predictor: PASS_SCORES of `split_entropy`."""

    names: tuple[str, ...] = PASS_SCORES

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def __call__(self, images: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the three entropies (N,) of a batch. Raises BackendError."""
        return split_entropy(self._passes(images))


@dataclass(frozen=True)
class View:
    """A view of an image: flipped or not, moved by shares of its height and width, enlarged by `scale`."""

    flip: bool = False
    down: float = 0.0
    right: float = 0.0
    scale: float = 1.0


def dropout_passes(backend: Backend, metadata: ModelMetadata, count: int, seed: int = SEED) -> Passes:
    """Return `count` passes with dropout kept on, all else as deployed (Gal & Ghahramani 2016).

    The masks follow from the seed and the batch. Raises UncertaintyError for a net without dropout.
    """
    if not isinstance(backend, CheckpointBackend):
        raise UncertaintyError("only a checkpoint's net can keep its dropout on: exported files have none")
    layers = [layer for layer in backend.net.modules() if _drops(layer)]
    if not layers:
        raise UncertaintyError(
            f"{metadata.net['name']} was trained without dropout, so there is none to keep on; use --repeat views"
        )

    def passes(images: np.ndarray) -> np.ndarray:
        devices = [torch.cuda.current_device()] if backend.device.startswith("cuda") else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            try:
                for layer in layers:
                    layer.training = True  # not train(), which would reach a normalisation inside it
                return np.stack([_scores(backend, images, metadata) for _ in range(count)])
            finally:
                for layer in layers:
                    layer.training = False

    return passes


def view_passes(backend: Backend, metadata: ModelMetadata, kinds: Sequence[str]) -> Passes:
    """Return passes over several views of each image; `kinds` of "flip", "shift", "scale". Any backend has them."""
    views = views_of(kinds)

    def passes(images: np.ndarray) -> np.ndarray:
        return np.stack([_scores(backend, apply_view(images, view, metadata.input), metadata) for view in views])

    return passes


def ensemble_passes(members: Sequence[tuple[Backend, ModelMetadata]]) -> Passes:
    """Return one pass of each net (Lakshminarayanan et al. 2017), each at its own temperature.

    Raises UncertaintyError unless all name the same classes and take the same images.
    """
    first = members[0][1]
    for _, metadata in members[1:]:
        for what, own, other in (
            ("classes", first.class_names, metadata.class_names),
            ("preprocessing", first.preprocess, metadata.preprocess),
            ("input", first.input, metadata.input),
            ("output", first.output, metadata.output),
        ):
            if own != other:
                raise UncertaintyError(f"the nets of an ensemble must have the same {what}, got {own} and {other}")

    def passes(images: np.ndarray) -> np.ndarray:
        return np.stack([_scores(backend, images, metadata) for backend, metadata in members])

    return passes


def views_of(kinds: Sequence[str]) -> list[View]:
    """Return the image itself, and the views of each kind."""
    views = [View()]
    if "flip" in kinds:
        views.append(View(flip=True))
    if "shift" in kinds:
        views += [View(down=SHIFT), View(down=-SHIFT), View(right=SHIFT), View(right=-SHIFT)]
    if "scale" in kinds:
        views += [View(scale=scale) for scale in SCALES]
    return views


def apply_view(images: np.ndarray, view: View, kind: str = "float32 NCHW") -> np.ndarray:
    """Return prepared images, of a `kind` of metadata.INPUTS, in a view; the edge pixels fill what comes in."""
    height, width = images.shape[2:] if kind == "float32 NCHW" else images.shape[1:3]
    rows = _resampling(height, view.scale, view.down)
    columns = _resampling(width, view.scale, view.right)
    columns = columns[:, ::-1] if view.flip else columns
    axes = "ncij" if kind == "float32 NCHW" else "nijc"
    viewed = np.einsum(
        f"hi,{axes},wj->{axes.replace('i', 'h').replace('j', 'w')}", rows, images, columns, optimize=True
    )
    return viewed.astype(np.float32) if kind == "float32 NCHW" else np.rint(viewed).astype(np.uint8)


def _resampling(size: int, scale: float, shift: float) -> np.ndarray:
    """Return the matrix (size, size) that interpolates each new position linearly from its old neighbours."""
    centre = (size - 1) / 2
    wanted = (np.arange(size) - centre) / scale + centre - shift * size
    places = np.clip(wanted, 0, size - 1)
    lower = np.minimum(places.astype(int), size - 2) if size > 1 else np.zeros(1, int)
    share = places - lower
    matrix = np.zeros((size, size))
    matrix[np.arange(size), lower] = 1 - share
    matrix[np.arange(size), np.minimum(lower + 1, size - 1)] += share
    return matrix


def _drops(layer: nn.Module) -> bool:
    if isinstance(layer, DROPOUTS):
        return layer.p > 0
    return any(isinstance(rate := getattr(layer, name, None), float) and rate > 0 for name in RATES)


def _scores(backend: Backend, images: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    return softmax(backend(images), metadata.temperature or 1.0)
