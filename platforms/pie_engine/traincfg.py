"""traincfg.json: what the platform asks for, read with all its mistakes at once (docs/pie-engine.md)."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from common.formatting import is_utf8, nearest_names, short_json
from platforms.pie_engine.errors import RequestError
from platforms.pie_engine.labels import LabelEntry, chosen_names, name_problems, read_label

FILE = "traincfg.json"
NEEDED = (
    *("training_id", "dataset_id", "class_name", "label", "n_class", "load_size", "model_name"),
    *("learning_rate", "epochs", "batch_size"),
)
OPTIONAL = ("dataset_path", "auto_termination", "gpu_num", "resume_path")
MOST, MOST_NESTED, SHOWN = 1_000_000, 50, 20
SIZE_STEP, LARGEST_SIDE_PX = 32, 8192
MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")

Values = dict[str, Any]


@dataclass(frozen=True)
class TrainRequest:
    """What traincfg.json asks for. `entries` are all of `label`, `chosen` the names of `class_name`.

    `notes` are lines for the user: what was ignored, rounded or taken for something else.
    """

    training_id: str
    dataset_id: str
    dataset_path: str
    entries: tuple[LabelEntry, ...]
    chosen: tuple[str, ...]
    width: int
    height: int
    model_name: str
    learning_rate: float
    epochs: int
    batch_size: int
    auto_termination: bool
    gpu_num: int
    resume_path: str
    notes: tuple[str, ...] = field(default=(), compare=False)

    def patience(self) -> int:
        """Return the epochs without gain after which the training stops; 0: it never does."""
        return max(10, math.ceil(self.epochs / 10)) if self.auto_termination else 0


def read_values(file: Path, stdin: TextIO | None = None) -> Values:
    """Return the object of a file, or where it is not there of standard input that is no terminal.

    Raises RequestError with file, line and column.
    """
    stdin = stdin or sys.stdin
    try:
        name, text = str(file), file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        name, text = "standard input", "" if stdin is None or stdin.isatty() else _read_object(stdin)
        if not text.strip():
            hint = "put it into this folder, name another with --traincfg, or write it to the standard input"
            raise RequestError([f"{file}: there is no such file (current folder: {Path.cwd()}); {hint}"]) from None
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise RequestError([f"{file}:{line}: it is no UTF-8 text"]) from error
    except OSError as error:
        raise RequestError([f"{file}: it cannot be read: {error.strerror}"]) from error
    return parse_values(text, name)


def parse_values(text: str, name: str) -> Values:
    """Return the JSON object of a text. Raises RequestError with `name`, line and column."""
    problems: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> Values:
        for key in sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1):
            problems.append(f'{_place(text, key, name)}: key "{key}" is given twice')
        return dict(pairs)

    try:
        values = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise RequestError([f"{name}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}"]) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deeply
        raise RequestError([f"{name}:1:1: not valid JSON: {error}"]) from error
    if not isinstance(values, dict):
        raise RequestError([f'{name}:1:1: expected an object {{"training_id": ..., ...}}, got {short_json(values)}'])
    if is_nested_deeply(values):
        raise RequestError([f"{name}: nested more than {MOST_NESTED} levels deep"])
    if not is_utf8(json.dumps(values, ensure_ascii=False)):
        problems.append(rf"{name}: a text in it holds half of a character pair (such as \ud800)")
    if problems:
        raise RequestError(problems)
    return values


def is_nested_deeply(value: Any) -> bool:
    """Return whether lists and objects are nested in more than MOST_NESTED levels, which `json` may not write."""
    level = [value]
    for _ in range(MOST_NESTED):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    return any(isinstance(each, dict | list) for each in level)


def read_request(values: Values) -> TrainRequest:
    """Return what an object asks for. Raises RequestError with every mistake."""
    reader = _Reader(values)
    reader.check_keys()
    text = reader.text
    entries, problems = read_label(values["label"]) if "label" in values else ((), [])
    reader.problems += problems
    names = chosen_names(values.get("class_name"), entries)
    if "class_name" in values and not names:
        form = '"background,building": names with commas between them'
        reader.problems.append(f"class_name must be {form}, got {short_json(values['class_name'])}")
    width, height = reader.size()
    request = TrainRequest(
        training_id=text("training_id"),
        dataset_id=text("dataset_id", allows_null=True),
        dataset_path=text("dataset_path"),
        entries=entries,
        chosen=names,
        width=width,
        height=height,
        model_name=reader.model_name(),
        learning_rate=reader.number("learning_rate", 0.0),
        epochs=reader.whole("epochs", 1, 1),
        batch_size=reader.whole("batch_size", 1, 1),
        auto_termination=reader.switch("auto_termination"),
        gpu_num=reader.whole("gpu_num", 0, 1),
        resume_path=text("resume_path", allows_null=True).strip(),
    )
    if names and entries and not problems:
        reader.problems += name_problems(names, entries)
    if names:
        reader.check_count(names)
    if reader.problems:
        raise RequestError([*reader.problems, *filter(None, [reader.ignored])])
    return TrainRequest(**{**vars(request), "notes": tuple(reader.notes)})


class _Reader:
    """Reads the keys of an object, and gathers what is wrong with them; a wrong value is replaced by a harmless one."""

    def __init__(self, values: Values) -> None:
        self.values, self.problems, self.notes = values, list[str](), list[str]()
        self.ignored = ""

    def check_keys(self) -> None:
        """Find missing keys, with the key that was meant, and name those that are ignored."""
        unknown = [key for key in self.values if key not in (*NEEDED, *OPTIONAL)]
        meant: set[str] = set()
        for key in NEEDED:
            if key not in self.values:
                near = nearest_names(key, [name for name in unknown if name not in meant], ignore_case=True)
                meant |= set(near)
                hint = f'; "{near[0]}" is there: did you mean "{key}"?' if near else ""
                self.problems.append(f'key "{key}" is missing{hint}')
        if ignored := [key for key in unknown if key not in meant]:
            more = f" and {len(ignored) - SHOWN} more" if len(ignored) > SHOWN else ""
            self.ignored = f"keys that are ignored: {', '.join(map(_with_near, ignored[:SHOWN]))}{more}"
            self.notes.append(self.ignored)

    def text(self, key: str, *, allows_null: bool = False) -> str:
        """Return a text, which may be a number in the file."""
        value = self.values.get(key, "")
        if value is None and allows_null:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.problems.append(f"{key} must be a text, got {short_json(value)}")
            return ""
        return str(value)

    def number(self, key: str, above: float) -> float:
        """Return a number above a limit."""
        if key not in self.values:
            return 1.0
        value = _number(self.values[key])
        if value is None or value <= above:
            got = short_json(self.values[key])
            self.problems.append(f"{key} must be a number above {above:g}, or a text of one, got {got}")
            return 1.0
        return value

    def whole(self, key: str, low: int, default: int) -> int:
        """Return a whole number from `low` to MOST."""
        if key not in self.values:
            return default
        value = _whole(self.values[key])
        if value is None or not low <= value <= MOST:
            got = short_json(self.values[key])
            form = f"a whole number from {low} to {MOST}, or a text of one"
            self.problems.append(f"{key} must be {form}, got {got}")
            return default
        return value

    def switch(self, key: str) -> bool:
        """Return 0 or 1, false or true."""
        value = self.values.get(key, 0)
        found = value if isinstance(value, bool) else _whole(value)
        if found not in (0, 1):
            self.problems.append(f"{key} must be 0 or 1, got {short_json(value)}")
        return bool(found)

    def size(self) -> tuple[int, int]:
        """Return width and height in pixels, multiples of SIZE_STEP."""
        if "load_size" not in self.values:
            return SIZE_STEP, SIZE_STEP
        value = self.values["load_size"]
        parts = value.split(",") if isinstance(value, str) else [value]
        sides = [_whole(part) for part in parts]
        if len(sides) not in (1, 2) or not all(side is not None and 0 < side <= MOST for side in sides):
            form = 'must be "W,H" in pixels, such as "608,608", or one number for a square'
            self.problems.append(f"load_size {form}, got {short_json(value)}")
            return SIZE_STEP, SIZE_STEP
        given = [side for side in sides if side is not None]
        rounded = [min(max(round(side / SIZE_STEP) * SIZE_STEP, SIZE_STEP), LARGEST_SIDE_PX) for side in given]
        if rounded != given:
            shown = ["x".join(map(str, pair)) for pair in (given, rounded)]
            self.notes.append(f"load_size {shown[0]} becomes {shown[1]}: multiples of {SIZE_STEP} px")
        return rounded[0], rounded[-1]

    def model_name(self) -> str:
        """Return the name of the net, which is that of the weights file, too."""
        value = self.values.get("model_name", "x")
        if not isinstance(value, str) or not MODEL_NAME.fullmatch(value):
            form = "a name of letters, digits, - _ and ., 100 at most, without a dot at its start"
            self.problems.append(f"model_name must be {form}, got {short_json(value)}")
            return ""
        return value

    def check_count(self, names: Sequence[str]) -> None:
        """Compare n_class with the number of chosen classes."""
        if "n_class" not in self.values:
            return
        got, count = _whole(self.values["n_class"]), sum(name != "background" for name in names)
        if got == count:
            return
        if got == count + 1:
            self.notes.append(f"warning: n_class is {got}, which counts the background too; there are {count} classes")
            return
        given = short_json(self.values["n_class"])
        counts = f"class_name has {count} classes without background, {count + 1} with it"
        self.problems.append(f"n_class must be the number of classes without background: {counts}, got {given}")


def _with_near(key: str) -> str:
    """Return an unknown key, with the nearest known one in brackets."""
    near = nearest_names(key, (*NEEDED, *OPTIONAL), ignore_case=True)
    return f"{key} (did you mean {near[0]}?)" if near else key


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value.strip()) if len(value) < 100 else None
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _whole(value: Any) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        return int(text.partition(".")[0]) if WHOLE.fullmatch(text) else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _place(text: str, key: str, name: str) -> str:
    """Return file, line and column of the second place of a key."""
    found = [match.start() for match in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text)]
    start = found[1] if len(found) > 1 else 0
    return f"{name}:{text.count(chr(10), 0, start) + 1}:{start - text.rfind(chr(10), 0, start)}"


def _read_object(stdin: TextIO) -> str:
    """Return the lines of one JSON object, or all there are."""
    text = ""
    for line in stdin:
        text += line
        if line.rstrip().endswith("}") and _is_json(text):
            break
    return text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
