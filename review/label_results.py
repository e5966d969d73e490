"""What people drew, as a script gets it: for each image the annotations of each person, the one that counts first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datasets.records import NO_LABEL
from review.label_task import LabelTask
from review.labels import Labels, Size
from review.review import Review


@dataclass
class Saved:
    """What a person saved last of an image, and when it was saved first and last (UTC)."""

    labels: Labels
    first: str
    last: str


def label_results(
    review: Review, task: LabelTask, ids: Sequence[int | str], files: Sequence[str], times: Sequence[str], project: str
) -> list[dict[str, Any]]:
    """Return an entry for each image; `ids`, `files` and `times` are of its recording. Raises OSError."""
    saved = _saved(review, task)
    marks = review.marks.of if review.marks else {}
    found = []
    for index, (record_id, file, time) in enumerate(zip(ids, files, times, strict=True)):
        own = saved.get(index, {})
        counting = marks[index].user if index in marks else None
        order = sorted(own, key=lambda user: (user == counting, own[user].last), reverse=True)
        annotations = [
            {
                **{"id": number, "completed_by": user, "created_at": _text(own[user].first)},
                "updated_at": _text(own[user].last),
                "result": list(_results(own[user].labels, task, review.size(index))),
            }
            for number, user in enumerate(order)
        ]
        address = f"/static/data/{file}"
        updated = max([time, *(each.last for each in own.values())])
        found.append(
            {
                **{"id": record_id, "file_upload": address, "data": {"image": address}},
                **{"created_at": _text(time), "updated_at": _text(updated), "project": project},
                "annotations": annotations,
            }
        )
    return found


def _saved(review: Review, task: LabelTask) -> dict[int, dict[str, Saved]]:
    """Return what each person saved last of each image, from the journal; what was undone does not count."""
    journal = task.target / f"{review.annotations.path.stem}_label.log.jsonl"
    found: dict[int, dict[str, Saved]] = {}
    for line in journal.read_text(encoding="utf-8").splitlines()[1:]:
        event = json.loads(line)
        user, time = event["user"], event["time"]
        for key, labels in event.get("set", {}).items():
            of_image = found.setdefault(int(key), {})
            first = of_image[user].first if user in of_image else time
            of_image[user] = Saved(labels, first, time)
        for key, mark in event.get("restore", {}).items():
            of_image = found.setdefault(int(key), {})
            kept = of_image.pop(user, None)
            if mark and kept and mark["user"] == user:
                of_image[user] = Saved(mark["labels"], kept.first, mark["time"])
    return found


def _results(labels: Labels, task: LabelTask, size: Size) -> Iterator[dict[str, Any]]:
    """Yield a person's labels in pixels: boxes, polygons ring by ring, points, or the class."""
    shape = {"width": size[0], "height": size[1]}
    if "label" in labels:
        if labels["label"] != NO_LABEL:
            yield {"type": "CHOICES", **shape, "value": {"labels": [task.category[labels["label"]]]}}
        return
    for each in labels["objects"]:
        (x0, y0, x1, y1), label = each["box"], {"labels": each["label"]}
        if task.kind == "RECT":
            box = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
            yield {"type": "RECT", **shape, "value": box | label}
        elif task.kind == "POLYGON":
            for ring in each["rings"]:
                yield {"type": "POLYGON", **shape, "value": {"points": _points(ring), **label}}
        else:
            seen = [joint for joint, is_seen in zip(each["joints"], each["visible"], strict=True) if is_seen]
            yield {"type": "POINT", **shape, "value": {"points": _points(seen), **label}}


def _points(pairs: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    return [{"x": x, "y": y} for x, y in pairs]


def _text(time: str) -> str:
    """Return 2026-11-29x08-15-00 of 2026-11-29T08:15:00Z, as antgo has it."""
    return time.rstrip("Z").replace("T", "x").replace(":", "-")
