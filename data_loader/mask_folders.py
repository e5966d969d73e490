"""Folders of images and label images, matched by their stems: images/ and labels/, or A/, B/ and labels/."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from data_loader.image_files import LeftOut, folder_prefix, iter_images, no_images
from data_loader.samples import ListError, current_folder, shorten_path

LABELS = "labels"
ONE, TWO = ("images",), ("A", "B")
SPLITS = ("train", "valid", "val", "test")


def find_pairs(root: str, *, has_pairs: bool = False) -> tuple[list[tuple[str, ...]], LeftOut]:
    """Return rows (image, mask), or (image, second image, mask), and what was left out.

    Files lie in the folders themselves: what is hidden, or deeper, does not count. Endings may differ. Raises ListError
    with every file that has no partner, and every stem that two files of a folder share.
    """
    return _matched(root, (*(TWO if has_pairs else ONE), LABELS))


def _matched(root: str, folders: Sequence[str]) -> tuple[list[tuple[str, ...]], LeftOut]:
    root = Path(root).as_posix()
    _check_folders(root, folders)
    left_out, problems = LeftOut(), list[str]()
    found = [_by_stem(folder_prefix(root) + name, left_out, problems) for name in folders]
    first = found[0]
    for name, files in zip(folders[1:], found[1:], strict=True):
        what = "mask" if name == LABELS else "second image"
        problems += [
            f"{path}: there is no {what} {shorten_path(stem)}.* in {folder_prefix(root)}{name}"
            for stem, path in first.items()
            if stem not in files
        ]
        problems += [
            f"{path}: there is no image {shorten_path(stem)}.* in {folder_prefix(root)}{folders[0]}"
            for stem, path in files.items()
            if stem not in first
        ]
    if problems:
        raise ListError(problems)
    if not first:
        raise ListError([no_images(folder_prefix(root) + folders[0], left_out, "no images in it")])
    return [tuple(files[stem] for files in found) for stem in first], left_out


def pairs_below(root: str) -> list[tuple[str, str]]:
    """Return the pairs of A/ and B/ by their stems, without their masks. Raises ListError as `find_pairs` does."""
    rows, _ = _matched(root, TWO)
    return [(first, second) for first, second in rows]


def _check_folders(root: str, folders: Sequence[str]) -> None:
    """Raise ListError where a folder is missing, with a guess at what was meant."""
    if not os.path.isdir(root):  # noqa: PTH112
        raise ListError([f"{root}: folder not found{current_folder(root)}"])
    prefix = folder_prefix(root)
    missing = [name for name in folders if not os.path.isdir(prefix + name)]  # noqa: PTH112
    if not missing:
        return
    has_pairs = folders[0] == TWO[0]
    other = ONE if has_pairs else TWO
    expected = ", ".join(f"{name}/" for name in folders)
    hint = "; or name lists in train_data_file and val_data_file" if LABELS in folders else ""
    if all(os.path.isdir(prefix + name) for name in other):  # noqa: PTH112
        kind = "segmentation, for one image" if has_pairs else "change detection, for pairs of images"
        hint = f"; {' and '.join(f'{name}/' for name in other)} are there: such data need a net for {kind}"
    elif splits := [name for name in SPLITS if os.path.isdir(prefix + name)]:  # noqa: PTH112
        hint = f"; its folder {splits[0]} is a split: name {prefix}{splits[0]} instead"
    raise ListError([f"{root}: expected the folders {expected}, but {', '.join(missing)} is not there{hint}"])


def _by_stem(folder: str, left_out: LeftOut, problems: list[str]) -> dict[str, str]:
    """Return a folder's images by their stems."""
    found: dict[str, str] = {}
    try:
        for path in iter_images(folder, recursive=False, left_out=left_out):
            stem = Path(path).stem
            if stem in found:
                problems.append(f"{path}: {Path(found[stem]).name} has the same stem: which of them counts?")
            found.setdefault(stem, path)
    except OSError as error:
        problems.append(f"{error.filename}: the folder cannot be read: {error.strerror}")
    if not found and left_out.counts[".xml"]:
        problems.append(f"{folder}: it holds .xml files: boxes for object detection are no masks")
    return found
