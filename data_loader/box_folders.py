"""Folders of images with annotations of boxes: images/ and labels/ matched by stem, or COCO's one file for all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from data_loader.box_annotations import SUFFIXES
from data_loader.image_files import (
    LeftOut,
    folder_prefix,
    is_file_or_broken_link,
    is_folder,
    iter_images,
    no_images,
)
from data_loader.samples import CLASS_NAMES_FILE, HELD_OUT_NAMES, TRAIN_NAMES, ListError, current_folder, shorten_path

IMAGES, LABELS = "images", "labels"
COCO_FILES = ("_annotations.coco.json", "annotations.json")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")


def coco_file(root: str) -> str:
    """Return the COCO file in a folder, "" where there is none."""
    paths = (folder_prefix(root) + name for name in COCO_FILES)
    return next((path for path in paths if os.path.isfile(path)), "")  # noqa: PTH113


def find_annotated(root: str) -> tuple[list[tuple[str, str]], LeftOut]:
    """Return rows (image, annotation) of a folder, and what was left out.

    Images lie in images/ and annotations in labels/, or both in the folder itself; either all XML or all txt, with the
    image's stem. An image without a txt has no objects, as YOLO has it: its annotation is "". Raises ListError.
    """
    root = Path(root).as_posix()
    images_folder, labels_folder = _folders(root)
    left_out, problems = LeftOut(), list[str]()
    images: dict[str, str] = {}
    for path in _images(images_folder, left_out):
        stem = Path(path).stem
        if stem in images:
            problems.append(f"{path}: {Path(images[stem]).name} has the same stem: which of them counts?")
        images.setdefault(stem, path)
    xml, txt = _annotations(labels_folder, problems)
    if xml and txt:
        both = f"{len(xml)} .xml and {len(txt)} .txt files"
        raise ListError([f"{labels_folder}: it holds {both}: which of them counts? move one kind elsewhere"])
    if images and not (xml or txt):
        raise ListError([_no_annotations(labels_folder)])
    if not images:
        raise ListError([no_images(images_folder, left_out, "no images in it")])
    for suffix in SUFFIXES:
        left_out.counts.pop(suffix, None)  # annotations beside their images
    by_stem = xml or txt
    problems += [
        f"{path}: there is no image {shorten_path(stem)}.* in {images_folder}"
        for stem, path in by_stem.items()
        if stem not in images
    ]
    if xml:
        problems += [
            f"{path}: there is no annotation {shorten_path(stem)}.xml in {labels_folder}"
            for stem, path in images.items()
            if stem not in xml
        ]
    if problems:
        raise ListError(problems)
    return [(path, by_stem.get(stem, "")) for stem, path in images.items()], left_out


def _folders(root: str) -> tuple[str, str]:
    """Return the folders of images and annotations. Raises ListError."""
    if not os.path.isdir(root):  # noqa: PTH112
        raise ListError([f"{root}: folder not found{current_folder(root)}"])
    prefix = folder_prefix(root)
    names = {entry.name for entry in os.scandir(root) if is_folder(entry)}
    if {IMAGES, LABELS} <= names:
        return prefix + IMAGES, prefix + LABELS
    if any(name.lower().endswith(".xml") for name in os.listdir(root)):  # noqa: PTH208  (a Path for each)
        return root, root
    hint = "; or name lists, or COCO's JSON files, in train_data_file and val_data_file"
    if splits := sorted(name for name in names if name.lower() in TRAIN_NAMES | HELD_OUT_NAMES):
        hint = f"; its folder {splits[0]} is a split: name {prefix}{splits[0]} instead"
    missing = " and ".join(f"{name}/" for name in (IMAGES, LABELS) if name not in names)
    expected = f"{IMAGES}/ and {LABELS}/, or {COCO_FILES[0]}"
    raise ListError([f"{root}: expected {expected}, but {missing} is not there{hint}"])


def _images(folder: str, left_out: LeftOut) -> Sequence[str]:
    try:
        return list(iter_images(folder, recursive=False, left_out=left_out))
    except OSError as error:
        raise ListError([f"{error.filename}: the folder cannot be read: {error.strerror}"]) from error


def _annotations(folder: str, problems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the .xml and the .txt files of a folder by their stems, in natural order of no account."""
    found: tuple[dict[str, str], dict[str, str]] = ({}, {})
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122  (a Path for each)
            if entry.name.startswith(".") or entry.name == CLASS_NAMES_FILE or suffix.lower() not in SUFFIXES:
                continue
            if is_file_or_broken_link(entry):
                of_kind, path = found[SUFFIXES.index(suffix.lower())], folder_prefix(folder) + entry.name
                if stem in of_kind:
                    problems.append(f"{path}: {Path(of_kind[stem]).name} has the same stem: which of them counts?")
                of_kind.setdefault(stem, path)
    return found


def _no_annotations(folder: str) -> str:
    """Return the sentence about a folder without annotations, with a guess at what is there."""
    text = f"{folder}: no .xml (VOC) or .txt (YOLO) files in it"
    with os.scandir(folder) as entries:
        if any(entry.name.lower().endswith(MASK_SUFFIXES) for entry in entries) and folder.endswith(LABELS):
            text += "; it holds label images: masks are for a segmentation net"
    return text
