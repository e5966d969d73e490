"""Labelled samples from folders, txt lists and configs."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts.class_names import are_numbers, compared, labels_by_name, renamed
from artifacts.metadata import ModelMetadata
from common.errors import UserError
from configs.schema import Config
from data_loader.image_files import IMAGE_SUFFIXES, iter_images, natural_sorted, walk_images
from data_loader.list_reader import read_target_list, read_unlabelled
from data_loader.mask_folders import pairs_below
from data_loader.pack_list import read_pack
from data_loader.packs import is_pack
from data_loader.remote_packs import is_address, local_list
from data_loader.samples import (
    NO_LABEL,
    ListError,
    Sample,
    class_folders,
    names_beside,
    read_class_folders,
    read_class_names,
)
from data_loader.targets import ClassLabel, Target

SEPARATOR = "----"  # of a list whose config is unknown
LOOKED_FOR = 100  # images of a list, to find the folder that its paths start from
FILE_TARGETS = ("mask_logits", "boxes")  # outputs whose targets are files, labels/ beside images/
ROOT_FLAGS = {"--samples": "--samples_root"} | dict.fromkeys(("--calibrate", "--evaluate", "--lists"), "--list_root")


class SamplesError(UserError):
    """Images that cannot be found or read; the message is one sentence for the user."""


class _UnknownTarget(Target):
    """The targets of a task that learns no labels, which only its training can read."""

    def parse(self, text: str, root: str) -> int:
        return NO_LABEL


class _SecondImage(Target):
    """Of a list of pairs the path of the later image; the mask is not read."""

    files = ("second image", "mask")

    def parse(self, text: str, root: str) -> str:
        """Return the path; `from_files` makes the target of a line."""
        return text

    def from_files(self, paths: Sequence[str]) -> str:
        """Return the path of the later image."""
        return paths[0]


@dataclass(frozen=True)
class FoundSamples:
    """Samples and where they were found; `note` is what the user should know about their labels, "" if nothing.

    Of a net of pairs the target of a sample is the path of its later image.
    """

    samples: list[Sample]
    origin: str
    root: str = ""  # the folder that a list's paths start from
    note: str = ""

    def __str__(self) -> str:
        return f"{self.origin} (images below {self.root})" if self.root else self.origin


def listed_samples(
    samples: Path,
    config: Config | None,
    metadata: ModelMetadata,
    root: Path | None = None,
    *,
    flag: str = "--samples",
) -> FoundSamples:
    """Return the samples of a list or a folder, without reading the images. Raises SamplesError, ListError.

    Labels are the net's: of a folder by its class folders, of a list by the names of classes.txt beside it. A list's
    paths start from `root`; without it from the config's root if it is the config's own list, else from the list's own
    folder if all its images lie there, else from the one of these folders where some do.
    `flag` is the flag that named it, for the messages.
    """
    with reading_samples(samples):
        if samples.suffix.lower() in IMAGE_SUFFIXES and samples.is_file():
            raise SamplesError(f"{samples}: it is one image; name a list or a folder of images with {flag}")
        if samples.is_dir():
            return _folder_samples(samples, metadata)
        if not samples.exists():
            raise SamplesError(f"{samples}: no such list or folder (relative paths start from {Path.cwd()})")
        if root is None and config is not None:
            root = _own_root(samples, config)
        if root is not None:
            return _list_samples(str(samples), str(root), config, metadata)
        roots = [str(samples.parent)]
        if config is not None:
            roots += [config.val_data_root_dir, config.train_data_root_dir]
        return _rooted(samples, roots, config, metadata, flag)


def config_samples(file: str, root: str, config: Config, metadata: ModelMetadata) -> FoundSamples:
    """Return the samples of one of a config's lists, of class folders where `file` is "". Raises ListError."""
    if is_pack(file):
        file = local_list(file, config)
        target = ClassLabel(metadata.num_classes, metadata.class_names)
        found = read_pack(file, target, needs_target=_has_labels(metadata) and metadata.output != "features")
        return FoundSamples(list(found.samples), file)
    if metadata.output == "features":  # trained on images without labels
        names, separator = metadata.class_names, config.file_label_separator
        found = read_unlabelled(file, root, separator, names, check_files=False)
        return FoundSamples(list(found.samples), found.origin, root if file else "")
    if file and not (metadata.output == "boxes" and file.endswith(".json")):  # COCO's: its images lie below the root
        return _list_samples(file, root, config, metadata)
    if not _has_labels(metadata):
        return _folder_samples(Path(root), metadata)
    return FoundSamples(list(read_class_folders(root, _names_of_folders(root, metadata)).samples), root)


def has_data(file: str, root: str) -> bool:
    """Return whether a config's list is there, or its folder where `file` is ""; an address is not asked."""
    if is_pack(file):
        return is_address(file) or bool(glob.glob(file))  # noqa: PTH207  (the folder may be a pattern, too)
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


def _own_root(samples: Path, config: Config) -> Path | None:
    """Return the root that a config gives for this list; None where the list is not the config's, or has two roots."""
    pairs = ((config.val_data_file, config.val_data_root_dir), (config.train_data_file, config.train_data_root_dir))
    own = [(file, root) for file, root in pairs if file and Path(file).exists() and Path(root).is_dir()]
    roots = {root for file, root in own if Path(file).samefile(samples)}
    return Path(roots.pop()) if len(roots) == 1 else None


def _rooted(
    samples: Path, roots: Sequence[str], config: Config | None, metadata: ModelMetadata, flag: str
) -> FoundSamples:
    """Read a list from the root that has its images; the first root is the list's own folder.

    Raises SamplesError where several have some and the list's own folder not all, ListError.
    """
    different = {Path(root).resolve(): root for root in reversed(roots) if root}  # the first of equals
    readable: list[FoundSamples] = []
    fitting: list[FoundSamples] = []
    first_error = None
    for root in reversed(different.values()):
        try:
            found = _list_samples(str(samples), root, config, metadata)
        except ListError as error:  # its paths may leave this root, and be right from the next
            first_error = first_error or error
            continue
        readable.append(found)
        looked_for = spread_indices(len(found.samples), min(len(found.samples), LOOKED_FOR))
        there = [Path(found.samples[index].path).is_file() for index in looked_for]
        if all(there) and root == roots[0]:
            return found
        fitting += [found] * any(there)
    if not readable:
        assert first_error is not None  # a list without lines is one
        raise first_error
    if len(fitting) > 1:
        places = " and ".join(found.root for found in fitting)
        hint = f"name the right one with {ROOT_FLAGS[flag]}" if flag in ROOT_FLAGS else "move the list beside its own"
        raise SamplesError(f"{samples}: images of these names lie below {places}; {hint}")
    return [*fitting, *readable][0]


def _folder_samples(folder: Path, metadata: ModelMetadata) -> FoundSamples:
    """Return the samples of a folder, labelled where its folders are class names and no image lies beside them.

    For a net of masks or boxes they are those of the folder images/, where there is one: labels/ is beside it. Of pairs
    they are those of A/ and B/.
    """
    if metadata.preprocess.images == 2:
        return FoundSamples([Sample(first, second) for first, second in pairs_below(str(folder))], str(folder))
    if metadata.output in FILE_TARGETS:
        folder = folder / "images" if (folder / "images").is_dir() else folder
        return FoundSamples([Sample(path, NO_LABEL) for path in walk_images(folder)], str(folder))
    folders = set(class_folders(str(folder)))
    names = _names_of_folders(str(folder), metadata)
    is_loose = any(iter_images(folder, recursive=False))
    if folders and folders <= set(names) and not is_loose:
        labelled = read_class_folders(folder, names)
        labelled.left_out.print_note(folder)
        return FoundSamples(list(labelled.samples), str(folder))
    found = [Sample(path, NO_LABEL) for path in walk_images(folder)]
    note = ""
    if folders & set(names):
        others = natural_sorted(folders - set(names))
        why = f'folder "{others[0]}" is none of the net\'s classes' if others else "images lie beside its class folders"
        note = f"{folder}: its images have no labels: {why}"
    return FoundSamples(found, str(folder), note=note)


def _has_labels(metadata: ModelMetadata) -> bool:
    """Return whether an image has one class for a label, not a file with its target, or none."""
    return bool(metadata.class_names) and metadata.output not in FILE_TARGETS


def _names_of_folders(root: str, metadata: ModelMetadata) -> tuple[str, ...]:
    """Return the class name of each label of a net, as the class folders below `root` are called. Raises ListError.

    Where the net knows its classes by number alone, all of them in their natural order are its classes.
    """
    names, folders = metadata.class_names, class_folders(root)
    has_others = len(folders) == len(names) and not set(folders) <= set(names)
    return tuple(folders) if has_others and are_numbers(names) else names


def _list_samples(file: str, root: str, config: Config | None, metadata: ModelMetadata) -> FoundSamples:
    separator = config.file_label_separator if config else SEPARATOR
    names = _list_names(file, config) if _has_labels(metadata) else ()
    labels = labels_by_name(names, metadata.class_names)
    if labels is None:
        raise ListError([f"{file}: its classes are not the net's: {compared(names, metadata.class_names)}"])
    target: Target = _SecondImage() if metadata.preprocess.images == 2 else _UnknownTarget()
    if _has_labels(metadata):
        target = ClassLabel(len(names) or metadata.num_classes, names or metadata.class_names)
    try:
        found = read_target_list(
            file,
            root,
            separator,
            target,
            check_files=False,  # a missing image is skipped and counted, as a damaged one
            allow_outside_root=config.allow_outside_root if config else False,
        )
    except ListError as error:
        if config is not None or "file_label_separator" not in error.problems[0]:
            raise
        problems = [f"{error.problems[0]}, in a config named with --config", *error.problems[1:]]
        raise ListError(problems, error.more) from error
    samples = list(found.samples)
    if not names:
        return FoundSamples(samples, file, root)
    other = renamed(names, metadata.class_names) if labels == tuple(range(metadata.num_classes)) else ""
    note = f"warning: {file}: {other}; its labels are taken as the net's" if other else ""
    return FoundSamples([Sample(sample.path, labels[sample.label]) for sample in samples], file, root, note)


def _list_names(file: str, config: Config | None) -> tuple[str, ...]:
    """Return the class names that belong to a list, () where none are known. Raises ListError."""
    if config is not None and config.class_names_file and _own_root(Path(file), config) is not None:
        return read_class_names(config.class_names_file) if Path(config.class_names_file).is_file() else ()
    return names_beside(file)
