"""A record as the page gets it: names instead of indices, rings of one form, and only numbers that JSON has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from data_loader.errors import ImageError
from datasets.records import object_names, rings_of, value
from review.answers import class_name, is_drawable
from review.errors import RefusedError
from review.review import Review

SIZES_S = 10.0  # for reading sizes, of one request


def find_sizes(review: Review, records: Iterable[int], size_of: Callable[[int], tuple[int, int]]) -> None:
    """Ask for the sizes that records with objects do not say, until SIZES_S are over; the rest is asked for later.

    Objects are not drawn on an image of unknown size. Where objects are to be drawn, all sizes are asked for.
    """
    are_drawn = review.task is not None and review.task.kind != "CLASS"
    until = time.monotonic() + SIZES_S
    for index in records:
        record = review.annotations.records[index]
        has_objects = value(record, "bboxes") or value(record, "predictions").get("bboxes")
        is_known = all(review.size(index)) or index in review.sizes
        if is_known or not (has_objects or are_drawn) or time.monotonic() > until:
            continue
        try:
            review.sizes[index] = size_of(index)
        except (ImageError, RefusedError, RuntimeError):  # the last: a decoder's bug; the image itself tells
            review.sizes[index] = 0, 0


def record_view(review: Review, index: int) -> dict[str, Any]:
    """Return a record's image, objects, predictions, mark, and of a labelling its draft; `find_sizes` comes before."""
    record, category = review.record(index), review.annotations.category
    width, height = review.size(index)
    predictions = value(record, "predictions")
    proposed = _objects(predictions, category) if is_drawable(predictions) else []
    objects = _objects(record, category)
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
        "judged": asdict(review.judgements[index]) if index in review.judgements else None,
        "from": value(record, "tag"),
        **mark_view(mark),
        **({"draft": _draft(review, index)} if review.task else {}),
    }


def mark_view(mark: Any) -> dict[str, Any]:
    """Return a mark's "tags", None where the record has not been reviewed, "user" and "time"."""
    if mark is None:
        return {"tags": None, "user": "", "time": ""}
    return {"tags": list(mark.tags), "user": mark.user, "time": mark.time}


def _draft(review: Review, index: int) -> dict[str, Any]:
    labels, origin = review.draft(index)
    return {**labels, "origin": origin}


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
    keys = ("segments", "joints2d", "joints_vis")
    given = record if record.get("joints2d") else {"segments": record.get("segments")}  # nobody checks joints_vis alone
    parts = {key: given.get(key) or [None] * len(names) for key in keys}
    rows = zip(names, record.get("bboxes", []), *parts.values(), strict=True)
    return [
        {"name": name, "box": box, "rings": rings_of(segment), "joints": joints or [], "visible": visible or []}
        for name, box, segment, joints, visible in rows
    ]
