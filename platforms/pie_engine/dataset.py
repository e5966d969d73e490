"""The data of a request in a folder: which task they are for, and everything that can be wrong with them at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from data_loader.bands import band_kind, has_rasterio, kind_text
from data_loader.box_annotations import read_annotation
from data_loader.box_folders import find_annotated
from data_loader.decoding import quiet_decoders
from data_loader.errors import ImageError
from data_loader.image_files import is_folder, iter_images
from data_loader.mask_folders import find_pairs
from data_loader.samples import ListError
from platforms.pie_engine.classes import NetClasses, classes_of_boxes, classes_of_masks
from platforms.pie_engine.errors import RequestError
from platforms.pie_engine.nets import CHANGE, DETECTION, SEGMENTATION
from platforms.pie_engine.traincfg import TrainRequest

SPLITS = ("train", "valid")
LAYOUT = (
    "train/ and valid/ with images/ and labels/ (label pictures or VOC XML), or A/, B/ and labels/ for change detection"
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
SHOWN = 20
THREADS = 8
GEO_KEYS = 34735  # the tag GeoKeyDirectory

Kind = tuple[int, str]  # bands and their type
ORDINARY: Kind = (3, "uint8")


def task_of_names(where: str, names: Sequence[str]) -> str:
    """Return the task that data are for, by the names below the data set, "train/images/1.jpg". Raises RequestError.

    `where` is the data set, for the message.
    """
    folders = {name.rpartition("/")[0] for name in names}
    labels = [name for name in names if name.startswith("train/labels/") and name.count("/") == 2]
    if {"train/A", "train/B"} <= folders:
        return CHANGE
    if any(name.lower().endswith(".xml") for name in labels):
        return DETECTION
    if any(name.lower().endswith(SUFFIXES) for name in labels):
        return SEGMENTATION
    shown = sorted(folders - {""})[:SHOWN]
    found = f"found {', '.join(f'{name}/' for name in shown)}" if shown else "nothing is there"
    raise RequestError([f"{where}: no data for any task: expected {LAYOUT}; {found}"])


def task_of_folder(root: Path) -> str:
    """Return the task that a folder's data are for. Raises RequestError."""
    if not root.is_dir():
        raise RequestError([f"{root}: there is no such folder with a data set; expected {LAYOUT}"])
    names = []
    for folder in (
        root,
        *(root / split for split in SPLITS),
        *(root / "train" / name for name in ("A", "B", "labels")),
    ):
        prefix = folder.relative_to(root).as_posix()
        for entry in _entries(folder):
            name = entry.name if prefix == "." else f"{prefix}/{entry.name}"
            names.append(f"{name}/" if is_folder(entry) else name)
    return task_of_names(str(root), names)


def check_data(root: Path, task: str, request: TrainRequest, log: Callable[[str], None]) -> NetClasses:
    """Return the classes that the net gets, once both splits are complete. Raises RequestError with all mistakes."""
    problems: list[str] = []
    rows = {split: _listed(root / split, task, problems) for split in SPLITS}
    try:
        classes = classes_of_masks(request, task) if task != DETECTION else classes_of_boxes(request, ())
    except RequestError as error:
        raise RequestError([*error.problems, *problems]) from error
    if task == DETECTION:
        counts = {split: _names_in(rows[split]) for split in SPLITS}
        chosen = {found.name for found in classes.classes}
        problems += [
            _none_chosen(f"{root / split}", names, sorted(chosen))
            for split, names in counts.items()
            if names and not chosen & set(names)
        ]
        classes = classes_of_boxes(request, [name for names in counts.values() for name in names])
        for split, names in counts.items():
            if left_out := {name: count for name, count in names.items() if name not in chosen}:
                log(f"{root / split}: boxes left out, of classes that are not chosen: {_counted(left_out)}")
    if problems:
        raise RequestError(problems)
    return classes


def band_keys(data: Path, task: str, log: Callable[[str], None]) -> dict[str, Any]:
    """Return the config's keys for pictures of bands; {} for ordinary ones. Raises RequestError where pictures differ.

    8 bits of one or three bands are an ordinary picture; of four in a TIFF they are bands where it has a coordinate
    system, else colours and transparency.
    """
    folders = ("A", "B") if task == CHANGE else ("images",)
    paths = [path for split in SPLITS for name in folders for path in iter_images(data / split / name, recursive=False)]
    with ThreadPoolExecutor(THREADS) as pool:
        kinds = [*pool.map(_kind, paths)]
    first = dict[Kind, str]()
    for path, kind in zip(paths, kinds, strict=True):
        if isinstance(kind, tuple):
            first.setdefault(kind, path)
    unread = next(((path, kind) for path, kind in zip(paths, kinds, strict=True) if isinstance(kind, str)), None)
    if unread and not has_rasterio():
        log("note: {}: {}".format(*unread))
    if len(first) > 1:
        (kind, path), *others = first.items()
        same = f"but {path} has {_kind_text(kind)}; all pictures of a data set have the same bands and type"
        raise RequestError([f"{other_path}: it has {_kind_text(other)}, {same}" for other, other_path in others])
    count, of_type = next(iter(first), ORDINARY)
    if (count, of_type) == ORDINARY:
        return {}
    log(f"{data / 'train' / folders[0]}: pictures of {count} bands of {of_type}, each scaled by its own range")
    return {"num_channels": count, "band_range": "measured"}


def _kind(path: str) -> Kind | str:
    """Return a picture's bands and their type; why it cannot be read where it cannot."""
    if not path.lower().endswith((".tif", ".tiff")):
        return ORDINARY
    try:
        (count, of_type), _ = band_kind(path)
    except ImageError as error:
        return str(error)
    is_ordinary = of_type == "uint8" and (count in (1, 3) or (count == 4 and not _has_coordinates(path)))
    return ORDINARY if is_ordinary else (count, of_type)


def _kind_text(kind: Kind) -> str:
    return "colours or grey of 8 bits" if kind == ORDINARY else kind_text(kind)


def _has_coordinates(path: str) -> bool:
    """Return whether a TIFF has a coordinate system."""
    with quiet_decoders(), Image.open(path, formats=("TIFF",)) as image:
        return GEO_KEYS in image.tag_v2  # type: ignore[attr-defined]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return a folder's entries but hidden ones; [] where it is not there. Raises RequestError."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RequestError([f"{folder}: the folder cannot be read: {error.strerror}"]) from error


def _listed(folder: Path, task: str, problems: list[str]) -> list[tuple[str, ...]]:
    """Return a split's samples by their files, or add what is wrong with it to the problems."""
    try:
        if task == DETECTION:
            return [*find_annotated(str(folder))[0]]
        return find_pairs(str(folder), has_pairs=task == CHANGE)[0]
    except ListError as error:
        problems += error.problems[:SHOWN]
        if more := len(error.problems) - SHOWN + error.more:
            problems += [f"... and {more} more in {folder}"] if more > 0 else []
        return []


def _names_in(rows: Sequence[tuple[str, ...]]) -> Counter[str]:
    """Return the names of a split's objects with their counts; what cannot be read is found by the training."""
    with ThreadPoolExecutor(THREADS) as pool:
        annotations = pool.map(lambda row: read_annotation(row[1]).names if row[1] else (), rows)
        return Counter(name for names in annotations for name in names)


def _none_chosen(where: str, names: Counter[str], chosen: Sequence[str]) -> str:
    return f"{where}: no object is of a chosen class: found {_counted(names)}; expected {', '.join(chosen)}"


def _counted(names: Counter[str] | dict[str, int]) -> str:
    most = Counter(names).most_common(SHOWN)
    more = f" and {len(names) - len(most)} more" if len(names) > len(most) else ""
    return ", ".join(f"{name} ({count})" for name, count in most) + more
