"""Numbers, sizes, errors and hints as text."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of cells that spreadsheets compute (OWASP, "CSV Injection")
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # of JSON, unless its other half follows
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|nan)")


def size_text(num_bytes: float) -> str:
    """Return a size in MB or GB, such as "1.5 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def counted(count: int, noun: str = "image") -> str:
    """Return a number with its noun: 1 image, 2,000 images."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, or its class's name where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8: a file's name may hold bytes that are not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str) -> Any:
    """Return a JSON text's content. Raises ValueError, also where it cannot be written again; RecursionError."""
    content = json.loads(text)
    if HALF_CHARACTER.search(text) and not is_utf8(json.dumps(content, ensure_ascii=False)):
        raise ValueError(r"a text has half a character, such as \ud800 alone, which UTF-8 does not have")
    return content


def did_you_mean(name: str, known: Iterable[str], *, ignore_case: bool = False, count: int = 1) -> str:
    """Return '; did you mean "x"?' for the nearest known names, at most `count`, or "" where none is near."""
    near = ", ".join(f'"{each}"' for each in nearest_names(name, known, ignore_case=ignore_case, count=count))
    return f"; did you mean {near}?" if near else ""


def nearest_names(name: str, known: Iterable[str], *, ignore_case: bool = False, count: int = 1) -> list[str]:
    """Return at most `count` known names that are spelt alike, the nearest first; of equals the first."""
    names: dict[str, str] = {}
    for each in known:
        names.setdefault(each.lower() if ignore_case else each, each)
    return [names[near] for near in difflib.get_close_matches(name.lower() if ignore_case else name, names, n=count)]


def short_json(value: object) -> str:
    """Return a value as JSON, cut to 60 characters; text for what JSON does not know."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def csv_cell(value: Any) -> Any:
    """Return a cell with an apostrophe before a text that a spreadsheet would compute; numbers stay as they are."""
    is_formula = isinstance(value, str) and value.startswith(FORMULA_STARTS) and not NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value
