"""Records chosen by the tags that people have given them in a review."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.formatting import short_json
from datasets.errors import DatasetError
from datasets.files import Annotations
from datasets.outcome import Outcome
from datasets.records import Record, value

FORM = '{"0": [{"title": "pond/0007.jpg", "tag": ["valid"]}], ...}'


@dataclass(frozen=True)
class TagChoice:
    """Records with all of `wanted` (or any one of them) and none of `refused`."""

    wanted: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    any_one: bool = False

    @property
    def name(self) -> str:
        """Return the part of a file's name that says what was chosen, "_tags_a_b_no_tags_c"."""
        parts = [("tags", self.wanted), ("no_tags", self.refused)]
        text = "".join(f"_{word}_{'_'.join(sorted(tags))}" for word, tags in parts if tags)
        return text.replace("/", "-").replace("\\", "-")

    def holds(self, tags: set[str]) -> bool:
        """Return whether a record with these tags is chosen."""
        found = [tag in tags for tag in self.wanted]
        is_wanted = not found or (any(found) if self.any_one else all(found))
        return is_wanted and not tags & set(self.refused)


def read_review(path: Path) -> dict[int, tuple[str, set[str]]]:
    """Return title and tags by the record's index. Raises DatasetError for another form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        return {
            int(index): (entries[0]["title"], {tag for entry in entries for tag in entry["tag"]})
            for index, entries in content.items()
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path}: expected a review as browser/images writes it, {FORM}: {error}") from error


def filter_by_tags(
    found: Annotations, review: Path, choice: TagChoice, outcome: Outcome, *, keep_unreviewed: bool = False
) -> list[Record]:
    """Return the chosen records; those not reviewed are left out unless they are to be kept.

    Raises DatasetError where a title is not its record's image.
    """
    reviewed = read_review(review)
    records = []
    for index, (title, _) in reviewed.items():
        name = value(found.records[index], "image_file") if index < len(found.records) else None
        if title != name:
            got = f"record {index} is {short_json(name)} in {found.path}, but {short_json(title)} in the review"
            raise DatasetError(f"{review}: {got}; it is a review of another file")
    for index, record in enumerate(found.records):
        if index not in reviewed:
            if keep_unreviewed:
                records.append(record)
            else:
                outcome.leave_out(found.name(index), "it was not reviewed")
        elif choice.holds(reviewed[index][1]):
            records.append(record)
    return records


def parse_names(text: str) -> tuple[str, ...]:
    """Return the tags of `a,b`."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def check_choice(choice: TagChoice) -> None:
    """Raise DatasetError where nothing is asked for, or a tag both ways."""
    if not choice.wanted and not choice.refused:
        raise DatasetError("name --tags that a record must have, or --no-tags that it must not have")
    if both := sorted(repeated_names([*choice.wanted, *choice.refused])):
        raise DatasetError(f'tag "{both[0]}" is named twice in --tags and --no-tags')


def repeated_names(names: Sequence[str]) -> set[str]:
    """Return the names that are there more than once."""
    return {name for name in names if names.count(name) > 1}
