"""Numbers, sizes, errors and hints as text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def size_text(num_bytes: float) -> str:
    """Return a size in MB or GB, such as "1.5 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, known: Iterable[str], *, ignore_case: bool = False) -> str:
    """Return '; did you mean "x"?' for the known name that is nearest, or "" where none is near."""
    names = {each.lower() if ignore_case else each: each for each in known}
    near = difflib.get_close_matches(name.lower() if ignore_case else name, names, n=1)
    return f'; did you mean "{names[near[0]]}"?' if near else ""
