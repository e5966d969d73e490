"""Several files of standard annotations -> one: classes united by name, the same image once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_loader.samples import ListError
from datasets.files import Annotations
from datasets.outcome import Outcome
from datasets.pictures import take_along
from datasets.records import NO_LABEL, PER_OBJECT, Record, find_problems, object_names, value

CONFLICTS = ("refuse", "first", "last", "keep")
LABEL_KEYS = (*PER_OBJECT, "image_label", "image_label_name", "semantic_file")
SAME_PX = 1e-6
SAME = "records of the same image with the same labels, kept once"
UNREADABLE = "predictions that cannot be read, dropped: their class indices would be of other classes"
OTHER = "records of the same image with other labels, of which one is kept"


@dataclass
class Merged:
    """The records of several files, each with the folder that its paths start from, and the united classes."""

    rows: list[tuple[Record, Path]]
    category: list[str]


def merge(files: Sequence[Annotations], conflict: str, outcome: Outcome) -> Merged:
    """Return the records in the order of the files; images are the same where their bytes are, or their missing paths.

    Raises ListError that lists the images with different labels, where `conflict` is "refuse".
    """
    category: list[str] = []
    for found in files:
        category += [name for name in found.category if name not in category]
    indices = {name: index for index, name in enumerate(category)}
    rows: list[tuple[Record, Path]] = []
    places: dict[Any, int] = {}
    problems = []
    for found in files:
        for index, original in enumerate(found.records):
            record = _with_proposals(_relabelled(original, found.category, indices), found.category, indices, outcome)
            place = places.setdefault(_identity(record, found.folder), len(rows))
            if place == len(rows):
                rows.append((record, found.folder))
            elif _are_same(_labels(record, found.folder), _labels(*rows[place])):
                outcome.counts[SAME] += 1
            elif conflict == "keep":
                rows.append((record, found.folder))
            elif conflict == "refuse":
                problems.append(f"{found.path}: record {index} ({found.name(index)}) has other labels than before")
            else:
                outcome.counts[OTHER] += 1
                rows[place] = (record, found.folder) if conflict == "last" else rows[place]
    if problems:
        raise ListError(["the same image has other labels: choose with --conflict first, last or keep", *problems])
    return Merged(rows, category)


def joint_details(files: Sequence[Annotations]) -> dict[str, Any]:
    """Return what meta.json says of the joints: that of the first file which has a skeleton."""
    details: list[dict[str, Any]] = [found.meta["meta"] for found in files]
    first = next((each for each in details if each["skeleton"]), {})
    return {key: first[key] for key in ("skeleton", "joints") if key in first}


def merged_records(merged: Merged, target: Path, outcome: Outcome, *, no_pictures: bool) -> list[Record]:
    """Return the records with their files taken along into the target."""
    if no_pictures:
        return [record for record, _ in merged.rows]
    taken: dict[str, Path] = {}
    return [made for record, folder in merged.rows for made in take_along([record], folder, target, outcome, taken)]


def _relabelled(record: Record, category: Sequence[str], indices: dict[str, int]) -> Record:
    """Return a record with the united classes' indices and names."""
    names = object_names(record, category)
    moved = dict(record)
    if names:
        moved["labels"] = [indices.get(name, NO_LABEL) for name in names]
        moved["label_names"] = names
    label = value(record, "image_label")
    if label != NO_LABEL:
        moved["image_label"], moved["image_label_name"] = indices[category[label]], category[label]
    return moved


def _with_proposals(record: Record, category: Sequence[str], indices: dict[str, int], outcome: Outcome) -> Record:
    """Return a record whose predictions have the united classes' indices, without those that cannot be read."""
    proposals = value(record, "predictions")
    if not proposals or all(indices[name] == label for label, name in enumerate(category)):
        return record
    if next(find_problems(proposals, category), ""):
        outcome.counts[UNREADABLE] += 1
        return {key: item for key, item in record.items() if key != "predictions"}
    return {**record, "predictions": _relabelled(proposals, category, indices)}


def _are_same(first: Any, second: Any) -> bool:
    """Return whether labels are equal, coordinates within 1e-6 px: per cent and back changes the last digits."""
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_are_same, first, second))
    if isinstance(first, float) or isinstance(second, float):
        return bool(abs(first - second) <= SAME_PX)
    return bool(first == second)


def _identity(record: Record, folder: Path) -> tuple[str, str]:
    path = value(record, "image_file")
    file = folder / path
    if path and file.is_file():
        return "sha256", hashlib.sha256(file.read_bytes()).hexdigest()
    return "path", path or value(record, "image_url")


def _labels(record: Record, folder: Path) -> list[Any]:
    mask = value(record, "semantic_file")
    file = folder / mask
    content = hashlib.sha256(file.read_bytes()).hexdigest() if mask and file.is_file() else mask
    return [*(value(record, key) for key in LABEL_KEYS[:-1]), content]
