"""The classes of the net that a request asks for, and what becomes of the others that its data have."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data_loader.mask_classes import READ_AS, MaskClass
from platforms.pie_engine.errors import RequestError
from platforms.pie_engine.labels import BACKGROUND, DEFAULT_BACKGROUND, LabelEntry, value_problems
from platforms.pie_engine.nets import CHANGE
from platforms.pie_engine.traincfg import TrainRequest


@dataclass(frozen=True)
class NetClasses:
    """The classes in the order of their indices, and those of the data that are read as one of them, or left out."""

    classes: tuple[MaskClass, ...]
    others: tuple[tuple[MaskClass, str | None], ...] = ()

    def json_text(self) -> str:
        """Return the classes.json that the training reads."""
        rows: list[dict[str, Any]] = [found.to_dict() for found in self.classes]
        rows += [{**found.to_dict(), READ_AS: name} for found, name in self.others]
        return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def classes_of_masks(request: TrainRequest, task: str) -> NetClasses:
    """Return the classes of segmentation or change detection, whose first is then "background".

    A class that was not chosen is background where there is one, else it is ignored. Raises RequestError.
    """
    entries, chosen = list(request.entries), set(request.chosen)
    if task == CHANGE:
        chosen.add(BACKGROUND)
    if BACKGROUND in chosen and BACKGROUND not in {entry.name for entry in entries}:
        entries.insert(0, DEFAULT_BACKGROUND)
    kept = [entry for entry in entries if entry.name in chosen]
    if task == CHANGE:  # the net's first class is "unchanged"
        kept.sort(key=lambda entry: entry.name != BACKGROUND)
    problems = value_problems(entries)
    black = [entry.name for entry in entries if entry.color == DEFAULT_BACKGROUND.color and entry.name != BACKGROUND]
    if black and DEFAULT_BACKGROUND in entries:
        problems.append(f'label: "{black[0]}" has the colour 0,0,0 of the background; give background an entry')
    if len(kept) < 2:
        problems.append(
            f"one class alone ({kept[0].name}) leaves nothing to learn; add background to class_name"
            if kept
            else "class_name has no class with an entry in label"
        )
    if problems:
        raise RequestError(problems)
    read_as = BACKGROUND if BACKGROUND in chosen else None
    others = tuple((entry.as_class(), read_as) for entry in entries if entry.name not in chosen)
    return NetClasses(tuple(entry.as_class() for entry in kept), others)


def classes_of_boxes(request: TrainRequest, found_names: Iterable[str]) -> NetClasses:
    """Return the classes of detection, without background; boxes of the other names in the data are left out.

    Raises RequestError where no class is left.
    """
    kept = [entry for entry in request.entries if entry.name in request.chosen and entry.name != BACKGROUND]
    if not kept:
        raise RequestError(["class_name has no class but background, and detection needs one"])
    are_different = not value_problems(kept)  # values are not in the data: equal ones do no harm
    classes = tuple(entry.as_class(None if are_different else number) for number, entry in enumerate(kept, 1))
    names = {found.name for found in classes}
    others = [name for name in dict.fromkeys(found_names) if name not in names]
    return NetClasses(classes, tuple((found, None) for found in _unused(others, classes)))


def _unused(names: Sequence[str], classes: Sequence[MaskClass]) -> list[MaskClass]:
    """Return classes of other names, with values and colours that none of the classes has."""
    values, colors = {found.value for found in classes}, {found.color for found in classes}
    numbers = (number for number in itertools.count() if number not in values)
    free = (number for number in itertools.count() if (number >> 16, number >> 8 & 255, number & 255) not in colors)
    return [
        MaskClass(name, value, (number >> 16, number >> 8 & 255, number & 255), name)
        for name, value, number in zip(names, numbers, free, strict=False)
    ]


def unlabelled(entries: Sequence[LabelEntry], names: Iterable[str]) -> list[str]:
    """Return the names that `label` does not have."""
    known = {entry.name for entry in entries}
    return [name for name in names if name not in known]
