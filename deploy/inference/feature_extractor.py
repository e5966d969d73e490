"""Embeddings: images as vectors of length 1; their scalar product, the cosine, is the similarity of two images."""

from __future__ import annotations

import itertools
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from artifacts.metadata import ModelMetadata
from common.atomic_io import atomic_path, writing
from common.errors import UserError
from configs.schema import Config
from deploy.backends.base import Backend, BackendError
from deploy.backends.loading import load_backend
from deploy.backends.torch_backend import CheckpointBackend
from deploy.inference.predictor import Prepared, prepare_ahead

if TYPE_CHECKING:
    import torch
    from torch import nn

LENGTH_TOLERANCE = 1e-3  # of a vector of length 1 in float32, of any number of features


class EmbeddingError(UserError):
    """Features that cannot be computed, or a file of them that cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class Embedded:
    """One image's features, float32 (D,) of length 1, or in `error` why it has none."""

    file: str
    features: np.ndarray | None = None
    error: str = ""


@dataclass(frozen=True)
class Embeddings:
    """The features of a folder's images, float32 (N, D), each row of length 1, and what they were made with.

    `files` are paths below the folder, `precision` is the net's, one of PRECISIONS,
    `preprocess` is the JSON text of what `Preprocess.from_dict` reads.
    """

    features: np.ndarray
    files: tuple[str, ...]
    weights_sha256: str
    precision: str
    preprocess: str

    def save(self, path: Path) -> None:
        """Write an .npz that numpy reads without pickle, complete or not at all. Raises ResultsError."""
        arrays = {name: np.asarray(value) for name, value in vars(self).items()}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub takes them for allow_pickle

    @classmethod
    def read(cls, path: Path) -> Embeddings:
        """Read what `save` wrote. Raises EmbeddingError."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                read = cls(
                    arrays["features"],
                    tuple(arrays["files"].tolist()),
                    *(str(arrays[name]) for name in ("weights_sha256", "precision", "preprocess")),
                )
        except FileNotFoundError as error:
            raise EmbeddingError(f"{path}: no such file") from error
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            hint = "write one with: python -m tools.embed"
            raise EmbeddingError(f"{path}: it is damaged, or holds no embeddings; {hint}") from error
        if read.features.ndim != 2 or len(read.features) != len(read.files) or not _are_of_length_1(read.features):
            raise EmbeddingError(f"{path}: its features are not one vector of length 1 for each of its files")
        return read

    def ranked(self, features: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield files and their cosines to features (D,) of length 1, the most similar first, of equals the earlier."""
        cosines = self.features @ features  # (N,)
        for row in np.argsort(-cosines, kind="stable"):
            yield self.files[row], float(cosines[row])


class Embedder:
    """Computes the features of files. A bad one gets an error and takes no other with it."""

    def __init__(self, backend: Backend, metadata: ModelMetadata) -> None:
        self.backend, self.metadata = backend, metadata

    def embed_files(
        self, paths: Iterable[str], batch_size: int = 32, workers: int = 4
    ) -> Generator[Embedded, None, None]:
        """Stream the features in the order of the paths, decoding in `workers` threads ahead of the net.

        At most two batches of images and one per worker are held, however many paths there are. Raises BackendError.
        """
        if batch_size < 1 or workers < 1:
            raise ValueError(f"batch_size and workers must be at least 1, got {batch_size} and {workers}")
        prepared = prepare_ahead(paths, self.metadata, batch_size + workers, workers)
        while batch := list(itertools.islice(prepared, batch_size)):
            yield from self._embed(batch)

    def preprocess_text(self) -> str:
        """Return the JSON text of the preprocessing."""
        return json.dumps(self.metadata.preprocess.to_dict(), sort_keys=True)

    def _embed(self, batch: Sequence[Prepared]) -> list[Embedded]:
        pixels = [prepared.pixels for prepared in batch if prepared.pixels is not None]
        rows = iter(self._features(np.stack(pixels)) if pixels else ())
        return [
            Embedded(prepared.file, error=prepared.error)
            if prepared.pixels is None
            else _of_length_1(prepared.file, next(rows))
            for prepared in batch
        ]

    def _features(self, images: np.ndarray) -> np.ndarray:
        """Return the features (N, D) of prepared images (N, ...). Raises BackendError."""
        features = self.backend(images)
        if features.ndim != 2 or len(features) != len(images):
            raise BackendError(f"the {self.backend.name} net gives {features.shape} instead of ({len(images)}, D)")
        return features


def load_embedder(
    weights: Path, *, device: str = "auto", config: Config | None = None, runtime: str = "auto"
) -> Embedder:
    """Load a net with features as output from any file, or a classifier's checkpoint.

    A classifier's features are the input of its head, the last linear layer; for a convolution the mean over the
    positions. Bare weights get their sha256 here. Raises what `load_backend` does, and EmbeddingError for an exported
    classifier.
    """
    backend, metadata = load_backend(weights, device=device, config=config, runtime=runtime)
    if isinstance(backend, CheckpointBackend) and not metadata.weights_sha256:
        from artifacts.checkpoint import weights_sha256

        metadata = replace(metadata, weights_sha256=weights_sha256(backend.net.state_dict()))
    if metadata.output == "features":
        return Embedder(backend, metadata)
    if not isinstance(backend, CheckpointBackend):
        raise EmbeddingError(
            f"{weights}: it is an exported classifier, with classes and no features as output; "
            "name the checkpoint that it was exported from"
        )
    return Embedder(HeadInput(backend), metadata)


class HeadInput:
    """A classifier's checkpoint whose output is its head's input: float32 (N, C, H, W) -> (N, D).

    `logits` (N, K) are the net's own output for the last batch.
    """

    logits: np.ndarray

    def __init__(self, backend: CheckpointBackend) -> None:
        self.name, self.device = backend.name, backend.device
        self._backend: Callable[[np.ndarray], np.ndarray] = backend
        self._head_input: torch.Tensor | None = None
        self._head, layer = _head_of(backend.net)
        layer.register_forward_pre_hook(self._keep_input)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the features of a batch. Raises BackendError."""
        self._head_input = None
        self.logits = self._backend(images)
        if self._head_input is None:
            raise BackendError(f"the net does not use its last layer, {self._head}, so it has no features to take")
        given = self._head_input.float()
        pooled = given.flatten(2).mean(dim=2) if given.ndim == 4 else given  # (N, C, H, W) -> (N, C)
        features: np.ndarray = pooled.cpu().numpy()
        return features

    def _keep_input(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._head_input = inputs[0]


def _head_of(net: nn.Module) -> tuple[str, nn.Module]:
    """Return name and layer of the head: the net's `head_names`, or its last layer with weights.

    Of several heads, PIM's, it is the last: the one that sees all stages.
    """
    from torch import nn

    for path, module in net.named_modules():
        if own := getattr(module, "head_names", None):
            name = f"{path}.{own[-1]}".lstrip(".")
            return name, net.get_submodule(name)
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    if not layers:
        raise EmbeddingError(f"{type(net).__name__} has no linear layer at its end, so it has no features to take")
    return list(layers.items())[-1]


def _of_length_1(file: str, features: np.ndarray) -> Embedded:
    wide = features.astype(np.float64)  # whose squares do not overflow
    length = float(np.linalg.norm(wide))
    if not math.isfinite(length):
        return Embedded(file, error="the net's features are not finite (NaN or infinite)")
    if length == 0:
        return Embedded(file, error="the net's features are all zero, a vector without a direction")
    return Embedded(file, (wide / length).astype(np.float32))


def _are_of_length_1(features: np.ndarray) -> bool:
    if features.dtype != np.float32:
        return False
    squares = np.einsum("nd,nd->n", features, features)  # (N,); no second (N, D)
    return bool((np.abs(squares - 1) < LENGTH_TOLERANCE).all())  # NaN is not below either
