"""Txt lists of samples, one `path<separator>target` a line, checked completely before training."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_loader.image_files import LeftOut, StrPath, folder_prefix, iter_images, no_images
from data_loader.problems import Problem, Problems
from data_loader.samples import (
    NO_LABEL,
    ListError,
    Sample,
    SampleList,
    current_folder,
    read_utf8,
    shorten,
    shorten_path,
)
from data_loader.targets import ClassLabel, Target, TargetError, is_integer, not_an_integer

_SCAN_FROM = 16  # names wanted from one folder from which one scandir is cheaper than a stat a name
BLOCK = 1_000_000  # lines whose images are looked for at once
MANY = 10_000  # problems after which the other blocks are left out
_UNUSUAL = re.compile(r"^[/\\]|^.:|\.\.|//|\./|\\")  # may be absolute, leave the root or have a second spelling


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
    """Return the samples of a list whose targets are class labels; see `read_target_list`."""
    target = ClassLabel(num_classes, class_names)
    return read_target_list(
        list_file, root_dir, separator, target, check_files=check_files, allow_outside_root=allow_outside_root
    )


def read_target_list(
    list_file: StrPath,
    root_dir: StrPath,
    separator: str,
    target: Target,
    *,
    check_files: bool = True,
    allow_outside_root: bool = False,
) -> SampleList:
    """Return the samples of a txt list, one `path<separator>target` a line, the path relative to the root folder.

    A line is split at the last separator; blank lines are skipped. Raises ListError with every problem of the file.
    """
    origin = os.fspath(list_file)
    if not separator:
        raise ListError(
            [f"{origin}: the separator is empty; name what stands between path and {target.noun}, such as ----"]
        )
    root = Path(root_dir).as_posix()
    lines = _parse_lines(read_utf8(origin), separator, target, root)
    targets, numbers = lines.targets, lines.numbers
    if None in targets:
        known = [index for index, value in enumerate(targets) if value is not None]
        targets, numbers = [targets[index] for index in known], [numbers[index] for index in known]
    lines.problems.extend(target.find_problems(targets, numbers))
    samples = _checked_samples(
        lines, target, origin, root, check_files=check_files, allow_outside_root=allow_outside_root
    )
    return SampleList(samples, target.class_names, root, origin, tuple(lines.numbers))


def read_unlabelled(
    list_file: StrPath,
    root_dir: StrPath,
    separator: str,
    class_names: Sequence[str],
    *,
    check_files: bool = True,
    allow_outside_root: bool = False,
) -> SampleList:
    """Return images to learn from without labels: of a txt list, or without one all below the root folder.

    A line is a path, or path and label; a label that is none of the classes', or the name of a folder that is none,
    becomes NO_LABEL. Raises ListError with every problem.
    """
    root = Path(root_dir).as_posix()
    if not list_file:
        return _read_images(root, class_names)
    origin = os.fspath(list_file)
    lines = _Lines()
    for number, whole_line in enumerate(_each_line(read_utf8(origin)), 1):
        line = whole_line.rstrip()
        if not line:
            continue
        path, found, text = line.rpartition(separator)
        is_label = bool(found) and is_integer(text.strip())
        if found and not is_label and os.path.isfile(Path(root, path)):  # noqa: PTH113  (a Path raises for long names)
            lines.problems.add(number, not_an_integer(text.strip(), class_names))
            continue
        label = int(text) if is_label else NO_LABEL
        lines.add(
            number,
            (path.rstrip() if separator.isspace() else path) if is_label else line,
            label if 0 <= label < len(class_names) else NO_LABEL,
        )
    if not lines.paths and not lines.problems.count:
        lines.problems.add(0, "the list is empty; write one path a line")
    target = ClassLabel(len(class_names), class_names)
    samples = _checked_samples(
        lines, target, origin, root, check_files=check_files, allow_outside_root=allow_outside_root
    )
    return SampleList(samples, tuple(class_names), root, origin, tuple(lines.numbers))


def _read_images(root: str, class_names: Sequence[str]) -> SampleList:
    labels = {name: label for label, name in enumerate(class_names)}
    prefix = folder_prefix(root)
    left_out = LeftOut()
    try:
        paths = list(iter_images(root, left_out=left_out))
    except OSError as error:
        raise ListError([f"{error.filename or root}: the folder cannot be read: {error.strerror}"]) from error
    if not paths:
        raise ListError([no_images(root, left_out)])
    folders = (path.removeprefix(prefix).partition("/")[0] for path in paths)
    samples = tuple(Sample(path, labels.get(folder, NO_LABEL)) for path, folder in zip(paths, folders, strict=True))
    return SampleList(samples, tuple(class_names), root, root, left_out=left_out)


@dataclass
class _Lines:
    """The lines of a list that have a path, as columns; a target that cannot be used is None."""

    paths: list[str] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)

    def add(self, number: int, path: str, target: Any) -> None:
        """Add a line."""
        self.paths.append(path)
        self.targets.append(target)
        self.numbers.append(number)


def _parse_lines(text: str, separator: str, target: Target, root: str) -> _Lines:
    """Return the lines, split at their last separator."""
    lines = _Lines()
    form = separator.join(("path", *(target.files or (target.noun,))))
    known: dict[str, tuple[Any, str]] = {}  # a list repeats few labels, so each text is parsed once
    for number, whole_line in enumerate(_each_line(text), 1):
        line = whole_line.rstrip()
        if not line:
            continue
        path, *texts = line.rsplit(separator, max(1, len(target.files)))
        if len(texts) < max(1, len(target.files)):
            hint = f"write {form}, or set file_label_separator to what stands between them"
            lines.problems.add(number, f'separator "{separator}" is missing in "{shorten(line)}"; {hint}')
            continue
        if separator.isspace():
            path = path.rstrip()  # "a.jpg  3" has two separators in a row
        if target.files:
            value, problem = tuple(text.strip() for text in texts), ""
        else:
            target_text = texts[0]
            if target_text not in known:
                known[target_text] = _parsed(target, target_text.strip(), root)
            value, problem = known[target_text]
        if problem:
            lines.problems.add(number, problem)
        if not path:
            lines.problems.add(number, f'the path before "{shorten(line)}" is empty; write {form}')
            continue
        lines.add(number, path, value)
    if not lines.paths and not lines.problems.count:
        lines.problems.add(0, f"the list is empty; write one {form} a line")
    return lines


def _each_line(text: str) -> Iterator[str]:
    """Yield the lines of a text one by one: a list of all would double the memory."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _parsed(target: Target, text: str, root: str) -> tuple[Any, str]:
    """Return a line's target, or None and what is wrong with it."""
    try:
        return target.parse(text, root), ""
    except TargetError as error:
        return None, str(error)


def _checked_samples(
    lines: _Lines, target: Target, origin: str, root: str, *, check_files: bool, allow_outside_root: bool
) -> tuple[Sample, ...]:
    """Return a list's samples. Raises ListError with the problems known and those of the paths."""
    full_paths, keys = _join_root(root, lines.paths)
    lines.problems.extend(_check_repeats(lines, keys, target))
    if not allow_outside_root:
        lines.problems.extend(_check_inside(lines, keys, root))
    if check_files:
        _check_files(lines, full_paths, root)
    targets = lines.targets
    if target.files:
        columns = zip(target.files, zip(*targets, strict=True), strict=False)  # no column where no line is left
        further = [
            _joined_column(lines, noun, column, root, check_files=check_files, allow_outside_root=allow_outside_root)
            for noun, column in columns
        ]
        targets = [target.from_files(paths) for paths in zip(*further, strict=True)]
    lines.problems.raise_any(origin)
    return tuple(map(Sample, full_paths, targets))


def _joined_column(
    lines: _Lines, noun: str, paths: Sequence[str], root: str, *, check_files: bool, allow_outside_root: bool
) -> list[str]:
    """Return the further files of all lines, joined with the root; add what is wrong with them to the problems."""
    column = _Lines(list(paths), [], lines.numbers, lines.problems)
    full_paths, keys = _join_root(root, paths)
    if not allow_outside_root:
        lines.problems.extend(_check_inside(column, keys, root))
    if check_files and os.path.isdir(root):  # noqa: PTH112  (else `_check_files` has said so)
        _check_files(column, full_paths, root, noun)
    return full_paths


def _join_root(root: str, paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return each path joined with the root, and beside it a key that is the same for every spelling of one path.

    A key is relative to the root; one that begins with `..` or is absolute lies outside.
    """
    prefix = folder_prefix(root)
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


def _check_repeats(lines: _Lines, keys: Sequence[str], target: Target) -> Iterator[Problem]:
    """Yield the paths that are listed again, with the same target or with another."""
    if len(set(keys)) == len(keys):  # half the memory of what follows
        return
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        earlier = first.setdefault(key, index)
        value, earlier_value = lines.targets[index], lines.targets[earlier]
        if earlier == index or value is None or earlier_value is None:
            continue
        path, line = shorten_path(lines.paths[index]), lines.numbers[earlier]
        name, earlier_name = target.describe(value), target.describe(earlier_value)
        if name == earlier_name or not (name and earlier_name):
            with_target = f" with {name}" if name and earlier_name else ""
            text = f'path "{path}"{with_target} already stands in line {line}; remove one of them'
        else:
            text = f'path "{path}" has {name} here but {earlier_name} in line {line}'
        yield lines.numbers[index], text


def _check_inside(lines: _Lines, keys: Sequence[str], root: str) -> Iterator[Problem]:
    """Yield the paths that lead out of the root folder, by their text; links are not resolved."""
    hint = "list images below the root, or choose a higher root"
    for number, path, key in zip(lines.numbers, lines.paths, keys, strict=True):
        if key == ".." or (_UNUSUAL.search(key) and (key.startswith("../") or Path(key).is_absolute())):
            yield number, f'path "{shorten_path(path)}" leaves the root folder {root}; {hint}'


def _check_files(lines: _Lines, full_paths: Sequence[str], root: str, noun: str = "image") -> None:
    """Add the listed files that are not there, with one scan a folder instead of one stat an image."""
    if not os.path.isdir(root):  # noqa: PTH112
        lines.problems.add(0, f"root folder {root} not found{current_folder(root)}")
        return
    for start in range(0, len(full_paths), BLOCK):
        _check_block(lines, full_paths, range(start, min(start + BLOCK, len(full_paths))), noun)
        if (missing := lines.problems.count) > MANY and start + BLOCK < len(full_paths):
            where = f"in the first {start + BLOCK} of its {len(full_paths)} lines: the others were not looked for"
            lines.problems.add(0, f"{missing} problems {where}")
            return


def _check_block(lines: _Lines, full_paths: Sequence[str], block: range, noun: str) -> None:
    """Add those files of a block of lines that are not there."""
    wanted: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for index in block:
        folder, slash, name = full_paths[index].rpartition("/")
        wanted[folder + slash].setdefault(name, index)
    for folder, names in wanted.items():
        is_there = True
        if len(names) >= _SCAN_FROM:
            is_there = os.path.isdir(folder or ".")  # noqa: PTH112
            _drop_present(folder or ".", names)
        for index in names.values():
            path, number = full_paths[index], lines.numbers[index]
            if not is_there or not os.path.isfile(path):  # noqa: PTH113  (a Path for each would triple the time)
                lines.problems.add(number, partial(_missing_text, path, lines.paths[index], noun))


def _missing_text(full_path: str, path: str, noun: str) -> str:
    """Return the sentence about a listed path that is no file."""
    if os.path.isdir(full_path):  # noqa: PTH112
        return f"{shorten_path(full_path)} is a folder, not {'an' if noun == 'image' else 'a'} {noun}"
    return f"{noun} not found: {shorten_path(full_path)}{current_folder(full_path)}{_missing_hint(path)}"


def _drop_present(folder: str, names: dict[str, int]) -> None:
    """Take from the names those that are files in the folder; what is left needs a closer look."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in names and entry.is_file():
                    del names[entry.name]
    except OSError:
        return  # each name is looked at by itself instead


def _missing_hint(path: str) -> str:
    """Return a guess why an image is missing from how its path is written."""
    if "\\" in path and os.sep == "/":
        return "; write / instead of \\"
    if path.endswith("-"):
        return "; the path ends in a dash: a label below 0 is not allowed"
    if path != path.strip():
        return "; the path begins or ends with a space"
    return ""
