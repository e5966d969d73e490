"""The platform's datasets: {train,valid,test}/images/<class>/*.jpg; for SimSiam train may have no class folders."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.formatting import is_utf8
from data_loader.image_files import iter_images
from data_loader.samples import ListError, Sample, SampleList, read_class_folders
from platforms.base import PlatformError

LAYOUT = "<dataset>/{train,valid,test}/images/<class>/*.jpg"
SEPARATOR = "----"
LEARNT_OF_FIVE = 4  # parts of `valid` that the refinement learns from where nothing in `train` is labelled


@dataclass(frozen=True)
class Dataset:
    """The images of a training: `train`, labelled or not, and `valid`, always labelled."""

    root: Path
    class_names: tuple[str, ...]
    train: SampleList | None  # None: without class folders
    valid: SampleList
    loose: tuple[str, ...]  # paths of the images of `train` in no class folder

    @property
    def is_labelled(self) -> bool:
        """Whether `train` has class folders."""
        return self.train is not None

    def unlabelled_paths(self) -> list[str]:
        """Return the paths of all images of `train`."""
        return [*(sample.path for sample in self.train.samples), *self.loose] if self.train else list(self.loose)


def read_dataset(root: Path) -> Dataset:
    """Read `train` and `valid`; the classes are `train`'s folders, or `valid`'s where `train` has none.

    Raises PlatformError, and ListError with every missing folder.
    """
    root = Path(os.path.abspath(root))  # noqa: PTH100  # links stay as they were named
    if not root.is_dir():
        raise PlatformError(f"--dataset_path {root}: no such folder; expected is {LAYOUT}")
    problems = [
        f"{root / split / 'images'}: no such folder; expected is {LAYOUT}"
        + ("; acc is measured on valid" if split == "valid" else "")
        for split in ("train", "valid")
        if not (root / split / "images").is_dir()
    ]
    if problems:
        raise ListError(problems)
    try:
        loose = tuple(iter_images(root / "train" / "images", recursive=False))
        train = read_class_folders(root / "train" / "images") if has_class_folders(root) else None
        valid = read_class_folders(root / "valid" / "images", train.class_names if train else ())
    except OSError as error:
        raise PlatformError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error
    if train is None and not loose:
        raise PlatformError(f"{root / 'train' / 'images'}: no images and no class folders in it")
    for split in filter(None, (train, valid)):
        split.left_out.print_note(split.root)
    names = (train or valid).class_names
    _check_names((train or valid).root, names)
    return Dataset(root, names, train, valid, loose)


def read_test(root: Path, class_names: Sequence[str]) -> SampleList:
    """Read `test`, whose class folders are among a model's classes. Raises PlatformError, ListError."""
    folder = Path(os.path.abspath(root)) / "test" / "images"  # noqa: PTH100  # links stay as they were named
    if not folder.is_dir():
        raise PlatformError(f"{folder}: no such folder; expected is {LAYOUT}")
    return read_class_folders(folder, class_names)


def has_class_folders(root: Path) -> bool:
    """Return whether `train` has class folders. Raises OSError."""
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in (root / "train" / "images").iterdir())


def split_valid(valid: SampleList, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split `valid` into four fifths of every class to learn from and the rest to measure on; both keep their order.

    A class of two or more images has at least one on either side; a single one is learnt from. The draw of a class
    depends only on the seed and its own images. Raises PlatformError where nothing is left to measure on.
    """
    of_class: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in valid.samples:
        of_class[sample.label].append(sample)
    drawn: set[str] = set()
    for label, samples in of_class.items():
        rest = round(len(samples) * (5 - LEARNT_OF_FIVE) / 5)
        rest = 0 if len(samples) == 1 else max(1, rest)
        generator = random.Random(f"{seed} {valid.class_names[label]}")
        drawn.update(sample.path for sample in generator.sample(samples, rest))
    learnt = [sample for sample in valid.samples if sample.path not in drawn]
    measured = [sample for sample in valid.samples if sample.path in drawn]
    if not measured:
        raise PlatformError(f"{valid.root}: one image per class leaves none to measure on; at least two are needed")
    return learnt, measured


def list_text(samples: Sequence[Sample], root: Path | str) -> str:
    """Return a list's text, a path below `root` and a label on each line. Raises PlatformError."""
    return "".join(f"{_relative(sample.path, root)}{SEPARATOR}{sample.label}\n" for sample in samples)


def paths_text(paths: Sequence[str], root: Path | str) -> str:
    """Return the text of a list without labels. Raises PlatformError."""
    return "".join(f"{_relative(path, root)}\n" for path in paths)


def _relative(path: str, root: Path | str) -> str:
    name = Path(path).relative_to(root).as_posix()
    if "\n" in name or "\r" in name or not is_utf8(name):
        raise PlatformError(f"{path!a}: a list cannot hold this name (a line break, or not UTF-8); rename the file")
    return name


def _check_names(root: str, names: Sequence[str]) -> None:
    """Raise PlatformError for class names that a file with one name per line cannot hold, and for a single class."""
    for name in names:
        if name != name.strip() or "\n" in name or "\r" in name or not is_utf8(name):
            raise PlatformError(
                f"{root}: the class folder {name!a} begins or ends with a space, has a line break or is not UTF-8; "
                "rename it"
            )
    if len(names) < 2:
        raise PlatformError(f"{root}: it has one class folder ({names[0]}); at least two are needed")
