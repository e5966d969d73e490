"""Labelled samples from folders, txt lists and configs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from artifacts.metadata import ModelMetadata
from common.errors import UserError
from configs.schema import Config
from data_loader.list_reader import read_target_list, read_unlabelled
from data_loader.samples import IMAGE_SUFFIXES, NO_LABEL, ListError, Sample, iter_images, read_class_folders
from data_loader.targets import ClassLabel, Target

SEPARATOR = "----"  # of a list whose config is unknown
LOOKED_FOR = 100  # images of a list, to find the folder that its paths start from


class SamplesError(UserError):
    """Images that cannot be found or read; the message is one sentence for the user."""


class _UnknownTarget(Target):
    """The targets of a task without classes, which only its training can read."""

    def parse(self, text: str, root: str) -> int:
        return NO_LABEL


def listed_samples(
    samples: Path,
    config: Config | None,
    metadata: ModelMetadata,
    root: Path | None = None,
    *,
    flag: str = "--samples",
) -> list[Sample]:
    """Return the samples of a list or a folder, without reading the images. Raises SamplesError, ListError.

    `flag` is the flag that named it, for the messages.
    """
    with reading_samples(samples):
        if samples.suffix.lower() in IMAGE_SUFFIXES and samples.is_file():
            raise SamplesError(f"{samples}: it is one image; name a list or a folder of images with {flag}")
        return _named_samples(samples, config, metadata, root)


def config_samples(file: str, root: str, config: Config, metadata: ModelMetadata) -> list[Sample]:
    """Return the samples of one of a config's lists, of class folders where `file` is "". Raises ListError."""
    if metadata.output == "features":  # trained on images without labels
        names, separator = metadata.class_names, config.file_label_separator
        return list(read_unlabelled(file, root, separator, names, check_files=False).samples)
    if file:
        return _list_samples(file, root, config, metadata)
    if not metadata.class_names:
        return _folder_samples(Path(root), metadata)
    names = metadata.class_names if metadata.class_names != tuple(map(str, range(metadata.num_classes))) else ()
    return list(read_class_folders(root, names).samples)


def has_data(file: str, root: str) -> bool:
    """Return whether a config's list is there, or its folder where `file` is ""."""
    return Path(file).is_file() if file else bool(root) and Path(root).is_dir()


def spread_indices(count: int, wanted: int) -> list[int]:
    """Return `wanted` indices below `count`, evenly spread: lists are often sorted by class."""
    return [int(index) for index in np.linspace(0, count - 1, wanted)]


@contextmanager
def reading_samples(samples: Path | None) -> Iterator[None]:
    """Turn an OSError from reading a list or a folder into a SamplesError that names it."""
    try:
        yield
    except OSError as error:
        raise SamplesError(f"{error.filename or samples}: cannot read it: {error.strerror}") from error


def _named_samples(samples: Path, config: Config | None, metadata: ModelMetadata, root: Path | None) -> list[Sample]:
    if samples.is_dir():
        return _folder_samples(samples, metadata)
    if not samples.exists():
        raise SamplesError(f"{samples}: no such list or folder (relative paths start from {Path.cwd()})")
    if root is not None:
        return _list_samples(str(samples), str(root), config, metadata)
    roots = [str(samples.parent)]
    if config is not None:
        roots[:0] = [config.val_data_root_dir, config.train_data_root_dir]
    return _best_rooted(samples, dict.fromkeys(roots), config, metadata)


def _best_rooted(samples: Path, roots: Iterable[str], config: Config | None, metadata: ModelMetadata) -> list[Sample]:
    """Read a list from the root under which most of its images lie, the first of equals. Raises ListError."""
    best: list[Sample] = []
    most, first_error = -1, None
    for root in roots:
        try:
            found = _list_samples(str(samples), root, config, metadata)
        except ListError as error:  # its paths may leave this root, and be right from the next
            first_error = first_error or error
            continue
        looked_for = spread_indices(len(found), min(len(found), LOOKED_FOR))
        there = sum(Path(found[index].path).is_file() for index in looked_for)
        if there > most:
            best, most = found, there
    if best:
        return best
    assert first_error is not None  # a list without lines is one
    raise first_error


def _folder_samples(folder: Path, metadata: ModelMetadata) -> list[Sample]:
    """Return the samples of a folder, labelled where its folders are class names and no image lies beside them."""
    folders = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if folders and folders <= set(metadata.class_names) and not any(iter_images(folder, recursive=False)):
        return list(read_class_folders(folder, metadata.class_names).samples)
    found = [Sample(path, NO_LABEL) for path in iter_images(folder)]
    if not found:
        raise SamplesError(f"{folder}: no images in it or below it; endings known: {' '.join(IMAGE_SUFFIXES)}")
    return found


def _list_samples(file: str, root: str, config: Config | None, metadata: ModelMetadata) -> list[Sample]:
    separator = config.file_label_separator if config else SEPARATOR
    try:
        found = read_target_list(
            file,
            root,
            separator,
            ClassLabel(metadata.num_classes, metadata.class_names) if metadata.class_names else _UnknownTarget(),
            check_files=False,  # a missing image is skipped and counted, as a damaged one
            allow_outside_root=config.allow_outside_root if config else False,
        )
    except ListError as error:
        if config is not None or "file_label_separator" not in error.problems[0]:
            raise
        raise ListError([f"{error.problems[0]}, in a config named with --config", *error.problems[1:]]) from error
    return list(found.samples)
