"""Class names with indices, as `--tags hand:0,foot:1` gives them."""

from __future__ import annotations

from collections.abc import Sequence

from common.formatting import did_you_mean
from datasets.errors import DatasetError

FORM = "write names as hand,foot or with their indices as hand:0,foot:1"


def parse_tags(text: str, *, may_share: bool = False) -> dict[str, int]:
    """Return the indices by name; without numbers they count up. Raises DatasetError for a gap or a repeat.

    An entry is split at its last colon. With `may_share` several names may have the same index.
    """
    entries = [entry.strip() for entry in text.split(",")]
    numbered = [entry.rpartition(":") for entry in entries]
    has_number = [bool(name) and number.isdecimal() and len(number) < 10 for name, _, number in numbered]
    if any(has_number) and not all(has_number):
        raise DatasetError(f'--tags "{text}": some names have an index and some have none; {FORM}')
    rows = (
        [(name.strip(), int(number)) for name, _, number in numbered]
        if all(has_number)
        else [(name, index) for index, name in enumerate(entries)]
    )
    names = [name for name, _ in rows]
    if "" in names:
        raise DatasetError(f'--tags "{text}" has an empty name; {FORM}')
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise DatasetError(f'--tags "{text}" has "{twice}" twice')
    indices = sorted(index for _, index in rows)
    if not may_share and len(set(indices)) != len(indices):
        raise DatasetError(f'--tags "{text}" gives an index twice; each class needs its own')
    if len(set(indices)) != indices[-1] + 1:
        raise DatasetError(f'--tags "{text}" leaves out an index; indices must be 0, 1, 2, ...')
    return dict(rows)


def category_of_tags(tags: dict[str, int]) -> list[str]:
    """Return the class names by their indices: of several with one index the first."""
    return [next(name for name, found in tags.items() if found == index) for index in range(max(tags.values()) + 1)]


def check_known(tags: dict[str, int], known: Sequence[str], origin: object) -> None:
    """Raise DatasetError for a name that is none of the known classes, with the nearest of them."""
    for name in tags:
        if name not in known:
            raise DatasetError(f'--tags: "{name}" is no class of {origin}{did_you_mean(name, known, count=3)}')
