"""The pictures that prove an exported net, and those that int8 is calibrated on: real ones, through the one decoder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts.facts import Facts
from configs.schema import Config
from data_loader.preprocess import PictureError, Preprocess
from data_loader.samples import IMAGE_SUFFIXES, ListError, Sample, iter_images, read_class_folders, read_list

NO_LABEL = -1
SEPARATOR = "----"  # of a list whose config is not known


class SamplesError(ValueError):
    """Pictures that cannot be had; the message is one sentence for the user."""


@dataclass(frozen=True)
class Pictures:
    """Decoded and fitted pictures, uint8 (N, H, W, C), with their labels (N,) where they are known.

    `source` names the list or folder, `listed` how many pictures it has, `skipped` those that could not be read.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    files: tuple[str, ...]
    source: str
    listed: int
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def every_second(self, first: int) -> Pictures:
        """Give every second picture, from the first (0) or the second (1) on."""
        return self._chosen(range(first, len(self), 2), f"{self.source} (every second)")

    def at_most(self, count: int) -> Pictures:
        """Give `count` of the pictures, evenly spread; all where there are no more."""
        return self if len(self) <= count else self._chosen(_spread(len(self), count), self.source)

    def _chosen(self, indices: Sequence[int], source: str) -> Pictures:
        chosen = list(indices)
        labels = None if self.labels is None else self.labels[chosen]
        return Pictures(self.pixels[chosen], labels, tuple(self.files[i] for i in chosen), source, self.listed)


def find_pictures(samples: Path | None, config: Config | None, facts: Facts, most: int) -> Pictures:
    """Read at most `most` pictures (0: all), spread evenly over the list or folder `samples`.

    Without `samples` they are those of the config's validation data. A folder whose folders are the class names is
    labelled. Raises SamplesError, ListError.
    """
    if samples is not None:
        found, source = _named_samples(samples, config, facts), str(samples)
    elif config is not None and _has_data(config.val_data_file, config.val_data_root_dir):
        source = config.val_data_file or config.val_data_root_dir
        found = _config_samples(config.val_data_file, config.val_data_root_dir, config, facts)
    else:
        known = f" (its config names {config.val_data_file or config.val_data_root_dir})" if config else ""
        raise SamplesError(
            f"the net's validation pictures are not on this machine{known}; an export is proved on real pictures: "
            "name a list or a folder with --samples (inference.py: a folder with --image_dir)"
        )
    pictures = _read(found, source, facts.preprocess, most)
    if not len(pictures):
        raise SamplesError(f"{source}: none of its pictures can be read; the first: {pictures.skipped[0]}")
    return pictures


def find_calibration(config: Config | None, facts: Facts, count: int) -> Pictures | None:
    """Read `count` training pictures, spread evenly over the list; None where they are not on this machine."""
    if config is None or not _has_data(config.train_data_file, config.train_data_root_dir):
        return None
    source = config.train_data_file or config.train_data_root_dir
    try:
        found = _config_samples(config.train_data_file, config.train_data_root_dir, config, facts)
    except ListError:  # the list has changed since the training
        return None
    pictures = _read(found, source, facts.preprocess, count)
    return pictures if len(pictures) > len(pictures.skipped) else None


def net_input(pixels: np.ndarray, preprocess: Preprocess, kind: str) -> np.ndarray:
    """Turn uint8 (N, H, W, C) into what a net takes: `kind` is one of facts.INPUTS."""
    import torch

    if kind == "float32 NCHW":
        channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # (N, C, H, W)
        return preprocess.normalize(channels_first).contiguous().numpy()
    return pixels[..., ::-1].copy() if kind.endswith("BGR") else pixels  # copy: one grey channel counts as contiguous


def _named_samples(samples: Path, config: Config | None, facts: Facts) -> list[Sample]:
    if samples.is_dir():
        return _folder_samples(samples, facts)
    if not samples.exists():
        raise SamplesError(f"{samples}: no such list or folder (relative paths start from {Path.cwd()})")
    if samples.suffix.lower() in IMAGE_SUFFIXES:
        raise SamplesError(f"{samples}: it is one picture; name a list or a folder of pictures with --samples")
    roots = [str(samples.parent)]
    if config is not None:
        roots[:0] = [config.val_data_root_dir, config.train_data_root_dir]
    lists = [_list_samples(str(samples), root, config, facts) for root in roots]
    return next((found for found in lists if Path(found[0].path).is_file()), lists[-1])


def _folder_samples(folder: Path, facts: Facts) -> list[Sample]:
    """Give the pictures of a folder, labelled where its folders are the class names and no picture lies beside them."""
    folders = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    try:
        if folders and folders <= set(facts.class_names) and not any(iter_images(folder, recursive=False)):
            return list(read_class_folders(folder, facts.class_names).samples)
        found = [Sample(path, NO_LABEL) for path in iter_images(folder)]
    except OSError as error:
        raise SamplesError(f"{error.filename or folder}: cannot read the folder: {error.strerror}") from error
    if not found:
        raise SamplesError(f"{folder}: no pictures in it or below it; endings known: {' '.join(IMAGE_SUFFIXES)}")
    return found


def _config_samples(file: str, root: str, config: Config, facts: Facts) -> list[Sample]:
    if file:
        return _list_samples(file, root, config, facts)
    names = facts.class_names if facts.class_names != tuple(map(str, range(facts.num_classes))) else ()
    return list(read_class_folders(root, names).samples)


def _list_samples(file: str, root: str, config: Config | None, facts: Facts) -> list[Sample]:
    return list(
        read_list(
            file,
            root,
            config.file_label_separator if config else SEPARATOR,
            facts.num_classes,
            facts.class_names,
            check_files=False,  # a picture that is gone is skipped and counted, as one that is damaged
            allow_outside_root=config.allow_outside_root if config else False,
        ).samples
    )


def _has_data(file: str, root: str) -> bool:
    return Path(file).is_file() if file else bool(root) and Path(root).is_dir()


def _read(samples: Sequence[Sample], source: str, preprocess: Preprocess, most: int) -> Pictures:
    count = len(samples) if most == 0 else min(most, len(samples))
    chosen = [samples[index] for index in _spread(len(samples), count)]
    good, pixels, skipped = [], [], []
    for sample, made in zip(chosen, _fitted(chosen, preprocess), strict=True):
        if isinstance(made, str):
            skipped.append(f"{sample.path}: {made}")
        else:
            good.append(sample)
            pixels.append(made)
    shape = (0, preprocess.height, preprocess.width, preprocess.channels)
    labels = np.array([sample.label for sample in good], dtype=np.int64)
    return Pictures(
        np.stack(pixels) if pixels else np.empty(shape, np.uint8),
        None if (labels == NO_LABEL).any() else labels,
        tuple(sample.path for sample in good),
        source,
        len(samples),
        tuple(skipped),
    )


def _spread(count: int, wanted: int) -> list[int]:
    """Give `wanted` of the indices below `count`, evenly spread: lists are often sorted by class."""
    return [int(index) for index in np.linspace(0, count - 1, wanted)]


def _fitted(samples: Sequence[Sample], preprocess: Preprocess) -> Iterator[np.ndarray | str]:
    """Give each picture as uint8 (H, W, C), or why it cannot be read."""

    def fitted(sample: Sample) -> np.ndarray | str:
        try:
            return preprocess.fit(preprocess.decode(sample.path))
        except PictureError as error:
            return str(error)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16), thread_name_prefix="decode") as pool:
        yield from pool.map(fitted, samples)
