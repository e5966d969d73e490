"""What a net says of a record, beside what the record says: doubt and contradiction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets.records import NO_LABEL, Record, find_problems, is_number, value

SET_ASIDE = "set_aside"


@dataclass(frozen=True)
class Answer:
    """A net's class for a whole image; `doubt` is its uncertainty where it is calibrated, else 1 - score."""

    name: str = ""
    score: float | None = None
    doubt: float = 0.0
    decision: str = ""
    contradicts: bool = False

    @property
    def order(self) -> tuple[bool, float]:
        """Return what to sort by: contradictions first, the surest of them first, then doubt, the greatest first."""
        return (not self.contradicts, self.doubt if self.contradicts else -self.doubt)


@dataclass(frozen=True)
class Judgement:
    """What the other images say of a label: the class that they predict, and its probability beside the label's own."""

    predicted: str
    own: float
    other: float
    is_wrong: bool  # probably


def answer_of(record: Record, category: Sequence[str]) -> Answer | None:
    """Return the answer in a record's `predictions`, or None where it holds no class of the image and no doubt."""
    found = value(record, "predictions")
    name = class_name(found, category)
    score, uncertainty = (_share(found.get(key)) for key in ("score", "uncertainty"))
    if not name and score is None and uncertainty is None:
        return None
    own = class_name(record, category)
    doubt = uncertainty if uncertainty is not None else 1 - (1.0 if score is None else score)
    decision = found.get("decision") if isinstance(found.get("decision"), str) else ""
    return Answer(name, score, doubt, decision or "", bool(name and own and name != own))


def class_name(record: Mapping[str, Any], category: Sequence[str]) -> str:
    """Return the name of an image's class, "" where it has none; of predictions too, which nobody has checked."""
    name, label = record.get("image_label_name", ""), record.get("image_label", NO_LABEL)
    if isinstance(name, str) and name:
        return name
    is_known = type(label) is int and 0 <= label < len(category)
    return category[label] if is_known else ""


def is_drawable(predictions: Mapping[str, Any]) -> bool:
    """Return whether predictions have boxes, rings and joints as a record has."""
    return next(find_problems(dict(predictions)), None) is None


def _share(number: Any) -> float | None:
    return float(number) if is_number(number) and 0 <= number <= 1 else None
