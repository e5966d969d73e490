"""Samples, class folders and class-name files, and the images below a folder; needs neither torch nor numpy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from natsort import natsort_keygen

from common.console import printable
from common.errors import UserError
from common.formatting import did_you_mean

# fmt: off
IMAGE_SUFFIXES: tuple[str, ...] = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
)
# fmt: on

PROBLEMS_SHOWN = 20
PATH_SHOWN = 500  # characters of a path that a message repeats
TEXT_SHOWN = 120  # characters of a bad line that a message repeats
CLASS_NAMES_FILE = "classes.txt"  # beside a list
_natural_key = natsort_keygen()

NO_LABEL = -1
StrPath = str | os.PathLike[str]


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
    validation split need not show every class), but no other folder may be there. Hidden folders and images beside
    the class folders are left out. Raises ListError with every problem.
    """
    root = Path(root_dir).as_posix()
    folders = class_folders(root)
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
        before = len(samples)
        try:
            samples.extend(Sample(path, label) for path in iter_images(folder_prefix(root) + folder))
        except OSError as error:
            problems.append(f"{error.filename}: the folder cannot be read: {error.strerror}")
            continue
        if len(samples) == before:
            endings = " ".join(IMAGE_SUFFIXES)
            problems.append(f"{folder_prefix(root)}{folder}: the class folder has no images; endings known: {endings}")
    if problems:
        raise ListError(problems)
    return SampleList(tuple(samples), names, root, root)


def class_folders(root: str) -> list[str]:
    """Return the names of a folder's class folders in natural order, which gives the labels. Raises ListError."""
    if not os.path.isdir(root):  # noqa: PTH112
        raise ListError([f"{root}: folder not found{current_folder(root)}"])
    with os.scandir(root) as entries:
        return natural_sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))


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


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Return names sorted, img2 before img10; names that differ only in leading zeros keep a fixed order too."""
    return sorted(names, key=lambda name: (_natural_key(name), name))


def iter_images(root: StrPath, *, recursive: bool = True) -> Iterator[str]:
    """Yield the paths of the images below a folder: its own in natural order, then folder by folder.

    Only one folder's names are held at a time. Names that begin with a dot are left out. Linked folders are
    followed, except back into a folder that is being walked. A broken link is yielded, so that whoever opens it
    reports it. Raises OSError where a folder cannot be read.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(Path(root).as_posix(), frozenset())]
    while waiting:
        folder, above = waiting.pop()
        status = Path(folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        images, folders = _scan_folder(folder)
        prefix = folder_prefix(folder)
        for name in images:
            yield prefix + name
        if recursive:
            waiting += [(prefix + name, above | {identity}) for name in reversed(folders)]


def _scan_folder(folder: str) -> tuple[list[str], list[str]]:
    """Return the image names and the folder names of one folder, each in natural order."""
    images: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append(entry.name)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES) and (entry.is_symlink() or entry.is_file()):
                images.append(entry.name)
    return natural_sorted(images), natural_sorted(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


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


def _unknown_folder(root: str, folder: str, class_names: Sequence[str]) -> str:
    hint = did_you_mean(folder, class_names) or f"; class names: {shorten(', '.join(class_names))}"
    return f'{folder_prefix(root)}{folder}: folder "{folder}" is not one of the {len(class_names)} class names{hint}'


def folder_prefix(folder: str) -> str:
    """Return the text before a name in this folder."""
    if folder == ".":
        return ""
    return folder if folder.endswith("/") else folder + "/"


def current_folder(path: str) -> str:
    """Return " (current folder ...)" for a relative path, else ""."""
    return "" if Path(path).is_absolute() else f" (current folder {Path.cwd()})"


def shorten(text: str) -> str:
    """Return a text for a message: cut where that would grow too long by it, control characters escaped."""
    return printable(text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 3] + "...")


def shorten_path(path: str) -> str:
    """Return a path for a message: without its middle where it is longer than most systems allow, and escaped."""
    return printable(path if len(path) <= PATH_SHOWN else f"{path[: PATH_SHOWN // 2]}...{path[-PATH_SHOWN // 2 :]}")
