"""What a net says of labelled images, gathered once: calibration and evaluation compute everything from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from tqdm import tqdm

from artifacts.metadata import ModelMetadata
from artifacts.sample_sources import listed_samples
from configs.schema import Config
from data_loader.list_reader import read_unlabelled
from data_loader.samples import NO_LABEL, ListError, Sample
from deploy.backends.base import Backend, BackendError
from deploy.backends.torch_backend import CheckpointBackend
from deploy.inference.feature_extractor import HeadInput
from deploy.inference.predictor import Prepared, prepare_ahead
from deploy.inference.uncertainty_scores import UncertaintyError

Ask = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]  # a batch -> logits (N, K), features (N, D)


@dataclass(frozen=True)
class Outputs:
    """What a net says of images: logits (N, K), labels (N,) with NO_LABEL where not known, files, row by row.

    `features` (N, D) are what the head is given, `scores` (M, N, K) those of repeated passes, where asked for.
    `skipped` says which images could not be read.
    """

    logits: np.ndarray
    labels: np.ndarray
    files: tuple[str, ...]
    features: np.ndarray | None = None
    scores: np.ndarray | None = None
    skipped: tuple[str, ...] = ()


def labelled_samples(
    source: Path, config: Config | None, metadata: ModelMetadata, root: Path | None = None
) -> list[Sample]:
    """Read a list, or a folder with one folder a class. Raises UncertaintyError where a label is missing, ListError."""
    samples = listed_samples(source, config, metadata, root)
    if any(sample.label == NO_LABEL for sample in samples):
        raise UncertaintyError(f"{source}: its images have no labels; name a list, or one folder a class")
    return samples


def collect(
    backend: Backend,
    metadata: ModelMetadata,
    samples: Sequence[Sample],
    *,
    batch_size: int = 32,
    workers: int = 4,
    with_features: bool = False,
    passes: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Outputs:
    """Ask a net about images, streaming; those that cannot be read are skipped.

    `passes` gives the scores (M, N, K) of a batch's repeated passes. Raises BackendError; UncertaintyError where no
    image can be read, or a net other than a checkpoint's is asked for features.
    """
    labels = {sample.path: sample.label for sample in samples}
    gathered = _Gathered(_with_features(backend) if with_features else lambda images: (backend(images), None), passes)
    prepared = prepare_ahead(labels, metadata, batch_size + workers, workers)
    shown = iter(tqdm(prepared, total=len(labels), unit=" images", disable=None, leave=False))
    while batch := list(islice(shown, batch_size)):
        gathered.add(batch)
    files, skipped = gathered.files, gathered.skipped
    if not files:
        raise UncertaintyError(f"none of the {len(labels)} images can be read; the first: {(skipped or ['none'])[0]}")
    logits = np.concatenate(gathered.logits)
    if not np.isfinite(logits).all():
        raise BackendError("the net's output is not finite (NaN or infinite logits) on some of the images")
    features = np.concatenate(gathered.features) if gathered.features else None
    scores = np.concatenate(gathered.scores, axis=1) if gathered.scores else None
    return Outputs(logits, np.array([labels[file] for file in files]), tuple(files), features, scores, tuple(skipped))


def config_of(weights: Path) -> Config | None:
    """Give the config inside a checkpoint; None where there is none, or another version's. Raises CheckpointError."""
    from artifacts.checkpoint import load_checkpoint

    try:
        return Config.model_validate(load_checkpoint(weights).config)
    except ValidationError:
        return None


def trained_on(config: Config | None, metadata: ModelMetadata) -> frozenset[str] | None:
    """Give the `real_paths` of the training images; None where their list is not on this machine."""
    if config is None or not Path(config.train_data_file or config.train_data_root_dir or "?").exists():
        return None
    place = (config.train_data_file, config.train_data_root_dir, config.file_label_separator)
    try:
        found = read_unlabelled(*place, metadata.class_names, check_files=False, allow_outside_root=True)
    except ListError:  # it has changed since
        return None
    return frozenset(real_paths(found.samples))


def check_not_trained_on(samples: Sequence[Sample], source: Path, trained: frozenset[str]) -> None:
    """Raise UncertaintyError where training images are among the samples: the net is too sure of those."""
    known = sum(path in trained for path in real_paths(samples))
    if known:
        raise UncertaintyError(
            f"{source}: {known} of its {len(samples)} images were trained on, and a net is too sure of those; "
            "name a list of others, such as the validation list"
        )


def real_paths(samples: Iterable[Sample]) -> Iterator[str]:
    """Give the absolute paths of images, however their folders are named: by way of links, or of `..`."""
    folders: dict[str, str] = {}
    for sample in samples:
        folder, name = os.path.split(sample.path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        yield f"{folders[folder]}/{name}"


class _Gathered:
    """What has been gathered of the batches so far."""

    def __init__(self, ask: Ask, passes: Callable[[np.ndarray], np.ndarray] | None) -> None:
        self._ask, self._passes = ask, passes
        self.files: list[str] = []
        self.skipped: list[str] = []
        self.logits: list[np.ndarray] = []
        self.features: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []

    def add(self, batch: Sequence[Prepared]) -> None:
        self.skipped += [f"{image.file}: {image.error}" for image in batch if image.pixels is None]
        good = {image.file: image.pixels for image in batch if image.pixels is not None}
        if not good:
            return
        images = np.stack(list(good.values()))
        logits, features = self._ask(images)
        self.files += good
        self.logits.append(logits)
        if features is not None:
            self.features.append(features)
        if self._passes is not None:
            self.scores.append(self._passes(images))


class _KeepsLogits(CheckpointBackend):
    """A checkpoint's backend that keeps the logits of the last batch."""

    logits: np.ndarray

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.logits = super().__call__(images)
        return self.logits


def _with_features(backend: Backend) -> Ask:
    """Give what answers a batch with logits (N, K) and features (N, D). Raises UncertaintyError."""
    if not isinstance(backend, CheckpointBackend):
        raise UncertaintyError(
            "the distance to the class means needs features, which only a checkpoint's net gives; name the .pth file"
        )
    keeps = _KeepsLogits(backend.net, torch.device(backend.device))
    head = HeadInput(keeps)

    def ask(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = head(images)
        return keeps.logits, features

    return ask
