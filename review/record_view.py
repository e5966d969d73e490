"""A record as the page gets it: names instead of indices, rings of one form, and only numbers that JSON has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_loader.decoding import image_size
from data_loader.errors import ImageError
from datasets.records import object_names, rings_of, value
from review.answers import class_name, is_drawable
from review.review import Review


def record_view(review: Review, index: int) -> dict[str, Any]:
    """Return a record's image, objects, predictions and mark; it may read the head of the image for its size."""
    record, category = review.annotations.records[index], review.annotations.category
    width, height = value(record, "width"), value(record, "height")
    predictions = value(record, "predictions")
    proposed = _objects(predictions, category) if is_drawable(predictions) else []
    objects = _objects(record, category)
    if (objects or proposed) and not (width and height):
        width, height = _size_of(review, index)
    mark = review.marks.of.get(index) if review.marks else None
    return {
        "index": index,
        "file": review.annotations.name(index),
        "has_file": bool(value(record, "image_file")),
        "width": width,
        "height": height,
        "label": class_name(record, category),
        "objects": objects,
        "net": _answer(review, index, proposed),
        "from": value(record, "tag"),
        **mark_view(mark),
    }


def mark_view(mark: Any) -> dict[str, Any]:
    """Return a mark's "tags", None where the record has not been reviewed, "user" and "time"."""
    if mark is None:
        return {"tags": None, "user": "", "time": ""}
    return {"tags": list(mark.tags), "user": mark.user, "time": mark.time}


def _answer(review: Review, index: int, proposed: list[dict[str, Any]]) -> dict[str, Any] | None:
    answer = review.answers.get(index)
    if answer is None:
        return {"objects": proposed} if proposed else None
    return {
        "label": answer.name,
        "score": answer.score,
        "doubt": answer.doubt,
        "decision": answer.decision,
        "contradicts": answer.contradicts,
        "objects": proposed,
    }


def _objects(record: Mapping[str, Any], category: Sequence[str]) -> list[dict[str, Any]]:
    names = object_names(record, category)
    parts = {key: record.get(key) or [None] * len(names) for key in ("segments", "joints2d", "joints_vis")}
    rows = zip(names, record.get("bboxes", []), *parts.values(), strict=True)
    return [
        {"name": name, "box": box, "rings": rings_of(segment), "joints": joints or [], "visible": visible or []}
        for name, box, segment, joints, visible in rows
    ]


def _size_of(review: Review, index: int) -> tuple[int, int]:
    record = review.annotations.records[index]
    if not value(record, "image_file"):
        return 0, 0
    try:
        return image_size(str(review.annotations.folder / value(record, "image_file")))[0]
    except (ImageError, OSError):
        return 0, 0
