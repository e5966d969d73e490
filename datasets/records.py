"""Standard annotations: the keys of a record, their defaults, and what can be wrong with them.

A record is a dict. In memory a key that has its default may be missing, so that a million records fit; in a file every
key is written. A key that is not known here is kept as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.formatting import is_utf8, short_json

Record = dict[str, Any]

NO_LABEL = -1
MOST_CLASSES = 1_000_000  # as num_classes allows
OUTSIDE_PX = 1.0  # that a box may lie outside its image
MAX_PX = 1e7
KEYS: dict[str, Any] = {  # with their defaults, in the order in which they are written
    **{"image_file": "", "image_url": "", "semantic_file": "", "semantic_url": "", "height": 0, "width": 0},
    **{"image_label": NO_LABEL, "image_label_name": "", "bboxes": [], "labels": [], "label_names": []},
    **{"segments": [], "has_segments": [], "joints2d": [], "has_joints2d": [], "joints_vis": []},
    **{"box_visibility": [], "tag": "", "clip_tag": "", "timestamp": "", "view_num": 0, "view_id": "-1"},
    **{"cam_name": "", "has_bboxes3d": False, "bboxes3d_trans": [], "bboxes3d_rotation": [], "bboxes3d_size": []},
    **{"has_joints3d": False, "joints3d": [], "has_dof": False, "pose": [], "trans": [], "shape": []},
    **{"has_cam_param": False, "cam_param": {}, "predictions": {}},
}
PER_OBJECT = (  # lists with one entry for each object
    *("bboxes", "labels", "label_names", "segments", "has_segments", "joints2d", "has_joints2d", "joints_vis"),
    "box_visibility",
)
FLAGS = ("has_segments", "has_joints2d")
FILES = ("image_file", "semantic_file")
TYPE_NAMES = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


def value(record: Mapping[str, Any], key: str) -> Any:
    """Return a key's value, or its default, which is not to be changed."""
    return record.get(key, KEYS[key])


def sparse(record: Mapping[str, Any]) -> Record:
    """Return a record without the keys that have their defaults; its keys are the same objects as in all others."""
    return {sys.intern(key): item for key, item in record.items() if key not in KEYS or item != KEYS[key]}


def complete(record: Mapping[str, Any]) -> Record:
    """Return a record with every key, those that are not known here last and in order."""
    others = {key: record[key] for key in sorted(record.keys() - KEYS.keys())}
    return {key: record.get(key, default) for key, default in KEYS.items()} | others


def object_names(record: Mapping[str, Any], category: Sequence[str]) -> list[str]:
    """Return the class name of each object, "" where it has none."""
    names, labels = value(record, "label_names"), value(record, "labels")
    return list(names) or [category[label] if 0 <= label < len(category) else "" for label in labels]


def rings_of(segment: Any) -> list[list[list[float]]]:
    """Return the rings of an object's `segments` entry: [] for none, [[x, y], ...] for one, or a list of rings."""
    if not segment:
        return []
    return [segment] if isinstance(segment[0][0], (int, float)) else list(segment)


def segment_of(rings: Sequence[Sequence[Sequence[float]]]) -> Any:
    """Return the `segments` entry of an object's rings."""
    return rings[0] if len(rings) == 1 else list(rings)


def normalized(record: Record) -> Record:
    """Return a record whose `segments` are of the one written form; COCO's flat rings and RLE masks are read too.

    An RLE mask becomes no rings, `has_segments` 0.
    """
    segments = record.get("segments")
    if not isinstance(segments, list) or not any(map(_is_foreign, segments)):
        return record
    made = [segment_of([_pairs(ring) for ring in entry]) if _is_flat(entry) else entry for entry in segments]
    made = [[] if isinstance(entry, dict) else entry for entry in made]
    return {**record, "segments": made, "has_segments": [int(bool(entry)) for entry in made]}


def find_problems(record: Any, category: Sequence[str] = ()) -> Iterator[str]:
    """Yield what is wrong with a record as read; `category` are the class names, none where they are not known."""
    if not isinstance(record, dict):
        yield f"it must be an object, got {short_json(record)}"
        return
    is_sound = True
    for problem in (*_type_problems(record), *_length_problems(record)):
        is_sound = False
        yield problem
    if is_sound:
        yield from _path_problems(record)
        yield from _box_problems(record)
        yield from _label_problems(record, category)
        if "segments" in record:
            yield from _segment_problems(record)
        if "joints2d" in record:
            yield from _joint_problems(record)


def is_number(number: Any) -> bool:
    """Return whether a value is a finite number of pixels."""
    return type(number) in (int, float) and abs(number) <= MAX_PX


def _type_problems(record: Record) -> Iterator[str]:
    for key, default in KEYS.items():
        if key not in record:
            continue
        found, wanted = record[key], type(default)
        if type(found) is not wanted and not (wanted is bool and found in (0, 1)):
            yield f"{key} must be {TYPE_NAMES[wanted]}, got {short_json(found)}"
    for key in ("height", "width"):
        if type(record.get(key, 0)) is int and record.get(key, 0) < 0:
            yield f"{key} must be at least 0, got {record[key]}"


def _length_problems(record: Record) -> Iterator[str]:
    boxes = record.get("bboxes", [])
    for key in PER_OBJECT[1:]:
        if key not in record and key != "labels":
            continue
        found = record.get(key, [])
        are_lists = isinstance(boxes, list) and isinstance(found, list)
        if are_lists and len(found) != len(boxes) and (found or key == "labels"):
            yield f"bboxes has {len(boxes)} entries, {key} has {len(found)}"
    for key in FLAGS:
        found = record.get(key)
        if isinstance(found, list) and any(flag not in (0, 1) for flag in found):
            yield f"{key} must hold 0 and 1, got {short_json(found)}"


def _path_problems(record: Record) -> Iterator[str]:
    for key in FILES:
        path = record.get(key, "")
        if path.startswith("/") or path[1:2] == ":" or ".." in path.split("/") or "\\" in path or "\0" in path:
            hint = "write it from the JSON's folder, with / between"
            yield f'{key} "{path}" is absolute, leaves the folder or has a backslash; {hint}'
        elif not is_utf8(path):
            yield f"{key} {path!r} is not UTF-8; rename the file"
    for key in ("image_url", "semantic_url"):
        url = record.get(key, "")
        if url and not url.startswith(("http://", "https://")):
            yield f'{key} must begin with http:// or https://, got "{url}"'
        elif not is_utf8(url):
            yield f"{key} {url!r} is not UTF-8"


def _box_problems(record: Record) -> Iterator[str]:
    size = (value(record, "width"), value(record, "height"))
    for number, box in enumerate(value(record, "bboxes")):
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            yield f"box {number} must be [x0, y0, x1, y1] in pixels, got {short_json(box)}"
        elif not (box[0] < box[2] and box[1] < box[3]):
            yield f"box {number} must have x0 < x1 and y0 < y1, got {short_json(box)}"
        elif all(size) and (min(box[:2]) < -OUTSIDE_PX or any(box[2 + i] > size[i] + OUTSIDE_PX for i in (0, 1))):
            yield f"box {number} lies outside its image of {size[0]}x{size[1]}: {short_json(box)}"
    for number, share in enumerate(value(record, "box_visibility")):
        if not is_number(share) or not 0 <= share <= 1:
            yield f"box_visibility {number} must be from 0 to 1, got {short_json(share)}"


def _label_problems(record: Record, category: Sequence[str]) -> Iterator[str]:
    labels, names = value(record, "labels"), value(record, "label_names")
    rows = [("label", label) for label in labels] + [("image_label", value(record, "image_label"))]
    texts = [*(names or [""] * len(labels)), value(record, "image_label_name")]
    for (key, label), name in zip(rows, texts, strict=True):
        if type(label) is not int or not NO_LABEL <= label < MOST_CLASSES:
            yield f"{key} must be a class's index below {MOST_CLASSES:,} or -1, got {short_json(label)}"
        elif not isinstance(name, str):
            yield f"a class's name must be text, got {short_json(name)}"
        elif category and label >= len(category):
            yield f"{key} {label} is outside 0..{len(category) - 1}, the classes of meta.json"
        elif category and name and label != NO_LABEL and name != category[label]:
            yield f'{key} {label} is called "{name}", but "{category[label]}" in meta.json'


def _segment_problems(record: Record) -> Iterator[str]:
    for number, segment in enumerate(value(record, "segments")):
        if not isinstance(segment, list) or not all(isinstance(part, list) and part for part in segment):
            yield f"segment {number} must be [[x, y], ...], got {short_json(segment)}"
            continue
        for ring in rings_of(segment):
            if not isinstance(ring, list) or len(ring) < 3 or not all(map(_is_point, ring)):
                yield f"segment {number} must be rings of at least 3 points [x, y], got {short_json(ring)}"


def _joint_problems(record: Record) -> Iterator[str]:
    joints, visibilities = value(record, "joints2d"), value(record, "joints_vis")
    for number, points in enumerate(joints):
        if not isinstance(points, list) or not all(map(_is_point, points)):
            yield f"joints2d {number} must be [[x, y], ...], got {short_json(points)}"
        elif visibilities and (
            not isinstance(visibilities[number], list)
            or len(visibilities[number]) != len(points)
            or not all(map(is_number, visibilities[number]))
        ):
            yield f"joints_vis {number} must have a number for each of {len(points)} joints"


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(map(is_number, point))


def _is_foreign(entry: Any) -> bool:
    return isinstance(entry, dict) or _is_flat(entry)


def _is_flat(entry: Any) -> bool:
    """Return whether an entry is COCO's: rings x0, y0, x1, y1, ... of an even number of coordinates, 6 or more."""
    return (
        isinstance(entry, list)
        and bool(entry)
        and all(isinstance(ring, list) and len(ring) >= 6 and all(map(is_number, ring)) for ring in entry)
    )


def _pairs(ring: Sequence[float]) -> list[list[float]]:
    return [[ring[i], ring[i + 1]] for i in range(0, len(ring) - 1, 2)]
