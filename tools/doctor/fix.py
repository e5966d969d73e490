"""Writes a training's lists without what spoils them, in the format that a training reads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from configs.schema import Config
from data_loader.samples import NO_LABEL, ListError, Sample, SampleList, read_list, read_unlabelled
from tools.datasets.make_lists import write_file
from tools.doctor.checks import Study

FILES = ("train.txt", "val.txt", "classes.txt")


class FixError(UserError):
    """Lists that cannot be written; the message says why."""


def check_target(folder: Path) -> None:
    """Raise FixError where lists stand already: the config's own may be among them."""
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise FixError(f"{folder} already has {', '.join(there)}; choose another folder for --fix")
    if folder.exists() and not folder.is_dir():
        raise FixError(f"{folder}: it is a file; --fix wants a folder")


def dropped_rows(study: Study, *, look_alikes: bool = False) -> dict[int, str]:
    """Give the rows to leave out and why; with `look_alikes` training images that look like a validation one too.

    Of a training image that stands there several times the first stays. Where its labels contradict each other all
    go, as nobody knows which is right; where validation has it, training gives it up.
    """
    dropped = dict.fromkeys(study.images.errors, "cannot be read")
    for group in study.same:
        train, val = study.parted(group)
        if len(study.labels(group)) > 1:
            dropped |= dict.fromkeys(train, "contradictory labels")
        elif val and study.leaks_matter:
            dropped |= dict.fromkeys(train, "also in validation")
        else:
            dropped |= dict.fromkeys(train[1:], "a copy of one that stays")
        if len(study.labels(val)) > 1:
            dropped |= dict.fromkeys(val, "contradictory labels")
    for group in study.alike if look_alikes and study.leaks_matter else []:
        train, val = study.parted(group)
        if val:
            dropped |= {row: "looks like a validation image" for row in train if row not in dropped}
    for row in range(len(study.train.samples) + len(study.val.samples)):
        if row not in dropped and not _can_be_listed(study.sample(row).path, study.config.file_label_separator):
            dropped[row] = "its name cannot stand in a list"
    return dropped


def write_lists(study: Study, folder: Path, dropped: dict[int, str]) -> dict[str, Any]:
    """Write train.txt, val.txt and classes.txt, read them back, and tell what is left. Raises FixError, ToolError."""
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
    _read_back(study, folder, kept)
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
    return ends_well and not {"\n", "\r"} & set(path) and _is_utf8(path)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_back(study: Study, folder: Path, kept: dict[str, list[Sample]]) -> None:
    """Read the lists as a training will. Raises FixError where they say something else than was meant."""
    try:
        found = {
            "train.txt": _read(study.config, folder / "train.txt", study.train, study.config.learns_without_labels()),
            "val.txt": _read(study.config, folder / "val.txt", study.val, False),
        }
    except ListError as error:
        raise FixError(f"{folder}: the lists do not read as they should: {error}") from error
    for name, samples in found.items():
        if [_key(sample) for sample in samples] != [_key(sample) for sample in kept[name]]:
            raise FixError(f"{folder / name}: does not read as it was written; a name in it is ambiguous")


def _read(config: Config, file: Path, samples: SampleList, unlabelled: bool) -> Sequence[Sample]:
    names, outside = samples.class_names, config.allow_outside_root
    separator = config.file_label_separator
    if unlabelled:
        return read_unlabelled(file, samples.root, separator, names, allow_outside_root=outside).samples
    return read_list(file, samples.root, separator, len(names), names, allow_outside_root=outside).samples


def _key(sample: Sample) -> tuple[str, int]:
    return os.path.normpath(sample.path), sample.label
