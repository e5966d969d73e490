"""Samples, class folders and class-name files, and the images below a folder; needs neither torch nor numpy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.console import printable
from common.errors import UserError
from common.formatting import did_you_mean
from data_loader.image_files import (
    SYSTEM_FOLDERS,
    LeftOut,
    StrPath,
    folder_prefix,
    is_folder,
    iter_images,
    natural_sorted,
    no_images,
)

PROBLEMS_SHOWN = 20
PATH_SHOWN = 500  # characters of a path that a message repeats
TEXT_SHOWN = 120  # characters of a bad line that a message repeats
CLASS_NAMES_FILE = "classes.txt"  # beside a list
TRAIN_NAMES = frozenset({"train", "training"})
HELD_OUT_NAMES = frozenset({"val", "valid", "validation", "test", "testing"})

NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file and its target; the path is joined with the root, ready to open.

    The target is what a `data_loader.targets.Target` made of the list's line: of a classifier a class's label, NO_LABEL
    where it is not known.
    """

    path: str
    target: Any

    @property
    def label(self) -> int:
        """Return the target of a classifier's sample."""
        label: int = self.target
        return label


@dataclass(frozen=True)
class SampleList:
    """The samples of one split with their class names, and where each of them was named.

    `origin` is the list file, or the folder whose class folders were read; then `line_numbers` is empty.
    """

    samples: tuple[Sample, ...] = field(repr=False)
    class_names: tuple[str, ...]
    root: str
    origin: str
    line_numbers: tuple[int, ...] = field(default=(), repr=False)
    left_out: LeftOut = field(default_factory=LeftOut, repr=False, compare=False)  # of the walk through the folders
    cache: Any = field(default=None, repr=False, compare=False, kw_only=True)  # an `ImageCache` of the fitted images

    def where(self, index: int) -> str:
        """Return where a sample was named: `trainset.txt:17`, or the folder."""
        return f"{self.origin}:{self.line_numbers[index]}" if self.line_numbers else self.origin

    @property
    def is_labelled(self) -> bool:
        """Return whether every sample has a label."""
        return all(sample.label != NO_LABEL for sample in self.samples)

    def class_counts(self) -> list[int]:
        """Return the number of samples of each class, in the order of the labels."""
        counts = Counter(sample.label for sample in self.samples)
        return [counts[label] for label in range(len(self.class_names))]


class ListError(UserError):
    """What is wrong with one list, class folder tree or class-name file; one sentence a problem.

    `more` is the number of problems beyond these.
    """

    def __init__(self, problems: Sequence[str], more: int = 0) -> None:
        super().__init__(list(problems))
        self.problems, self.more = list(problems), more

    def __str__(self) -> str:
        lines = self.problems[:PROBLEMS_SHOWN]
        if others := len(self.problems) - len(lines) + self.more:
            lines.append(f"... and {others} more")
        return "\n".join(lines)


def read_class_folders(root_dir: StrPath, class_names: Sequence[str] = ()) -> SampleList:
    """Return the samples of a folder with one folder a class, images at any depth below it.

    Without class names the natural order of the folders decides the labels. With them a folder may be absent (a
    validation split need not show every class), but no other folder may be there. Hidden folders are left out; images
    beside the class folders and files of other kinds are counted in `left_out`. Raises ListError with every problem,
    also for a folder that holds the splits of a data set.
    """
    root = Path(root_dir).as_posix()
    left_out = LeftOut()
    folders = class_folders(root, left_out)
    if not class_names and (sentence := _splits_sentence(root, folders)):
        raise ListError([sentence])
    if not folders:
        raise ListError([f"{root}: has no class folders; expected one folder a class with its images inside"])
    names = tuple(class_names) or tuple(folders)
    labels = {name: label for label, name in enumerate(names)}
    samples: list[Sample] = []
    problems: list[str] = []
    for folder in folders:
        label = labels.get(folder)
        if label is None:
            problems.append(_unknown_folder(root, folder, names))
            continue
        before, of_class, path = len(samples), LeftOut(), folder_prefix(root) + folder
        try:
            if sentence := _splits_sentence(path, class_folders(path)):
                problems.append(sentence)
                continue
            samples.extend(Sample(image, label) for image in iter_images(path, left_out=of_class))
        except OSError as error:
            problems.append(f"{error.filename}: the folder cannot be read: {error.strerror}")
            continue
        left_out.counts += of_class.counts
        if len(samples) == before:
            problems.append(no_images(path, of_class, "the class folder has no images"))
    if problems:
        raise ListError(problems)
    return SampleList(tuple(samples), names, root, root, left_out=left_out)


def class_folders(root: str, left_out: LeftOut | None = None) -> list[str]:
    """Return the names of a folder's class folders in natural order, which gives the labels; count what else is there.

    Raises ListError.
    """
    if not os.path.isdir(root):  # noqa: PTH112
        raise ListError([f"{root}: folder not found{current_folder(root)}"])
    left_out, folders = left_out or LeftOut(), []
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name not in SYSTEM_FOLDERS and is_folder(entry):
                folders.append(entry.name)
            elif not entry.name.startswith("."):
                left_out.add(entry.name)
    return natural_sorted(folder for folder in folders if not folder.startswith("."))


def names_beside(list_file: StrPath) -> tuple[str, ...]:
    """Return the class names of classes.txt beside a list, () where there is none. Raises ListError."""
    file = Path(list_file).parent / CLASS_NAMES_FILE
    return read_class_names(file) if file.is_file() else ()


def read_class_names(file: StrPath) -> tuple[str, ...]:
    """Return the class names of labels 0, 1, ... from a UTF-8 file, one a line. Raises ListError with every problem."""
    origin = os.fspath(file)
    names = [line.strip() for line in read_utf8(origin).rstrip().split("\n")]
    if names == [""]:
        raise ListError([f"{origin}: the file is empty; write one class name a line"])
    problems: list[str] = []
    first_lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if not name:
            problems.append(f"{origin}:{line}: the class name is empty; line n names the class of label n-1")
        elif first_lines.setdefault(name, line) != line:
            problems.append(f'{origin}:{line}: class name "{name}" already stands in line {first_lines[name]}')
    if problems:
        raise ListError(problems)
    return tuple(names)


def read_utf8(file: str) -> str:
    """Return a UTF-8 text file, with or without BOM, its lines ended by a single line feed. Raises ListError."""
    try:
        data = Path(file).read_bytes()
    except FileNotFoundError as error:
        raise ListError([f"{file}: file not found{current_folder(file)}"]) from error
    except OSError as error:
        raise ListError([f"{file}: cannot be read: {error.strerror}"]) from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ListError([f"{file}:1: the file is UTF-16; save it as UTF-8"])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        data = data.removeprefix(b"\xef\xbb\xbf")  # the error counts from behind the BOM
        raise ListError([_not_utf8(file, data, error.start)]) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_utf8(file: str, data: bytes, position: int) -> str:
    """Return a sentence about the line that is not UTF-8, with its text where the bytes are GBK (Chinese Windows)."""
    line_number = data.count(b"\n", 0, position) + 1
    line = data.split(b"\n")[line_number - 1]
    try:
        guess = f'; it looks like GBK: "{shorten(line.decode("gbk").rstrip())}"'
    except UnicodeDecodeError:
        guess = ""
    return f"{file}:{line_number}: the line is not UTF-8 (byte 0x{data[position]:02x}){guess}; save the file as UTF-8"


def _splits_sentence(root: str, folders: Sequence[str]) -> str:
    """Return why a folder whose folders are named as splits has no classes, "" for any other."""
    names = {folder.lower(): folder for folder in folders}
    train, held_out = sorted(names.keys() & TRAIN_NAMES), sorted(names.keys() & HELD_OUT_NAMES)
    if not train or not held_out:
        return ""
    first, second = folder_prefix(root) + names[train[0]], folder_prefix(root) + names[held_out[0]]
    found = " and ".join([names[train[0]], *(names[name] for name in held_out)])
    return f"{root}: its folders {found} are the splits of a data set, no classes; name {first} and {second} instead"


def _unknown_folder(root: str, folder: str, class_names: Sequence[str]) -> str:
    hint = did_you_mean(folder, class_names) or f"; class names: {shorten(', '.join(class_names))}"
    return f'{folder_prefix(root)}{folder}: folder "{folder}" is not one of the {len(class_names)} class names{hint}'


def current_folder(path: str) -> str:
    """Return " (current folder ...)" for a relative path, else ""."""
    return "" if Path(path).is_absolute() else f" (current folder {Path.cwd()})"


def shorten(text: str) -> str:
    """Return a text for a message: cut where that would grow too long by it, control characters escaped."""
    return printable(text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 3] + "...")


def shorten_path(path: str) -> str:
    """Return a path for a message: without its middle where it is longer than most systems allow, and escaped."""
    return printable(path if len(path) <= PATH_SHOWN else f"{path[: PATH_SHOWN // 2]}...{path[-PATH_SHOWN // 2 :]}")
