"""The classes of label images: name, value and colour in the files, title; and classes.json, which names them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.formatting import short_json
from data_loader.image_files import StrPath
from data_loader.samples import ListError, read_utf8

VOID = 255  # the class index of pixels that neither loss nor metrics count
MOST_CLASSES = 255  # indices 0..254, and VOID
MASK_CLASSES_FILE = "classes.json"
LARGEST_VALUE = 65_535
READ_AS = "read_as"
EXAMPLE = '{"name": "road", "value": 3, "color": "110,193,228", "title": "Road"}'
_COLOR = re.compile(r"\s*(?:rgb\()?\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)?\s*")
_HEX = re.compile(r"\s*#([0-9a-fA-F]{6})\s*")

Color = tuple[int, int, int]


@dataclass(frozen=True)
class MaskClass:
    """A class of label images. `value` is its pixel in a label image of one channel, `color` in one of colours."""

    name: str
    value: int
    color: Color
    title: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"name": self.name, "value": self.value, "color": list(self.color), "title": self.title}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MaskClass:
        """Return what `to_dict` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        made = cls(values["name"], values["value"], tuple(values["color"]), values["title"])
        numbers = (made.value, *made.color)
        is_text = isinstance(made.name, str) and isinstance(made.title, str)
        if not is_text or len(made.color) != 3 or any(type(number) is not int for number in numbers):
            raise ValueError(f"a class cannot be {values}")
        if not 0 <= made.value <= LARGEST_VALUE or not all(0 <= number <= 255 for number in made.color):
            raise ValueError(f"a class cannot be {values}")
        return made


@dataclass(frozen=True)
class OtherClass:
    """A class of the data that a net does not have: what is of it is of the net's class `index`, or VOID: ignored."""

    found: MaskClass
    index: int


def default_color(index: int) -> Color:
    """Return the colour of a class that has none: PASCAL VOC's colour map, whose first is black."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return color[0], color[1], color[2]


def default_classes(names: Sequence[str]) -> tuple[MaskClass, ...]:
    """Return classes whose values are 0, 1, 2, ... in the order of their names; two are black and white, too."""
    colors = [default_color(index) for index in range(len(names))]
    if len(names) == 2:
        colors = [(0, 0, 0), (255, 255, 255)]  # so that masks of 0 and 255 are read
    return tuple(MaskClass(name, index, colors[index], name) for index, name in enumerate(names))


def read_mask_classes(file: StrPath) -> tuple[MaskClass, ...]:
    """Return the classes of a classes.json, in the order of their indices. Raises ListError with every problem.

    The file holds a list of objects: `name`; `value`, 0..65535 (left out: the place in the list); `color`, "R,G,B",
    [R, G, B] or "#RRGGBB" (left out: one of our own); `title` (left out: the name). "colour" and the prefix "class_",
    as in "class_name", are understood too; other keys are ignored. Entries with "read_as" are none of these classes:
    `read_other_classes` returns them.
    """
    return _read_file(file)[0]


def read_other_classes(file: StrPath) -> tuple[OtherClass, ...]:
    """Return the entries of a classes.json with "read_as": the name of the class that stands for them, or null.

    Raises ListError with every problem.
    """
    return _read_file(file)[1]


def others_beside(folder: Path, classes: Sequence[MaskClass]) -> tuple[OtherClass, ...]:
    """Return what `read_other_classes` does of the classes.json in a folder or the one above, where it has `classes`.

    () for any other file: a net's classes are its own, and only what stands for them is read.
    """
    places = (folder.absolute(), folder.absolute().parent)
    file = next((found for place in places if (found := place / MASK_CLASSES_FILE).is_file()), None)
    try:
        own, others = _read_file(file) if file is not None else ((), ())
    except ListError:
        return ()
    return others if own == tuple(classes) else ()


def _read_file(file: StrPath) -> tuple[tuple[MaskClass, ...], tuple[OtherClass, ...]]:
    try:
        entries = json.loads(read_utf8(str(file)))
    except json.JSONDecodeError as error:
        raise ListError([f"{file}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}"]) from error
    except (ValueError, RecursionError) as error:
        raise ListError([f"{file}: not valid JSON: {error}"]) from error
    if not isinstance(entries, list) or not entries:
        raise ListError([f"{file}: expected a list of classes such as [{EXAMPLE}], got {short_json(entries)}"])
    if len(entries) > MOST_CLASSES:
        raise ListError([f"{file}: {len(entries)} classes; label images can have {MOST_CLASSES} at most"])
    problems: list[str] = []
    read = [_read_class(entry, index, problems) for index, entry in enumerate(entries)]
    if not problems:
        problems += _repeats([found for found in read if found is not None])
    classes, others = list[MaskClass](), list[tuple[MaskClass, Any]]()
    for entry, found in zip(entries, read, strict=True):
        if found is not None and READ_AS in entry:
            others.append((found, entry[READ_AS]))
        elif found is not None:
            classes.append(found)
    places: dict[Any, int] = {None: VOID, **{found.name: index for index, found in enumerate(classes)}}
    problems += [
        f'class "{found.name}": {READ_AS} must be null or the name of a class, got {short_json(name)}'
        for found, name in others
        if not isinstance(name, str | None) or name not in places
    ]
    if problems:
        raise ListError([f"{file}: {problem}" for problem in problems])
    return tuple(classes), tuple(OtherClass(found, places[name]) for found, name in others)


def _read_class(entry: Any, index: int, problems: list[str]) -> MaskClass | None:
    """Return one class, or add what is wrong with it to the problems."""
    if not isinstance(entry, dict):
        problems.append(f"class {index} must be an object such as {EXAMPLE}, got {short_json(entry)}")
        return None
    values = {str(key).removeprefix("class_"): value for key, value in entry.items()}
    name = values.get("name")
    if not isinstance(name, str) or not name.strip():
        problems.append(f'class {index} has no "name": {short_json(entry)}')
        return None
    value, color = _number(values.get("value", index)), _color(values.get("color", values.get("colour")), index)
    if value is None:
        got = short_json(values["value"])
        problems.append(f'class "{name}": value must be a whole number 0..{LARGEST_VALUE}, got {got}')
    if color is None:
        got = short_json(values.get("color", values.get("colour")))
        problems.append(f'class "{name}": color must be "R,G,B", each 0..255, got {got}')
    if value is None or color is None:
        return None
    return MaskClass(name.strip(), value, color, str(values.get("title") or name).strip())


def _number(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    return value if type(value) is int and 0 <= value <= LARGEST_VALUE else None


def _color(value: Any, index: int) -> Color | None:
    if value is None:
        return default_color(index)
    if isinstance(value, str):
        if found := _HEX.fullmatch(value):
            value = list(bytes.fromhex(found[1]))
        elif found := _COLOR.fullmatch(value):
            value = [int(number) for number in found.groups()]
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(type(number) is int and 0 <= number <= 255 for number in value):
        return None
    return value[0], value[1], value[2]


def _repeats(classes: Sequence[MaskClass]) -> Iterator[str]:
    """Yield a sentence for each two classes of the same name, value or colour."""
    for what in ("name", "value", "color"):
        first: dict[Any, str] = {}
        for found in classes:
            key = getattr(found, what)
            if key in first:
                shown = ",".join(map(str, key)) if isinstance(key, tuple) else key
                yield f'classes "{first[key]}" and "{found.name}" have the same {what} {shown}'
            first.setdefault(key, found.name)
