"""The pictures that prove an exported net, and those that int8 is calibrated on: real ones, through the one decoder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts.metadata import Facts
from configs.schema import Config
from data_loader.preprocess import PictureError, Preprocess
from data_loader.samples import (
    IMAGE_SUFFIXES,
    NO_LABEL,
    ListError,
    Sample,
    iter_images,
    read_class_folders,
    read_list,
    read_unlabelled,
)
from deploy.backends.base import NO_MEMORY
from deploy.export.cli_args import MAX_SAMPLES

SEPARATOR = "----"  # of a list whose config is not known
MOST_BYTES = 2_000_000_000  # of pictures held, where nobody asked for more
LOOKED_FOR = 100  # pictures of a list, to find the folder that its paths start from


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

    def are_grey(self) -> bool:
        """Say whether no picture has a colour in it, so that the order of its three channels shows nowhere."""
        first, last = self.pixels[..., 0], self.pixels[..., -1]
        return self.pixels.shape[-1] == 3 and all(map(np.array_equal, first, last))

    def every_second(self, first: int) -> Pictures:
        """Give every second picture, from the first (0) or the second (1) on; they share these pictures' memory."""
        labels = None if self.labels is None else self.labels[first::2]
        source = f"{self.source} (every second)"
        return Pictures(self.pixels[first::2], labels, self.files[first::2], source, self.listed)

    def at_most(self, count: int) -> Pictures:
        """Give `count` of the pictures, evenly spread; all where there are no more."""
        if len(self) <= count:
            return self
        chosen = _spread(len(self), count)
        labels = None if self.labels is None else self.labels[chosen]
        return Pictures(self.pixels[chosen], labels, tuple(self.files[i] for i in chosen), self.source, self.listed)


@dataclass(frozen=True)
class NetInputs:
    """What a net takes for pictures that are held as bytes, made only for the slice that is asked for.

    As float32 all of them at once would take four times the memory.
    """

    pixels: np.ndarray  # uint8 (N, H, W, C)
    preprocess: Preprocess
    kind: str  # one of facts.INPUTS

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, part: slice) -> np.ndarray:
        return net_input(self.pixels[part], self.preprocess, self.kind)


def find_pictures(
    samples: Path | None, config: Config | None, facts: Facts, most: int | None = None, root: Path | None = None
) -> Pictures:
    """Read at most `most` pictures (None: 1000, or what fits in 2 GB; 0: all), evenly spread over `samples`.

    `samples` is a list, whose paths start from `root` if it is given, or a folder, labelled where its folders are the
    class names. Without it the pictures are those of the config's validation data. Raises SamplesError, ListError.
    """
    with _readable(samples):
        if samples is not None:
            found, source = _named_samples(samples, config, facts, root), str(samples)
        elif config is not None and _has_data(config.val_data_file, config.val_data_root_dir):
            source = config.val_data_file or config.val_data_root_dir
            found = _config_samples(config.val_data_file, config.val_data_root_dir, config, facts)
        else:
            known = f" (its config names {config.val_data_file or config.val_data_root_dir})" if config else ""
            raise SamplesError(
                f"the net's validation pictures are not on this machine{known}; an export is proved on real pictures: "
                "name a list or a folder with --samples (inference.py: a folder with --image_dir)"
            )
        most = _fitting(MAX_SAMPLES, facts.preprocess) if most is None else most
        pictures = _read(found, source, facts.preprocess, most)
    if not len(pictures):
        raise SamplesError(f"{source}: none of its pictures can be read; the first: {pictures.skipped[0]}")
    return pictures


def find_calibration(config: Config | None, facts: Facts, count: int) -> Pictures | None:
    """Read `count` training pictures (or what fits in 2 GB), evenly spread; None where they are not on this machine.

    Raises SamplesError, ListError.
    """
    if config is None:
        return None
    with _readable(None):
        if not _has_data(config.train_data_file, config.train_data_root_dir):
            return None
        source = config.train_data_file or config.train_data_root_dir
        found = _config_samples(config.train_data_file, config.train_data_root_dir, config, facts)
        pictures = _read(found, source, facts.preprocess, _fitting(count, facts.preprocess))
    return pictures if len(pictures) > len(pictures.skipped) else None


def listed_samples(samples: Path, config: Config | None, facts: Facts, root: Path | None = None) -> list[Sample]:
    """Give the pictures that a list or a folder names, as `find_pictures` does, without reading them.

    Raises SamplesError, ListError.
    """
    with _readable(samples):
        return _named_samples(samples, config, facts, root)


def net_input(pixels: np.ndarray, preprocess: Preprocess, kind: str) -> np.ndarray:
    """Turn uint8 (N, H, W, C) into what a net takes: `kind` is one of facts.INPUTS. Raises SamplesError."""
    import torch

    with _enough_memory(len(pixels), preprocess, 4 if kind == "float32 NCHW" else 1):
        if kind == "float32 NCHW":
            channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # (N, C, H, W)
            return preprocess.normalize(channels_first).contiguous().numpy()
        # copy(): one grey channel counts as contiguous, whatever its strides say
        return pixels[..., ::-1].copy() if kind.endswith("BGR") else np.ascontiguousarray(pixels)


def has_no_memory(error: BaseException) -> bool:
    """Say whether an error tells of too little memory; torch tells it in a RuntimeError."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


def _named_samples(samples: Path, config: Config | None, facts: Facts, root: Path | None) -> list[Sample]:
    if samples.is_dir():
        return _folder_samples(samples, facts)
    if not samples.exists():
        raise SamplesError(f"{samples}: no such list or folder (relative paths start from {Path.cwd()})")
    if samples.suffix.lower() in IMAGE_SUFFIXES:
        raise SamplesError(f"{samples}: it is one picture; name a list or a folder of pictures with --samples")
    if root is not None:
        return _list_samples(str(samples), str(root), config, facts)
    roots = [str(samples.parent)]
    if config is not None:
        roots[:0] = [config.val_data_root_dir, config.train_data_root_dir]
    return _best_rooted(samples, dict.fromkeys(roots), config, facts)


def _best_rooted(samples: Path, roots: Iterable[str], config: Config | None, facts: Facts) -> list[Sample]:
    """Read a list from the root under which most of its pictures lie, the first of equals. Raises ListError."""
    best: list[Sample] = []
    most, first_error = -1, None
    for root in roots:
        try:
            found = _list_samples(str(samples), root, config, facts)
        except ListError as error:  # its paths may leave this root, and be right from the next
            first_error = first_error or error
            continue
        looked_for = _spread(len(found), min(len(found), LOOKED_FOR))
        there = sum(Path(found[index].path).is_file() for index in looked_for)
        if there > most:
            best, most = found, there
    if best:
        return best
    assert first_error is not None  # a list without lines is one
    raise first_error


def _folder_samples(folder: Path, facts: Facts) -> list[Sample]:
    """Give the pictures of a folder, labelled where its folders are the class names and no picture lies beside them."""
    folders = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if folders and folders <= set(facts.class_names) and not any(iter_images(folder, recursive=False)):
        return list(read_class_folders(folder, facts.class_names).samples)
    found = [Sample(path, NO_LABEL) for path in iter_images(folder)]
    if not found:
        raise SamplesError(f"{folder}: no pictures in it or below it; endings known: {' '.join(IMAGE_SUFFIXES)}")
    return found


def _config_samples(file: str, root: str, config: Config, facts: Facts) -> list[Sample]:
    if facts.output == "features":  # learnt from pictures that need no labels
        names, separator = facts.class_names, config.file_label_separator
        return list(read_unlabelled(file, root, separator, names, check_files=False).samples)
    if file:
        return _list_samples(file, root, config, facts)
    names = facts.class_names if facts.class_names != tuple(map(str, range(facts.num_classes))) else ()
    return list(read_class_folders(root, names).samples)


def _list_samples(file: str, root: str, config: Config | None, facts: Facts) -> list[Sample]:
    separator = config.file_label_separator if config else SEPARATOR
    try:
        found = read_list(
            file,
            root,
            separator,
            facts.num_classes,
            facts.class_names,
            check_files=False,  # a picture that is gone is skipped and counted, as one that is damaged
            allow_outside_root=config.allow_outside_root if config else False,
        )
    except ListError as error:
        if config is not None or "file_label_separator" not in error.problems[0]:
            raise
        raise ListError([f"{error.problems[0]}, in a config named with --config", *error.problems[1:]]) from error
    return list(found.samples)


def _has_data(file: str, root: str) -> bool:
    return Path(file).is_file() if file else bool(root) and Path(root).is_dir()


def _read(samples: Sequence[Sample], source: str, preprocess: Preprocess, most: int) -> Pictures:
    count = len(samples) if most == 0 else min(most, len(samples))
    chosen = [samples[index] for index in _spread(len(samples), count)]
    good: list[Sample] = []
    skipped = []
    with _enough_memory(count, preprocess):
        pixels = np.empty((count, preprocess.height, preprocess.width, preprocess.channels), np.uint8)
        for sample, made in zip(chosen, _fitted(chosen, preprocess), strict=True):
            if isinstance(made, str):
                skipped.append(f"{sample.path}: {made}")
            else:
                pixels[len(good)] = made
                good.append(sample)
    labels = np.array([sample.label for sample in good], dtype=np.int64)
    return Pictures(
        pixels[: len(good)],
        None if (labels == NO_LABEL).any() else labels,
        tuple(sample.path for sample in good),
        source,
        len(samples),
        tuple(skipped),
    )


def _spread(count: int, wanted: int) -> list[int]:
    """Give `wanted` of the indices below `count`, evenly spread: lists are often sorted by class."""
    return [int(index) for index in np.linspace(0, count - 1, wanted)]


def _fitting(count: int, preprocess: Preprocess) -> int:
    """Give `count`, or how many pictures fit in MOST_BYTES, and one at the least."""
    return max(1, min(count, MOST_BYTES // (preprocess.height * preprocess.width * preprocess.channels)))


def _fitted(samples: Sequence[Sample], preprocess: Preprocess) -> Iterator[np.ndarray | str]:
    """Give each picture as uint8 (H, W, C), or why it cannot be read."""

    def fitted(sample: Sample) -> np.ndarray | str:
        try:
            return preprocess.fit(preprocess.decode(sample.path))
        except PictureError as error:
            return str(error)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16), thread_name_prefix="decode") as pool:
        yield from pool.map(fitted, samples)


@contextmanager
def _readable(samples: Path | None) -> Iterator[None]:
    """Turn the system's refusal to read a list or a folder into a SamplesError that names it."""
    try:
        yield
    except OSError as error:
        raise SamplesError(f"{error.filename or samples}: cannot read it: {error.strerror}") from error


@contextmanager
def _enough_memory(count: int, preprocess: Preprocess, bytes_a_value: int = 1) -> Iterator[None]:
    """Turn what numpy, Pillow and torch raise where memory runs out into a SamplesError that says how much it was."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not has_no_memory(error):
            raise
        size = f"{preprocess.height}x{preprocess.width}"
        gigabytes = count * preprocess.height * preprocess.width * preprocess.channels * bytes_a_value / 1e9
        raise SamplesError(
            f"there is too little memory for {count} pictures of {size} ({gigabytes:.1f} GB); hold fewer with "
            "--max_samples"
        ) from error
