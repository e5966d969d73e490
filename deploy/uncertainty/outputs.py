"""A net's outputs for labelled images, collected once: calibration and evaluation compute everything from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from tqdm import tqdm

from artifacts.metadata import ModelMetadata
from artifacts.sample_sources import FoundSamples, listed_samples
from configs.schema import Config
from data_loader.list_reader import read_unlabelled
from data_loader.samples import NO_LABEL, ListError, Sample
from deploy.backends.base import Backend, BackendError
from deploy.backends.torch_backend import CheckpointBackend
from deploy.inference.feature_extractor import HeadInput
from deploy.inference.prediction import NOT_FINITE
from deploy.inference.predictor import Prepared, prepare_ahead
from deploy.inference.uncertainty_scores import UncertaintyError

Forward = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]  # a batch -> logits (N, K), features (N, D)


@dataclass(frozen=True)
class Outputs:
    """Outputs for images, row by row: logits (N, K), labels (N,) with NO_LABEL where unknown, files.

    `features` (N, D) are the head's input, `scores` (M, N, K) those of repeated passes; None where not requested.
    `skipped` lists the images that could not be read.
    """

    logits: np.ndarray
    labels: np.ndarray
    files: tuple[str, ...]
    features: np.ndarray | None = None
    scores: np.ndarray | None = None
    skipped: tuple[str, ...] = ()


def labelled_samples(
    source: Path, config: Config | None, metadata: ModelMetadata, root: Path | None = None, *, flag: str
) -> FoundSamples:
    """Read a list, or a folder with one folder per class; `flag` named it.

    Raises UncertaintyError where a label is missing, SamplesError, ListError.
    """
    found = listed_samples(source, config, metadata, root, flag=flag)
    if any(sample.label == NO_LABEL for sample in found.samples):
        raise UncertaintyError(
            f"{found.note or f'{source}: its images have no labels'}; name a list, or one folder per class"
        )
    return found


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
    """Run a net on images, streaming; those that cannot be read are skipped.

    `passes` computes the scores (M, N, K) of a batch's repeated passes. Raises BackendError; UncertaintyError where no
    image can be read, or `with_features` meets a net that is not a checkpoint's.
    """
    labels = {sample.path: sample.label for sample in samples}
    forward = _with_features(backend) if with_features else lambda images: (backend(images), None)
    gathered = _Gathered(forward, passes)
    prepared = prepare_ahead(labels, metadata, batch_size + workers, workers)
    shown = iter(tqdm(prepared, total=len(labels), unit=" images", disable=None, leave=False))
    while batch := list(islice(shown, batch_size)):
        gathered.add(batch)
    files, skipped = gathered.files, gathered.skipped
    if not files:
        raise UncertaintyError(f"none of the {len(labels)} images can be read; the first: {(skipped or ['none'])[0]}")
    logits = np.concatenate(gathered.logits)
    if not np.isfinite(logits).all():
        raise BackendError(f"{NOT_FINITE} on some of the images")
    features = np.concatenate(gathered.features) if gathered.features else None
    scores = np.concatenate(gathered.scores, axis=1) if gathered.scores else None
    return Outputs(logits, np.array([labels[file] for file in files]), tuple(files), features, scores, tuple(skipped))


def config_of(weights: Path) -> Config | None:
    """Return the config inside a checkpoint; None where there is none, or another version's. Raises CheckpointError."""
    from artifacts.checkpoint import load_checkpoint

    try:
        return Config.model_validate(load_checkpoint(weights).config)
    except ValidationError:
        return None


def trained_on(config: Config | None, metadata: ModelMetadata) -> frozenset[str] | None:
    """Return the `real_paths` of the training images; None where their list is not on this machine."""
    if config is None or not Path(config.train_data_file or config.train_data_root_dir or "?").exists():
        return None
    place = (config.train_data_file, config.train_data_root_dir, config.file_label_separator)
    try:
        found = read_unlabelled(*place, metadata.class_names, check_files=False, allow_outside_root=True)
    except ListError:  # it has changed since
        return None
    return frozenset(real_paths(found.samples))


def check_not_trained_on(samples: Sequence[Sample], source: Path, trained: frozenset[str]) -> None:
    """Raise UncertaintyError where training images are among the samples: the net is overconfident on those."""
    known = sum(path in trained for path in real_paths(samples))
    if known:
        raise UncertaintyError(
            f"{source}: {known} of its {len(samples)} images were trained on, and a net is overconfident on those; "
            "name a list of others, such as the validation list"
        )


def real_paths(samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the absolute paths of images, with links and `..` in their folders resolved."""
    folders: dict[str, str] = {}
    for sample in samples:
        folder, name = os.path.split(sample.path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        yield f"{folders[folder]}/{name}"


class _Gathered:
    """The outputs of the batches so far."""

    def __init__(self, forward: Forward, passes: Callable[[np.ndarray], np.ndarray] | None) -> None:
        self._forward, self._passes = forward, passes
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
        logits, features = self._forward(images)
        self.files += good
        self.logits.append(logits)
        if features is not None:
            self.features.append(features)
        if self._passes is not None:
            self.scores.append(self._passes(images))


def _with_features(backend: Backend) -> Forward:
    """Return a function from a batch to logits (N, K) and features (N, D). Raises UncertaintyError."""
    if not isinstance(backend, CheckpointBackend):
        raise UncertaintyError(
            "the distance to the class means needs features, which only a checkpoint has; name the .pth file"
        )
    head = HeadInput(backend)

    def forward(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = head(images)
        return head.logits, features

    return forward
