"""Which images belong to which class: txt lists, class folders and class-name files, checked before training."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from natsort import natsort_keygen

from common.errors import UserError
from common.formatting import did_you_mean

# fmt: off
IMAGE_SUFFIXES: tuple[str, ...] = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
)
# fmt: on

_PROBLEMS_SHOWN = 20
_TEXT_SHOWN = 120  # characters of a bad line that a message repeats
_SCAN_FROM = 16  # names wanted from one folder from which one scandir is cheaper than a stat a name
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")  # int() refuses more than 4300 digits
_UNUSUAL = re.compile(r"^[/\\]|^.:|\.\.|//|\./|\\")  # may be absolute, leave the root or have a second spelling
_natural_key = natsort_keygen()

NO_LABEL = -1
StrPath = str | os.PathLike[str]
Problem = tuple[int, str]  # line number (0: the whole file), sentence


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file and its label (NO_LABEL: not known); the path is joined with the root, ready to open."""

    path: str
    label: int


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
        """Say where a sample was named: `trainset.txt:17`, or the folder."""
        return f"{self.origin}:{self.line_numbers[index]}" if self.line_numbers else self.origin

    @property
    def is_labelled(self) -> bool:
        """Whether every sample has a label."""
        return all(sample.label != NO_LABEL for sample in self.samples)

    def class_counts(self) -> list[int]:
        """Count the samples of each class, in the order of the labels."""
        counts = Counter(sample.label for sample in self.samples)
        return [counts[label] for label in range(len(self.class_names))]


class ListError(UserError):
    """Everything that is wrong with one list, class folder tree or class-name file; one sentence a problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(list(problems))
        self.problems = list(problems)

    def __str__(self) -> str:
        lines = self.problems[:_PROBLEMS_SHOWN]
        if len(self.problems) > len(lines):
            lines.append(f"... and {len(self.problems) - len(lines)} more")
        return "\n".join(lines)


def read_list(
    list_file: StrPath,
    root_dir: StrPath,
    separator: str,
    num_classes: int,
    class_names: Sequence[str] = (),
    *,
    check_files: bool = True,
    allow_outside_root: bool = False,
) -> SampleList:
    """Read a txt list, one `path<separator>label` a line, the path relative to the root folder.

    A line is split at the last separator; blank lines are skipped. Without class names class i is called "i".
    Raises ListError with every problem of the file.
    """
    origin = os.fspath(list_file)
    if not separator:
        raise ListError([f"{origin}: the separator is empty; name what stands between path and label, such as ----"])
    root = Path(root_dir).as_posix()
    names = tuple(class_names) or tuple(str(label) for label in range(num_classes))
    parsed = _parse_lines(_read_utf8(origin), separator, names)
    problems = parsed.problems
    if len(names) != num_classes:
        problems.append((0, f"{len(names)} class names were given, but num_classes is {num_classes}"))
    problems += _check_labels(parsed, num_classes)
    samples = _checked_samples(
        parsed, origin, root, problems, check_files=check_files, allow_outside_root=allow_outside_root
    )
    return SampleList(samples, names, root, origin, tuple(parsed.line_numbers))


def read_class_folders(root_dir: StrPath, class_names: Sequence[str] = ()) -> SampleList:
    """Read a folder with one folder a class, images at any depth below it.

    Without class names the natural order of the folders decides the labels. With them a folder may be absent (a
    validation split need not show every class), but no other folder may be there. Hidden folders and images beside
    the class folders are left out. Raises ListError with every problem.
    """
    root = Path(root_dir).as_posix()
    if not os.path.isdir(root):  # noqa: PTH112
        raise ListError([f"{root}: folder not found{_current_folder(root)}"])
    with os.scandir(root) as entries:
        folders = natural_sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
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
            samples.extend(Sample(path, label) for path in iter_images(_prefix(root) + folder))
        except OSError as error:
            problems.append(f"{error.filename}: the folder cannot be read: {error.strerror}")
            continue
        if len(samples) == before:
            endings = " ".join(IMAGE_SUFFIXES)
            problems.append(f"{_prefix(root)}{folder}: the class folder has no images; endings known: {endings}")
    if problems:
        raise ListError(problems)
    return SampleList(tuple(samples), names, root, root)


def read_unlabelled(
    list_file: StrPath,
    root_dir: StrPath,
    separator: str,
    class_names: Sequence[str],
    *,
    check_files: bool = True,
    allow_outside_root: bool = False,
) -> SampleList:
    """Read images to learn from without labels: a txt list, or without one every image below the root folder.

    A line is a path, or path and label; a label that is none of the classes', or the name of a folder that is none,
    becomes NO_LABEL. Raises ListError with every problem.
    """
    root = Path(root_dir).as_posix()
    if not list_file:
        return _read_images(root, class_names)
    origin = os.fspath(list_file)
    lines = _Lines([], [], [], [])
    for number, whole_line in enumerate(_read_utf8(origin).split("\n"), 1):
        line = whole_line.rstrip()
        if not line:
            continue
        path, found, text = line.rpartition(separator)
        is_label = bool(found) and _INTEGER.fullmatch(text.strip()) is not None
        if found and not is_label and os.path.isfile(Path(root, path)):  # noqa: PTH113  (a Path raises for long names)
            lines.problems.append((number, _not_an_integer(text.strip(), class_names)))
            continue
        lines.paths.append((path.rstrip() if separator.isspace() else path) if is_label else line)
        label = int(text) if is_label else NO_LABEL
        lines.labels.append(label if 0 <= label < len(class_names) else NO_LABEL)
        lines.line_numbers.append(number)
    if not lines.paths and not lines.problems:
        lines.problems.append((0, "the list is empty; write one path a line"))
    samples = _checked_samples(
        lines, origin, root, lines.problems, check_files=check_files, allow_outside_root=allow_outside_root
    )
    return SampleList(samples, tuple(class_names), root, origin, tuple(lines.line_numbers))


def read_class_names(file: StrPath) -> tuple[str, ...]:
    """Read the class names of labels 0, 1, ... from a UTF-8 file, one a line. Raises ListError with every problem."""
    origin = os.fspath(file)
    names = [line.strip() for line in _read_utf8(origin).rstrip().split("\n")]
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


def _read_images(root: str, class_names: Sequence[str]) -> SampleList:
    labels = {name: label for label, name in enumerate(class_names)}
    prefix = _prefix(root)
    try:
        paths = list(iter_images(root))
    except OSError as error:
        raise ListError([f"{error.filename or root}: the folder cannot be read: {error.strerror}"]) from error
    if not paths:
        raise ListError([f"{root}: no images in it or below it; endings known: {' '.join(IMAGE_SUFFIXES)}"])
    folders = (path.removeprefix(prefix).partition("/")[0] for path in paths)
    samples = tuple(Sample(path, labels.get(folder, NO_LABEL)) for path, folder in zip(paths, folders, strict=True))
    return SampleList(samples, tuple(class_names), root, root)


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Sort so that img2 comes before img10; names that differ only in leading zeros keep a fixed order too."""
    return sorted(names, key=lambda name: (_natural_key(name), name))


def iter_images(root: StrPath, *, recursive: bool = True) -> Iterator[str]:
    """Stream the paths of the images below a folder: its own in natural order, then folder by folder.

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
        prefix = _prefix(folder)
        for name in images:
            yield prefix + name
        if recursive:
            waiting += [(prefix + name, above | {identity}) for name in reversed(folders)]


def _scan_folder(folder: str) -> tuple[list[str], list[str]]:
    """List the image names and the folder names of one folder, each in natural order."""
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


@dataclass
class _Lines:
    """The lines of a list that have a path, as columns; a label that is no integer is None."""

    paths: list[str]
    labels: list[int | None]
    line_numbers: list[int]
    problems: list[Problem]


def _read_utf8(file: str) -> str:
    """Read a UTF-8 text file, with or without BOM, and end its lines in a single line feed."""
    try:
        data = Path(file).read_bytes()
    except FileNotFoundError as error:
        raise ListError([f"{file}: file not found{_current_folder(file)}"]) from error
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
    """Say which line is not UTF-8 and, where the bytes are GBK (Chinese Windows), what it reads as."""
    line_number = data.count(b"\n", 0, position) + 1
    line = data.split(b"\n")[line_number - 1]
    try:
        guess = f'; it looks like GBK: "{_shorten(line.decode("gbk").rstrip())}"'
    except UnicodeDecodeError:
        guess = ""
    return f"{file}:{line_number}: the line is not UTF-8 (byte 0x{data[position]:02x}){guess}; save the file as UTF-8"


def _parse_lines(text: str, separator: str, class_names: Sequence[str]) -> _Lines:
    """Split each line at its last separator."""
    lines = _Lines([], [], [], [])
    known: dict[str, int | None] = {}  # a list repeats few label texts, so each is parsed once
    blank_separator = separator.isspace()
    for number, whole_line in enumerate(text.split("\n"), 1):
        line = whole_line.rstrip()
        if not line:
            continue
        path, found, label_text = line.rpartition(separator)
        if not found:
            hint = f"write path{separator}label, or set file_label_separator to what stands between them"
            lines.problems.append((number, f'separator "{separator}" is missing in "{_shorten(line)}"; {hint}'))
            continue
        if blank_separator:
            path = path.rstrip()  # "a.jpg  3" has two separators in a row
        if label_text not in known:
            stripped = label_text.strip()
            known[label_text] = int(stripped) if _INTEGER.fullmatch(stripped) else None
        label = known[label_text]
        if label is None:
            lines.problems.append((number, _not_an_integer(label_text.strip(), class_names)))
        if not path:
            lines.problems.append((number, f'the path before "{_shorten(line)}" is empty; write path{separator}label'))
            continue
        lines.paths.append(path)
        lines.labels.append(label)
        lines.line_numbers.append(number)
    if not lines.paths and not lines.problems:
        lines.problems.append((0, f"the list is empty; write one path{separator}label a line"))
    return lines


def _checked_samples(
    lines: _Lines, origin: str, root: str, problems: list[Problem], *, check_files: bool, allow_outside_root: bool
) -> tuple[Sample, ...]:
    """Give a list's samples. Raises ListError with the problems known and those of the paths."""
    full_paths, keys = _join_root(root, lines.paths)
    problems = problems + _check_repeats(lines, keys)
    if not allow_outside_root:
        problems += _check_inside(lines, keys, root)
    if check_files:
        problems += _check_files(lines, full_paths, root)
    if problems:
        problems.sort(key=lambda problem: problem[0])
        raise ListError([f"{origin}:{line}: {text}" if line else f"{origin}: {text}" for line, text in problems])
    return tuple(map(Sample, full_paths, (label for label in lines.labels if label is not None)))


def _check_labels(lines: _Lines, num_classes: int) -> list[Problem]:
    """Find the labels outside 0..num_classes-1, and say where all of them seem to count from 1."""
    distinct = {label for label in lines.labels if label is not None}
    outside = {label for label in distinct if not 0 <= label < num_classes}
    if not outside:
        return []
    allowed = f"0..{num_classes - 1} (num_classes is {num_classes})"
    problems = [
        (number, f"label {label} is outside {allowed}")
        for number, label in zip(lines.line_numbers, lines.labels, strict=True)
        if label in outside
    ]
    if outside == {num_classes} and 0 not in distinct:
        problems.append((0, f"no label is 0 and the largest is {num_classes}; labels count from 0, not from 1"))
    return problems


def _join_root(root: str, paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Join each path with the root; beside it a key that is the same for every spelling of one path.

    A key is relative to the root; one that begins with `..` or is absolute lies outside.
    """
    prefix = _prefix(root)
    full_paths: list[str] = []
    keys: list[str] = []
    for path in paths:
        if not _UNUSUAL.search(path):
            full_paths.append(prefix + path)
            keys.append(path)
            continue
        full = Path(root, path).as_posix()
        full_paths.append(full)
        try:
            keys.append(os.path.relpath(full, root).replace(os.sep, "/"))
        except ValueError:  # another drive than the root's
            keys.append(full)
    return full_paths, keys


def _check_repeats(lines: _Lines, keys: Sequence[str]) -> list[Problem]:
    """Find the paths that are listed again, with the same label or with another."""
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        earlier = first.setdefault(key, index)
        if earlier == index:
            continue
        label, earlier_label, line = lines.labels[index], lines.labels[earlier], lines.line_numbers[earlier]
        if label is None or earlier_label is None:
            continue
        if label == earlier_label or NO_LABEL in (label, earlier_label):
            with_label = "" if NO_LABEL in (label, earlier_label) else f" with label {label}"
            text = f'path "{lines.paths[index]}"{with_label} already stands in line {line}; remove one of them'
        else:
            text = f'path "{lines.paths[index]}" has label {label} here but label {earlier_label} in line {line}'
        problems.append((lines.line_numbers[index], text))
    return problems


def _check_inside(lines: _Lines, keys: Sequence[str], root: str) -> list[Problem]:
    """Find the paths that lead out of the root folder, by their text; links are not resolved."""
    return [
        (number, f'path "{path}" leaves the root folder {root}; list images below the root, or choose a higher root')
        for number, path, key in zip(lines.line_numbers, lines.paths, keys, strict=True)
        if key == ".." or (_UNUSUAL.search(key) and (key.startswith("../") or Path(key).is_absolute()))
    ]


def _check_files(lines: _Lines, full_paths: Sequence[str], root: str) -> list[Problem]:
    """Find the listed images that are not there, with one scan a folder instead of one stat an image."""
    if not os.path.isdir(root):  # noqa: PTH112
        return [(0, f"root folder {root} not found{_current_folder(root)}")]
    wanted: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for index, path in enumerate(full_paths):
        folder, slash, name = path.rpartition("/")
        wanted[folder + slash].setdefault(name, index)
    problems: list[Problem] = []
    for folder, names in wanted.items():
        if len(names) >= _SCAN_FROM:
            _drop_present(folder or ".", names)
        for index in names.values():
            path = full_paths[index]
            if os.path.isdir(path):  # noqa: PTH112  (a Path per missing image would triple the time)
                problems.append((lines.line_numbers[index], f"{path} is a folder, not an image"))
            elif not os.path.isfile(path):  # noqa: PTH113
                hint = _missing_hint(lines.paths[index])
                text = f"image not found: {path}{_current_folder(path)}{hint}"
                problems.append((lines.line_numbers[index], text))
    return problems


def _drop_present(folder: str, names: dict[str, int]) -> None:
    """Take from the names those that are files in the folder; what is left needs a closer look."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in names and entry.is_file():
                    del names[entry.name]
    except OSError:
        return  # the closer look at each name tells what is wrong


def _missing_hint(path: str) -> str:
    """Guess why an image is missing from how its path is written."""
    if "\\" in path and os.sep == "/":
        return "; write / instead of \\"
    if path.endswith("-"):
        return "; the path ends in a dash: a label below 0 is not allowed"
    if path != path.strip():
        return "; the path begins or ends with a space"
    return ""


def _not_an_integer(text: str, class_names: Sequence[str]) -> str:
    allowed = f"allowed are 0..{len(class_names) - 1}"
    hint = f"; class {text} has label {class_names.index(text)}" if text in class_names else ""
    return f'label "{_shorten(text)}" is not an integer; {allowed}{hint}'


def _unknown_folder(root: str, folder: str, class_names: Sequence[str]) -> str:
    hint = did_you_mean(folder, class_names) or f"; class names: {_shorten(', '.join(class_names))}"
    return f'{_prefix(root)}{folder}: folder "{folder}" is not one of the {len(class_names)} class names{hint}'


def _prefix(folder: str) -> str:
    """What stands before a name in this folder."""
    if folder == ".":
        return ""
    return folder if folder.endswith("/") else folder + "/"


def _current_folder(path: str) -> str:
    return "" if Path(path).is_absolute() else f" (current folder {Path.cwd()})"


def _shorten(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 3] + "..."
