"""What a net gives for the images of a pool: scores, repeated passes and features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from artifacts.formats import artifact_kind
from artifacts.metadata import ModelMetadata
from configs.schema import Config
from data_loader.samples import Sample, SampleList
from deploy.backends.base import Backend
from deploy.backends.loading import load_backend
from deploy.backends.torch_backend import CheckpointBackend
from deploy.inference.feature_extractor import HeadInput
from deploy.inference.uncertainty_scores import softmax
from deploy.uncertainty.cli_passes import trained_views
from deploy.uncertainty.multi_pass import apply_view, view_passes, views_of
from deploy.uncertainty.outputs import Outputs, collect, config_of
from tools.select.simulation import Known
from tools.select.strategies import Pool, SelectError, Strategy
from tools.start_features import start_backend

VIEWS = ("scale",)  # of a simulation, beside the image itself: each costs a pass over all images


class Net(NamedTuple):
    """A net that looks at the images; `config` is its training's, where the file has one."""

    name: str
    backend: Backend
    metadata: ModelMetadata
    config: Config | None
    is_trained: bool  # has learned its classes; else it has start weights, or is one of features

    @property
    def has_features(self) -> bool:
        """Whether features are to be had: of a checkpoint, and of a net whose output they are."""
        return isinstance(self.backend, CheckpointBackend) or self.metadata.output == "features"


def load_net(weights: Path | None, start: Config | None, device: str) -> Net:
    """Load the file, or the config's net with its start weights. Raises UserError."""
    if weights is None:
        assert start is not None
        names = tuple(map(str, range(start.num_classes)))
        backend, metadata = start_backend(start, SampleList((), names, "", ""))
        return Net(start.model_net_name, backend, metadata, None, is_trained=False)
    loaded, metadata = load_backend(weights, device=device)
    if metadata.output not in ("logits", "features"):
        raise SelectError(f"{weights}: it gives {metadata.output}; name a classifier, or a net of features")
    config = config_of(weights) if artifact_kind(weights) == "checkpoint" else None
    return Net(str(weights), loaded, metadata, config, is_trained=metadata.output == "logits")


def check_fits(net: Net, name: str, strategy: Strategy) -> None:
    """Raise SelectError where a strategy needs what the net does not give."""
    if strategy.needs_head and not net.is_trained:
        raise SelectError(
            f"{net.name}: {name} looks at scores, and this net has learned no classes; name a trained classifier, or "
            "choose mixture, coreset, cluster or random"
        )
    if "features" in strategy.needs and not net.has_features:
        raise SelectError(
            f"{net.name}: {name} looks at features, which an exported classifier does not give; name its checkpoint"
        )


def observe(
    net: Net, strategy: Strategy, samples: Sequence[Sample], labelled: Sequence[Sample], batch_size: int, workers: int
) -> tuple[Pool, Outputs]:
    """Return what a strategy looks at, and the outputs, whose `files` are the rows. Raises UserError."""
    passes = None
    if "passes" in strategy.needs:
        views = trained_views(Path(net.name))
        passes = view_passes(net.backend, net.metadata, views)
    wants_features = "features" in strategy.needs
    is_hooked = wants_features and net.metadata.output == "logits"
    run = partial(collect, net.backend, net.metadata, batch_size=batch_size, workers=workers, with_features=is_hooked)
    outputs = run(samples, passes=passes)
    features = _features(outputs) if wants_features else np.empty((len(outputs.files), 0))
    known = np.empty((0, features.shape[1]))
    if wants_features and labelled:
        known = _features(run(labelled))
    scores = np.empty((len(outputs.files), 0))
    if net.is_trained:
        scores = softmax(outputs.logits, net.metadata.temperature or 1.0)
    of_passes = np.empty((0, *scores.shape)) if outputs.scores is None else outputs.scores
    return Pool(scores, of_passes, features, known), outputs


def observe_known(net: Net, samples: Sequence[Sample], batch_size: int, workers: int) -> tuple[Known, Outputs]:
    """Return the features of labelled images and of their views, for a simulation. Raises UserError."""
    if not net.has_features:
        raise SelectError(f"{net.name}: a simulation needs features; name the checkpoint of this file")
    own = net.backend if net.metadata.output == "features" else None
    features_of = own or HeadInput(_checkpoint(net.backend))

    def of_views(images: np.ndarray) -> np.ndarray:
        viewed = (apply_view(images, view, net.metadata.input) for view in views_of(VIEWS)[1:])
        return np.stack([features_of(images), *map(features_of, viewed)])

    outputs = collect(net.backend, net.metadata, samples, batch_size=batch_size, workers=workers, passes=of_views)
    assert outputs.scores is not None
    return Known(outputs.scores[0], outputs.scores, outputs.labels), outputs


def _checkpoint(backend: Backend) -> CheckpointBackend:
    assert isinstance(backend, CheckpointBackend)
    return backend


def _features(outputs: Outputs) -> np.ndarray:
    return outputs.logits if outputs.features is None else outputs.features
