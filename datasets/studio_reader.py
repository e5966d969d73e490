"""Label Studio's JSON export -> standard annotations."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from common.formatting import parse_json, short_json
from data_loader.image_files import natural_sorted
from data_loader.problems import Problems
from datasets.errors import DatasetError
from datasets.files import Annotations
from datasets.objects import NO_SIZE, ImageObject, envelope, with_objects
from datasets.outcome import Outcome
from datasets.records import NO_LABEL, Record, find_problems, is_number, value

WHICH = ("newest", "ground_truth", "first")
EXPECTED = "expected Label Studio's JSON export, a list of tasks with data and annotations"
TURNED = "turned rectangles, of which the box around them is kept"
PLACES = "under this name or as Label Studio stores it (1b591d75-NAME), there, in media/upload/N and in upload/N"
UNKNOWN = "labels of classes that --tags does not name, as -1"
_UPLOADED = re.compile(r"/data/(upload/\d+/)")
_HEX = re.compile(r"[0-9a-f]{8}-")
_SHAPES = ("rectanglelabels", "polygonlabels", "keypointlabels")


@dataclass
class _Shapes:
    """The regions of a task: objects by the id of their rectangle, and what names no parent that is there."""

    objects: dict[str, ImageObject] = field(default_factory=dict)
    joints: dict[str, dict[int, tuple[list[float], float]]] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)


def read_export(file: Path) -> list[dict[str, Any]]:
    """Return the tasks of an export. Raises DatasetError for another form: JSON-MIN, CSV or COCO."""
    if file.suffix.lower() == ".csv":
        raise DatasetError(f"{file}: {EXPECTED}, got CSV")
    try:
        tasks = parse_json(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: {EXPECTED}; it is not valid JSON: {error}") from error
    if isinstance(tasks, dict) and {"images", "annotations"} <= tasks.keys():
        raise DatasetError(f"{file}: {EXPECTED}, got COCO; export JSON, or read it with extract/coco")
    if not isinstance(tasks, list):
        raise DatasetError(f"{file}: {EXPECTED}, got {short_json(tasks)}")
    for task in tasks:
        if isinstance(task, dict) and "data" not in task:
            raise DatasetError(f"{file}: {EXPECTED}, got JSON-MIN, whose tasks have no data; export JSON")
        if not isinstance(task, dict) or not isinstance(task["data"], dict):
            raise DatasetError(f"{file}: {EXPECTED}, got {short_json(task)}")
        if not isinstance(task.get("annotations", []), list):
            raise DatasetError(f"{file}: {EXPECTED}, got annotations {short_json(task['annotations'])}")
        for annotation in task.get("annotations", []):
            if not isinstance(annotation, dict) or not isinstance(annotation.get("result", []), list):
                raise DatasetError(f"{file}: {EXPECTED}, got an annotation {short_json(annotation)}")
            if wrong := [region for region in annotation.get("result", []) if not _is_region(region)]:
                raise DatasetError(f"{file}: {EXPECTED}, got a region {short_json(wrong[0])}")
    return tasks


def class_names(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all classes that are used, in natural order."""
    names: set[str] = set()
    for task in tasks:
        for annotation in task.get("annotations", []):
            for region in annotation.get("result", []):
                kind = region.get("type")
                if kind in ("rectanglelabels", "polygonlabels", "choices"):
                    names.update(region.get("value", {}).get(kind, []))
    return natural_sorted(names)


def studio_annotations(file: Path, outcome: Outcome) -> Annotations:
    """Return an export's newest annotations, without those whose images do not lie beside it.

    Raises UserError, also where none of the images does.
    """
    tasks = read_export(file)
    labels = {name: label for label, name in enumerate(class_names(tasks))}
    found, missing = Annotations(file, [], tuple(labels)), []
    for record in studio_records(file, tasks, labels, "", WHICH[0], outcome, folders=(file.parent,)):
        path = value(record, "image_file")
        if path and (file.parent / path).is_file():
            found.records.append(record)
        else:
            missing.append(path or value(record, "image_url"))
            outcome.leave_out(missing[-1], f"it does not lie beside {file.name}")
    if missing and not found.records:
        raise DatasetError(
            f"{file}: none of its {len(missing):,} images lies beside it; "
            f"the first, {missing[0]}, was looked for in {file.parent}, {PLACES}"
        )
    return found


def studio_records(
    file: Path,
    tasks: Sequence[Mapping[str, Any]],
    labels: Mapping[str, int],
    prefix: str,
    which: str,
    outcome: Outcome,
    *,
    keep_unlabelled: bool = False,
    folders: Sequence[Path] = (),
) -> list[Record]:
    """Return the records of the tasks that have a chosen annotation. Raises ListError with every problem.

    `labels` has the classes' indices; a class that it does not name becomes -1 and is counted. An uploaded image keeps
    the name that Label Studio stores it by where `folders` have it by that name alone.
    """
    problems, records = Problems(), []
    joint_names = _joint_names(tasks)
    for index, task in enumerate(tasks):
        annotation = _chosen(task.get("annotations", []), which)
        record, name = _base(task["data"], prefix, folders)
        if annotation is None and not keep_unlabelled:
            outcome.leave_out(
                name or f"task {index}", "it has no annotation" if which != WHICH[1] else "no ground truth"
            )
            continue
        if annotation is not None:
            try:
                record = _labelled(record, annotation.get("result", []), labels, joint_names, task["data"], outcome)
            except DatasetError as error:
                problems.add(0, f"task {index} ({name}): {error}")
                continue
        for problem in find_problems(record):
            problems.add(0, f"task {index} ({name}): {problem}")
        records.append(record)
    problems.raise_any(str(file))
    return records


def _is_region(region: Any) -> bool:
    """Return whether a region has the form that Label Studio writes; its numbers are checked as it is read."""
    content = region.get("value", {}) if isinstance(region, dict) else None
    if not isinstance(content, dict):
        return False
    names = [content.get(kind, []) for kind in (*_SHAPES, "choices")]
    if not all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in names):
        return False
    points = content.get("points", []) if region.get("type") == "polygonlabels" else []
    are_points = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    return are_points and isinstance(content.get("rotation") or 0, (int, float))


def _joint_names(tasks: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the joints' indices by their labels: of numbers the number, else in natural order."""
    names = {
        name
        for task in tasks
        for annotation in task.get("annotations", [])
        for region in annotation.get("result", [])
        for name in region.get("value", {}).get("keypointlabels", [])
    }
    if all(name.isdecimal() for name in names):
        return {name: int(name) for name in names}
    return {name: joint for joint, name in enumerate(natural_sorted(names))}


def _chosen(annotations: Sequence[dict[str, Any]], which: str) -> dict[str, Any] | None:
    usable = [each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")]
    if which == "ground_truth":
        usable = [each for each in usable if each.get("ground_truth")]
    if not usable:
        return None
    if which == "first":
        return usable[0]
    times = [str(each.get("updated_at") or each.get("created_at") or "") for each in usable]
    return usable[max(range(len(usable)), key=lambda place: (times[place], place))]


def _base(data: Mapping[str, Any], prefix: str, folders: Sequence[Path]) -> tuple[Record, str]:
    """Return a record without labels, and its image's name."""
    kept = data.get("record")
    record: Record = dict(kept) if isinstance(kept, dict) else {}
    address = str(data.get("image") or next((v for v in data.values() if isinstance(v, str)), ""))
    if "image_file" in record or "image_url" in record:
        name = str(record.get("image_file") or "")
    elif address.startswith(("http://", "https://")):
        record["image_url"], name = address, ""
    else:
        names = _file_names(data, address)
        paths = {name: [folder / prefix / name for folder in folders] for name in names}
        name = next((name for name in names if any(map(os.path.isfile, paths[name]))), names[0])
    if name:
        record["image_file"] = f"{prefix}/{name}" if prefix else name
    return record, name or address


def _file_names(data: Mapping[str, Any], address: str) -> list[str]:
    """Return the names that an image may have: the one that it had before its upload, then those it is stored by."""
    found = _UPLOADED.match(address)
    stored = str(data.get("file_upload") or (unquote(address[found.end() :]) if found else ""))
    if not stored:
        return [unquote(address.partition("?d=")[2]) if "?d=" in address else address.lstrip("/")]
    places = ("", f"media/{found[1]}", found[1]) if found else ("",)
    return [_HEX.sub("", stored, count=1), *(place + stored for place in places)]


def _labelled(
    record: Record,
    regions: Sequence[dict[str, Any]],
    labels: Mapping[str, int],
    joint_names: Mapping[str, int],
    data: Mapping[str, Any],
    outcome: Outcome,
) -> Record:
    found = _Shapes()
    for region in regions:
        _add_region(found, region, joint_names, outcome)
        size = (region.get("original_width"), region.get("original_height"))
        if region.get("type") in _SHAPES:
            record = {**record, "width": size[0], "height": size[1]}
    _set_joints(found, int(data.get("joints", 0)), outcome)
    objects = [each for each in found.objects.values() if each.box[0] < each.box[2] and each.box[1] < each.box[3]]
    outcome.counts[NO_SIZE] += len(found.objects) - len(objects)
    for each in objects:
        each.label = labels.get(each.name, NO_LABEL)
        outcome.counts[UNKNOWN] += bool(each.name) and each.label == NO_LABEL
    if objects:
        record = with_objects(record, objects)
    if found.choices:
        name = ",".join(found.choices)
        label = labels.get(name, NO_LABEL) if len(found.choices) == 1 else NO_LABEL
        outcome.counts[UNKNOWN] += label == NO_LABEL
        record = {**record, "image_label": label, "image_label_name": name}
    return record


def _add_region(found: _Shapes, region: dict[str, Any], joint_names: Mapping[str, int], outcome: Outcome) -> None:
    """Add a region to the objects. Raises DatasetError."""
    kind, content = region.get("type"), region.get("value")
    if kind == "choices" and isinstance(content, dict) and region.get("id") not in found.objects:
        found.choices = [str(choice) for choice in content.get("choices", [])]
        return
    if kind not in _SHAPES or not isinstance(content, dict) or region.get("image_rotation"):
        what = f"regions of a turned image ({kind})" if region.get("image_rotation") else f"regions of type {kind}"
        outcome.counts[f"{what}, left out"] += 1
        return
    size = (region.get("original_width"), region.get("original_height"))
    if not all(type(side) is int and side > 0 for side in size):
        raise DatasetError(f"region {region.get('id')} has no original_width and original_height")
    name, parent = str(region.get("id")), str(region.get("parentID") or "")
    names = [str(text) for text in content.get(kind, [])]
    if kind == "rectanglelabels":
        found.objects[name] = _rectangle(content, size, ",".join(names), region.get("meta"), outcome)
    elif kind == "polygonlabels":
        ring = [_pixels(point, size) for point in content.get("points", [])]
        if len(ring) < 3:
            outcome.counts["polygons of fewer than 3 points, left out"] += 1
        elif parent in found.objects:
            found.objects[parent].rings.append(ring)
        else:
            found.objects[name] = ImageObject(envelope(ring), name=",".join(names), rings=[ring])
    elif names:
        sight = (region.get("meta") or {}).get("visibility", 1)
        point = _pixels((content.get("x"), content.get("y")), size)
        found.joints.setdefault(parent, {})[joint_names[names[0]]] = (point, sight)


def _rectangle(content: Mapping[str, Any], size: Any, name: str, meta: Any, outcome: Outcome) -> ImageObject:
    x, y = _pixels((content.get("x"), content.get("y")), size)
    width, height = _pixels((content.get("width"), content.get("height")), size)
    box = [x, y, x + width, y + height]
    if turn := content.get("rotation"):
        outcome.counts[TURNED] += 1
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))  # about the upper left corner
        corners = [(0, 0), (width, 0), (0, height), (width, height)]
        box = envelope([[x + a * cos - b * sin, y + a * sin + b * cos] for a, b in corners])
    shown = meta.get("box_visibility") if isinstance(meta, dict) else None
    return ImageObject(box, name=name, shown=shown)


def _set_joints(found: _Shapes, count: int, outcome: Outcome) -> None:
    """Give the objects their joints; those without a parent become one object, with the box around them."""
    for parent, joints in found.joints.items():
        if parent not in found.objects:
            outcome.counts["key points without a rectangle, with the box around them"] += len(joints)
            found.objects[parent] = ImageObject(envelope([point for point, _ in joints.values()]))
        each = found.objects[parent]
        places = range(max(count, 1 + max(joints)))
        each.joints = [joints[joint][0] if joint in joints else [0, 0] for joint in places]
        each.visibilities = [joints[joint][1] if joint in joints else 0 for joint in places]


def _pixels(point: Sequence[Any], size: Any) -> list[float]:
    if len(point) != 2 or not all(map(is_number, point)):
        raise DatasetError(f"a region's coordinates must be per cent, got {short_json(list(point))}")
    return [point[0] * size[0] / 100, point[1] * size[1] / 100]
