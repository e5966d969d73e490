"""What a person says of an image: its class, or its objects. It is laid before them as a draft, checked, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datasets.objects import ImageObject, Point, envelope, objects_of, with_objects
from datasets.records import NO_LABEL, OUTSIDE_PX, Record, is_number, value
from review.answers import class_name, is_drawable
from review.errors import RefusedError

KINDS = ("CLASS", "RECT", "POLYGON", "POINT")
MOST_OBJECTS, MOST_POINTS = 2_000, 50_000  # of an image
HIDDEN_JOINT, SEEN_JOINT = 1, 2  # visibilities, as COCO has them; 0 is a missing joint

Labels = dict[str, Any]  # {"label": a class or -1} of CLASS, else {"objects": [...]}, each as `_object_view` gives it
Size = tuple[int, int]  # (width, height), (0, 0) where it is not known


def draft_of(record: Record, kind: str, category: Sequence[str], size: Size) -> tuple[Labels, str]:
    """Return what is laid before a person, and where it is from: the "record", its "predictions", or "" for nothing.

    Points outside the image are moved to where the standard allows them, those of predictions to its border.
    """
    predictions = value(record, "predictions")
    sources = [("record", record, OUTSIDE_PX), ("predictions", predictions, 0.0)]
    for origin, found, margin in sources:
        if kind == KINDS[0]:
            name = class_name(found, category)
            if name in category:
                return {"label": list(category).index(name)}, origin
        elif origin == "record" or is_drawable(found):
            known = [each for each in objects_of(found, category) if 0 <= each.label < len(category)]
            objects = [_clipped(each, size, margin) for each in known]
            if views := [_object_view(each, kind) for each in objects if _has_size(each.box)]:
                return {"objects": views}, origin
    return ({"label": NO_LABEL} if kind == KINDS[0] else {"objects": []}), ""


def checked_labels(found: Any, kind: str, num_classes: int, size: Size | None) -> Labels:
    """Return labels that may be kept, numbers as floats; `size` None: they were checked against it before.

    Raises RefusedError.
    """
    if not isinstance(found, dict):
        raise RefusedError(400, "labels must be an object")
    if kind == KINDS[0]:
        label = found.get("label")
        if type(label) is not int or not NO_LABEL <= label < num_classes:
            raise RefusedError(400, f"label must be a class from 0 to {num_classes - 1}, or -1 for none")
        return {"label": label}
    objects = found.get("objects")
    if not isinstance(objects, list) or len(objects) > MOST_OBJECTS:
        raise RefusedError(400, f"objects must be a list of at most {MOST_OBJECTS:,} objects")
    if objects and size == (0, 0):
        raise RefusedError(409, "nothing can be drawn: the image's size is not known")
    made = [_checked_object(each, number, kind, num_classes, size) for number, each in enumerate(objects, 1)]
    if sum(len(each["joints"]) + sum(map(len, each["rings"])) for each in made) > MOST_POINTS:
        raise RefusedError(400, f"an image may have at most {MOST_POINTS:,} corners and joints")
    return {"objects": made}


def labelled(record: Record, labels: Labels, category: Sequence[str]) -> Record:
    """Return a record with a person's labels; what they do not speak of stays as it is."""
    if "label" in labels:
        label = labels["label"]
        return {**record, "image_label": label, "image_label_name": category[label] if label >= 0 else ""}
    objects = [
        ImageObject(
            **{"box": each["box"], "label": each["label"], "name": category[each["label"]], "rings": each["rings"]},
            **{"joints": each["joints"], "visibilities": each["visible"], "shown": each["shown"]},
        )
        for each in labels["objects"]
    ]
    return with_objects(record, objects)


def _object_view(found: ImageObject, kind: str) -> dict[str, Any]:
    x0, y0, x1, y1 = found.box
    corners = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]] if kind == "POLYGON" else []
    return {
        "label": found.label,
        "box": found.box,
        "rings": found.rings or corners,
        "joints": found.joints,
        "visible": found.visibilities,
        "shown": found.shown,
    }


def _clipped(found: ImageObject, size: Size, margin: float) -> ImageObject:
    """Return an object whose points lie within the image and a margin around it."""
    if not all(size):
        return found

    def clip(point: Sequence[float]) -> Point:
        return [min(max(at, -margin), side + margin) for at, side in zip(point, size, strict=True)]

    box = [*clip(found.box[:2]), *clip(found.box[2:])]
    rings = [[clip(point) for point in ring] for ring in found.rings]
    return replace(found, box=box, rings=rings, joints=list(map(clip, found.joints)))


def _checked_object(found: Any, number: int, kind: str, num_classes: int, size: Size | None) -> dict[str, Any]:
    """Return an object as it is kept. Raises RefusedError."""
    name = f"object {number}"
    if not isinstance(found, dict):
        raise RefusedError(400, f"{name} must be an object")
    label, shown = found.get("label"), found.get("shown")
    if type(label) is not int or not 0 <= label < num_classes:
        raise RefusedError(400, f"{name} must have a class from 0 to {num_classes - 1}")
    if shown is not None and not (is_number(shown) and 0 <= shown <= 1):
        raise RefusedError(400, f"{name}: shown must be from 0 to 1")
    rings = found.get("rings", [])
    if not isinstance(rings, list):
        raise RefusedError(400, f"{name}: rings must be a list")
    rings = [_points(ring, f"{name}: a ring", size) for ring in rings]
    if any(len(ring) < 3 for ring in rings):
        raise RefusedError(400, f"{name}: a ring must have at least 3 corners")
    joints = _points(found.get("joints", []), f"{name}: joints", size)
    visible = found.get("visible", [])
    if not isinstance(visible, list) or len(visible) != len(joints) or not all(map(is_number, visible)):
        raise RefusedError(400, f"{name}: visible must have a number for each joint")
    joints = [point if sight else [0.0, 0.0] for point, sight in zip(joints, visible, strict=True)]
    there = [point for point, sight in zip(joints, visible, strict=True) if sight]
    box = _box(found.get("box"), name, size, kind, rings, there)
    return {"label": label, "box": box, "rings": rings, "joints": joints, "visible": visible, "shown": shown}


def _box(
    found: Any, name: str, size: Size | None, kind: str, rings: Sequence[Sequence[Point]], joints: Sequence[Point]
) -> list[float]:
    """Return an object's box: that around its rings or its joints, else its own. Raises RefusedError."""
    corners = [found[:2], found[2:]] if isinstance(found, list) and len(found) == 4 else []
    own = [at for point in _points(corners, f"{name}: its box", size) for at in point]
    if own and not _has_size(own):
        raise RefusedError(400, f"{name}: its box must have x0 < x1 and y0 < y1")
    if kind == "POLYGON" and rings:
        own = envelope([point for ring in rings for point in ring])
    elif kind == "POINT" and joints:
        own = envelope([*joints, *([own[:2], own[2:]] if own else [])])
        if size and not _has_size(own):
            own = _widened(own, size)
    if not own or not _has_size(own):
        raise RefusedError(400, f"{name} has no size")
    return own


def _widened(box: Sequence[float], size: Size) -> list[float]:
    """Return a box of at least a pixel's width and height within the image, around one that has none."""
    low, high = [], []
    for start, end, side in zip(box[:2], box[2:], size, strict=True):
        middle = min(max((start + end) / 2, 0.5), side - 0.5)
        low.append(min(start, middle - 0.5))
        high.append(max(end, middle + 0.5))
    return [*low, *high]


def _points(found: Any, name: str, size: Size | None) -> list[Point]:
    """Return points as floats. Raises RefusedError for what is no point of the image."""
    if not isinstance(found, list) or len(found) > MOST_POINTS:
        raise RefusedError(400, f"{name} must be a list of at most {MOST_POINTS:,} points [x, y]")
    for point in found:
        if not (isinstance(point, list) and len(point) == 2 and all(map(is_number, point))):
            raise RefusedError(400, f"{name} must hold points [x, y] in pixels")
        if size and not all(-OUTSIDE_PX <= at <= side + OUTSIDE_PX for at, side in zip(point, size, strict=True)):
            raise RefusedError(400, f"{name} must lie within the image of {size[0]}x{size[1]}")
    return [[float(at) for at in point] for point in found]


def _has_size(box: Sequence[float]) -> bool:
    return box[0] < box[2] and box[1] < box[3]
