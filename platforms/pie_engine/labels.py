"""The classes of traincfg.json: `label`, read as data and never run, and the names that `class_name` chooses."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.formatting import did_you_mean, short_json
from data_loader.mask_classes import LARGEST_VALUE, Color, MaskClass

BACKGROUND = "background"
CHINESE_COMMA = "\N{FULLWIDTH COMMA}"
EXAMPLE = '{"class_name": "airplane", "class_value": 1, "class_title": "飞机", "class_color": "255,0,0"}'
MOST_LETTERS, MOST_NESTED = 1_000_000, 20
_COLOR = re.compile(r"\s*(?:rgb\(\s*)?(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*\)?\s*", re.ASCII)
DATA = "label is data, and was not run"


@dataclass(frozen=True)
class LabelEntry:
    """A class of `label`."""

    name: str
    value: int
    color: Color
    title: str

    def as_class(self, value: int | None = None) -> MaskClass:
        """Return the class as lists and checkpoints have it, with its own value or another."""
        return MaskClass(self.name, self.value if value is None else value, self.color, self.title)


DEFAULT_BACKGROUND = LabelEntry(BACKGROUND, 0, (0, 0, 0), "背景")


def chosen_names(value: Any, entries: Sequence[LabelEntry]) -> tuple[str, ...]:
    """Return the names of `class_name`; () where it is no text, or has none.

    A Chinese comma is one, too, unless the name of an entry holds it.
    """
    if not isinstance(value, str):
        return ()
    if not any(CHINESE_COMMA in entry.name for entry in entries):
        value = value.replace(CHINESE_COMMA, ",")
    return tuple(filter(None, (part.strip() for part in value.split(","))))


def read_label(value: Any) -> tuple[tuple[LabelEntry, ...], list[str]]:
    """Return the entries of `label`, a list or a text of one, and a sentence for each mistake."""
    rows, problem = _rows(value) if isinstance(value, str) else (value, "")
    if problem:
        return (), [problem]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        wrong = rows
        if isinstance(rows, list) and rows:
            place = next(index for index, row in enumerate(rows) if not isinstance(row, dict))
            wrong = f"entry {place + 1}: {short_json(rows[place])}"
        return (), [f"{DATA}; it must be a list of objects such as {EXAMPLE}, got {short_json(wrong)}"]
    problems: list[str] = []
    entries = [_entry(row, number, problems) for number, row in enumerate(rows, 1)]
    return tuple(entry for entry in entries if entry is not None), problems


def name_problems(names: Sequence[str], entries: Sequence[LabelEntry]) -> list[str]:
    """Return a sentence for each mistake of the chosen names beside the entries, and of two entries that are alike.

    Equal values are no mistake where a value is not in the data: see `value_problems`.
    """
    known = [entry.name for entry in entries]
    missing = [name for name in names if name not in known and name != BACKGROUND]
    problems = _alike(entries, "name") + _alike(entries, "color")
    if missing:
        hint = did_you_mean(missing[0], [name for name in known if name not in names], ignore_case=True)
        lists = f"class_name has {', '.join(names)}, label has {', '.join(known)}"
        problems.append(f"class_name names classes without an entry in label: {', '.join(missing)}; {lists}{hint}")
    problems += [f'class_name has "{name}" twice' for name in dict.fromkeys(names) if names.count(name) > 1]
    return problems


def value_problems(entries: Sequence[LabelEntry]) -> list[str]:
    """Return a sentence for each two entries of the same value, which label images cannot tell apart."""
    return _alike(entries, "value")


def _alike(entries: Sequence[LabelEntry], what: str) -> list[str]:
    problems, first = [], dict[Any, LabelEntry]()
    for entry in entries:
        key = getattr(entry, what)
        other = first.setdefault(key, entry)
        if other is not entry:
            shown = ",".join(map(str, key)) if isinstance(key, tuple) else key
            problems.append(f'label: "{other.name}" and "{entry.name}" have the same class_{what} {shown}')
    return problems


def _rows(text: str) -> tuple[Any, str]:
    """Return what a text of JSON, or of Python literals, says, and a sentence where it says nothing."""
    depth = deepest = 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        deepest = max(deepest, depth)
    if len(text) > MOST_LETTERS or deepest > MOST_NESTED:
        return None, f"{DATA}; it is longer or nested more deeply than a list of classes: {short_json(text)}"
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        rows = json.loads(text, object_pairs_hook=unique)
        return rows, f'{DATA}; key "{twice[0]}" is given twice: {short_json(text)}' if twice else ""
    except (ValueError, RecursionError) as error:
        reason = error
    try:
        return ast.literal_eval(text.strip()), ""
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None, f"{DATA}; {_first_code(text) or _json_place(reason)}: {short_json(text)}"


def _first_code(text: str) -> str:
    """Return where the first thing stands that is no literal; "" where the text is no Python at all."""
    data = (
        *(ast.Expression, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.Constant),
        *(ast.UnaryOp, ast.USub, ast.UAdd, ast.Load),
    )
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return ""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.expr))
    found = next((node for node in nodes if not isinstance(node, data)), None)
    if found is None:
        return ""
    code = short_json(ast.get_source_segment(text.strip(), found) or "")
    return f"line {found.lineno}, column {found.col_offset + 1} holds code, {code}"


def _json_place(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: not a list of objects: {error.msg}"
    return f"line 1, column 1: not a list of objects: {error}"


def _entry(row: dict[Any, Any], number: int, problems: list[str]) -> LabelEntry | None:
    """Return one entry, or add what is wrong with it to the problems."""
    name = row.get("class_name")
    if not isinstance(name, str) or not name.strip():
        problems.append(f"label: entry {number} has no class_name: {short_json(row)}")
        return None
    where = f'label: entry {number} ("{name.strip()}")'
    value, color = _value(row.get("class_value")), _color(row.get("class_color"))
    if value is None:
        got = short_json(row.get("class_value"))
        problems.append(f"{where}: class_value must be a whole number 0..{LARGEST_VALUE}, got {got}")
    if color is None:
        got = short_json(row.get("class_color"))
        problems.append(f'{where}: class_color must be "R,G,B", each 0..255, got {got}')
    if value is None or color is None:
        return None
    title = row.get("class_title")
    return LabelEntry(name.strip(), value, color, (title.strip() if isinstance(title, str) else "") or name.strip())


def _value(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        value = int(value)
    return value if type(value) is int and 0 <= value <= LARGEST_VALUE else None


def _color(value: Any) -> Color | None:
    found = _COLOR.fullmatch(value) if isinstance(value, str) else None
    numbers = [int(number) for number in found.groups()] if found else []
    if len(numbers) != 3 or not all(0 <= number <= 255 for number in numbers):
        return None
    return numbers[0], numbers[1], numbers[2]
