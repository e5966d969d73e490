"""The objects of a record, one by one, whatever format they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_loader.box_geometry import oriented
from datasets.outcome import Outcome
from datasets.records import NO_LABEL, Record, object_names, rings_of, segment_of, value

Point = list[float]

CUT = "boxes that reached over their image's border, cut there"
NO_SIZE = "objects whose box has no size"


@dataclass
class ImageObject:
    """An object: its box [x0, y0, x1, y1], rings and joints in pixels; `visibilities` has one number for each joint."""

    box: list[float]
    label: int = NO_LABEL
    name: str = ""
    rings: list[list[Point]] = field(default_factory=list)
    joints: list[Point] = field(default_factory=list)
    visibilities: list[float] = field(default_factory=list)
    shown: float | None = None  # share of the box that is seen


def objects_of(record: Record, category: Sequence[str] = ()) -> list[ImageObject]:
    """Return the objects of a record that was checked."""
    boxes, labels, names = value(record, "bboxes"), value(record, "labels"), object_names(record, category)
    empty: list[Any] = [[]] * len(boxes)
    segments, joints = value(record, "segments") or empty, value(record, "joints2d") or empty
    visibilities = value(record, "joints_vis") or ([[1] * len(points) for points in joints] if any(joints) else empty)
    shown = value(record, "box_visibility") or [None] * len(boxes)
    columns = zip(boxes, labels, names, map(rings_of, segments), joints, visibilities, shown, strict=True)
    return [ImageObject(*row) for row in columns]


def with_objects(record: Record, objects: Sequence[ImageObject]) -> Record:
    """Return a record with these objects and no others."""
    made: Record = {
        **record,
        "bboxes": [found.box for found in objects],
        "labels": [found.label for found in objects],
        "label_names": [found.name for found in objects],
        "segments": [segment_of(found.rings) if found.rings else [] for found in objects],
        "has_segments": [int(bool(found.rings)) for found in objects],
        "joints2d": [found.joints for found in objects],
        "has_joints2d": [int(bool(found.joints)) for found in objects],
        "joints_vis": [found.visibilities for found in objects],
        "box_visibility": [1.0 if found.shown is None else found.shown for found in objects],
    }
    if not any(found.joints for found in objects):
        made |= {"joints2d": [], "has_joints2d": [], "joints_vis": []}
    if not any(found.rings for found in objects):
        made |= {"segments": [], "has_segments": []}
    if all(found.shown is None for found in objects):
        made |= {"box_visibility": []}
    return made


def within_image(objects: Sequence[ImageObject], size: tuple[int, int], outcome: Outcome) -> list[ImageObject]:
    """Return the objects whose boxes, cut at the image's border where they reach over it, have a size."""
    kept = []
    for found in objects:
        x0, y0, x1, y1 = found.box
        if x0 < -1 or y0 < -1 or x1 > size[0] + 1 or y1 > size[1] + 1:
            found.box = [max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1])]
            outcome.counts[CUT] += 1
        if found.box[0] < found.box[2] and found.box[1] < found.box[3]:
            kept.append(found)
        else:
            outcome.counts[NO_SIZE] += 1
    return kept


def moved(found: ImageObject, move: Any) -> ImageObject:
    """Return an object that `move` takes elsewhere, as it does boxes (M, 4); missing joints stay [0, 0]."""
    box = move(np.array([found.box], np.float64))[0].tolist()
    rings = [_moved_points(ring, move) for ring in found.rings]
    joints = [
        point if not sight else _moved_points([point], move)[0]
        for point, sight in zip(found.joints, found.visibilities, strict=True)
    ]
    return ImageObject(box, found.label, found.name, rings, joints, found.visibilities, found.shown)


def set_upright(objects: Sequence[ImageObject], orientation: int, stored: tuple[int, int]) -> list[ImageObject]:
    """Return objects on the stored pixels where the image lies upright; of EXIF's orientations those that turn."""
    return [moved(found, lambda boxes: oriented(boxes, orientation, stored)) for found in objects]


def envelope(points: Sequence[Sequence[float]]) -> list[float]:
    """Return the box around points."""
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return [min(xs), min(ys), max(xs), max(ys)]


def _moved_points(points: Sequence[Sequence[float]], move: Any) -> list[Point]:
    """Return moved points: each moves as the box without a size that lies there."""
    boxes: np.ndarray = move(np.tile(np.array(points, np.float64), 2))
    return [[x, y] for x, y in boxes[:, :2].tolist()]
