"""Writes a training's lists without the images that spoil them, in the format that a training reads."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.formatting import is_utf8
from configs.schema import Config
from data_loader.list_reader import read_list, read_unlabelled
from data_loader.samples import NO_LABEL, ListError, Sample, SampleList
from tools.datasets.make_lists import write_file
from tools.doctor.checks import Study

FILES = ("train.txt", "val.txt", "classes.txt")


class FixError(UserError):
    """Lists that cannot be written; the message is one sentence for the user."""


def check_target(folder: Path) -> None:
    """Raise FixError where the folder has lists already: the config's own may be among them."""
    existing = [name for name in FILES if (folder / name).exists()]
    if existing:
        raise FixError(f"{folder} already has {', '.join(existing)}; choose another folder for --fix")
    if folder.exists() and not folder.is_dir():
        raise FixError(f"{folder}: it is a file; --fix needs a folder")


def find_dropped_rows(study: Study, *, near_duplicates: bool = False) -> dict[int, str]:
    """Return the rows to leave out and why; with `near_duplicates` also training's near-duplicates of validation.

    Of a repeated training image the first stays. Where its labels contradict each other all are dropped, because the
    right one is unknown; an image of both lists is dropped from training.
    """
    dropped = dict.fromkeys(study.images.errors, "cannot be read")
    for group in study.duplicates:
        train, val = study.by_list(group)
        if len(study.labels(group)) > 1:
            dropped |= dict.fromkeys(train, "contradictory labels")
        elif val and study.leaks_matter:
            dropped |= dict.fromkeys(train, "also in validation")
        else:
            dropped |= dict.fromkeys(train[1:], "a copy of one that stays")
        if len(study.labels(val)) > 1:
            dropped |= dict.fromkeys(val, "contradictory labels")
    for group in study.near_duplicates if near_duplicates and study.leaks_matter else []:
        train, val = study.by_list(group)
        if val:
            dropped |= {row: "looks like a validation image" for row in train if row not in dropped}
    for row in range(len(study.train.samples) + len(study.val.samples)):
        if row not in dropped and not _can_be_listed(study.sample(row).path, study.config.file_label_separator):
            dropped[row] = "its name cannot be written in a list"
    return dropped


def find_refused_rows(study: Study, refused: Sequence[str]) -> dict[int, str]:
    """Return the rows of images that a review refused, and why. Raises FixError for one that is in neither list."""
    samples = (*study.train.samples, *study.val.samples)
    rows = defaultdict(list)
    for row, sample in enumerate(samples):
        rows[os.path.normpath(sample.path)].append(row)
    if unknown := [path for path in refused if os.path.normpath(path) not in rows]:
        raise FixError(f"--reviewed: {unknown[0]} and {len(unknown) - 1} more are in neither list of this config")
    return {row: "refused in the review" for path in refused for row in rows[os.path.normpath(path)]}


def write_lists(study: Study, folder: Path, dropped: dict[int, str]) -> dict[str, Any]:
    """Write train.txt, val.txt and classes.txt, verify them, and return the report. Raises FixError, ToolError."""
    config, first_val = study.config, len(study.train.samples)
    kept = {
        "train.txt": [sample for row, sample in enumerate(study.train.samples) if row not in dropped],
        "val.txt": [sample for row, sample in enumerate(study.val.samples, first_val) if row not in dropped],
    }
    if len(kept["train.txt"]) < 2 or not kept["val.txt"]:
        counts = f"{len(kept['train.txt'])} training and {len(kept['val.txt'])} validation images"
        raise FixError(f"--fix would leave {counts}; the lists were not written")
    write_file(folder / "classes.txt", "".join(f"{name}\n" for name in study.train.class_names).encode())
    for name, samples in (("train.txt", study.train), ("val.txt", study.val)):
        lines = [_line(sample, samples.root, config.file_label_separator) for sample in kept[name]]
        write_file(folder / name, "".join(f"{line}\n" for line in lines).encode())
    _verify_lists(study, folder, kept)
    names = study.train.class_names
    present = {sample.label for sample in kept["train.txt"]}
    gone = [name for label, name in enumerate(names) if label not in present and study.train.class_counts()[label]]
    return {
        "dropped": dict(Counter(dropped.values())),
        "training": len(kept["train.txt"]),
        "validation": len(kept["val.txt"]),
        "classes_gone": gone,
        "config": {
            "train_data_file": (folder / "train.txt").as_posix(),
            "val_data_file": (folder / "val.txt").as_posix(),
            "class_names_file": (folder / "classes.txt").as_posix(),
        },
    }


def _line(sample: Sample, root: str, separator: str) -> str:
    prefix = "" if root == "." else root.rstrip("/") + "/"
    inside = sample.path.startswith(prefix)
    path = sample.path[len(prefix) :] if inside else Path(os.path.relpath(sample.path, root)).as_posix()
    return path if sample.label == NO_LABEL else f"{path}{separator}{sample.label}"


def _can_be_listed(path: str, separator: str) -> bool:
    ends_well = path == path.rstrip() or not separator.isspace()
    return ends_well and not {"\n", "\r"} & set(path) and is_utf8(path)


def _verify_lists(study: Study, folder: Path, kept: dict[str, list[Sample]]) -> None:
    """Read the lists as a training will. Raises FixError where they differ from the kept samples."""
    try:
        found = {
            "train.txt": _read(study.config, folder / "train.txt", study.train, study.config.learns_without_labels()),
            "val.txt": _read(study.config, folder / "val.txt", study.val, False),
        }
    except ListError as error:
        raise FixError(f"{folder}: the written lists cannot be read: {error}") from error
    for name, samples in found.items():
        if [_key(sample) for sample in samples] != [_key(sample) for sample in kept[name]]:
            raise FixError(f"{folder / name}: it reads differently than written; a name in it is ambiguous")


def _read(config: Config, file: Path, samples: SampleList, unlabelled: bool) -> Sequence[Sample]:
    names, outside = samples.class_names, config.allow_outside_root
    separator = config.file_label_separator
    if unlabelled:
        return read_unlabelled(file, samples.root, separator, names, allow_outside_root=outside).samples
    return read_list(file, samples.root, separator, len(names), names, allow_outside_root=outside).samples


def _key(sample: Sample) -> tuple[str, int]:
    return os.path.normpath(sample.path), sample.label
