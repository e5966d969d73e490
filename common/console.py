"""Text for a terminal: columns, escapes, shortening."""

from __future__ import annotations

import unicodedata

DOTS = "..."


def text_columns(text: str) -> int:
    """Return the terminal columns of a text: two for a wide (Chinese) character, none for a combining mark."""
    return sum(_columns(character) for character in text)


def elide(text: str, columns: int) -> str:
    """Return a text without its middle where it is wider than `columns`; the end, with a file's name, keeps more."""
    if text_columns(text) <= columns:
        return text
    room = columns - len(DOTS)
    front = _fitting(text, room // 3)
    back = _fitting(text[::-1], room - text_columns(front))[::-1]
    return front + DOTS + back


def printable(text: str) -> str:
    """Return a text with control characters, and bytes that are not UTF-8, as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, each as `printable` returns it."""
    return "\n".join(map(printable, text.split("\n")))


def _fitting(text: str, columns: int) -> str:
    """Return the longest beginning of a text that fits."""
    for length, character in enumerate(text):
        columns -= _columns(character)
        if columns < 0:
            return text[:length]
    return text


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
