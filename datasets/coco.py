"""COCO's JSON -> standard annotations, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import atomic_path
from common.formatting import short_json
from data_loader.coco import are_numbers, box_of, categories_of, classes_of, load_coco, objects_by_image
from data_loader.errors import ImageError
from data_loader.problems import Problems
from datasets.files import Annotations
from datasets.image_sizes import decoded_sizes, upright_objects
from datasets.objects import ImageObject, objects_of, with_objects, within_image
from datasets.outcome import Outcome
from datasets.records import NO_LABEL, Record, value
from datasets.tags import category_of_tags, check_known

CROWD = "crowds and RLE masks, of which the box is kept"
NO_JOINTS = "objects whose joints are all missing"
SHORT_RING = "rings of fewer than 3 points"


@dataclass
class CocoRecords:
    """Records before their images were looked at: rows (path below the images' folder, COCO's size, objects)."""

    rows: list[tuple[str, tuple[int, int], list[ImageObject]]] = field(default_factory=list)
    category: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # of meta.json's "meta"


def read_coco_records(file: Path, tags: Mapping[str, int], outcome: Outcome) -> CocoRecords:
    """Return one row for each image of a COCO file; with `tags` only their objects, with their labels.

    Raises ListError with every problem: annotations of an image or category that is not there, and what is no COCO.
    """
    data, problems = load_coco(str(file)), Problems()
    categories = categories_of(data, problems)
    names = {number: entry["name"] for number, entry in categories.items()}
    by_image = objects_by_image(data, problems)
    for entry in data["annotations"]:
        if entry.get("category_id") not in names:
            where = f"annotation {short_json(entry.get('id'))}"
            problems.add(0, f"{where}: category_id {short_json(entry.get('category_id'))} is none of the categories")
    problems.raise_any(str(file))
    if tags:
        check_known(dict(tags), list(names.values()), file)
    classes = [found.name for found in classes_of(categories)]
    labels = dict(tags) or {name: label for label, name in enumerate(classes)}
    found = CocoRecords(category=category_of_tags(labels), details=_details(categories))
    for entry in data["images"]:
        _add_row(found, entry, by_image, names, labels, problems, outcome)
    if by_image:
        first = short_json(next(iter(by_image)))
        problems.add(0, f"{len(by_image)} image_id of annotations are of no image, such as {first}")
    problems.raise_any(str(file))
    return found


def coco_records(
    found: CocoRecords, images: Path, outcome: Outcome, *, keep_empty: bool = False, image_label: bool = False
) -> list[Record]:
    """Return the records of the images below a folder; those that cannot be read are left out."""
    rows = [row for row in found.rows if keep_empty or row[2]]
    outcome.counts["images without objects, not kept (--keep-empty keeps them)"] += len(found.rows) - len(rows)
    records = []
    for row, size in zip(rows, decoded_sizes([images / row[0] for row in rows]), strict=True):
        path, said, _ = row
        objects = upright_objects(row[2], said, size)
        if isinstance(objects, str):
            outcome.leave_out(path, objects)
            continue
        width, height = size.shown
        record = with_objects(
            {"image_file": path, "width": width, "height": height}, within_image(objects, size.shown, outcome)
        )
        labels = set(record["labels"])
        if image_label and len(labels) == 1:
            label = labels.pop()
            record.update(image_label=label, image_label_name=found.category[label])
        records.append(record)
    return records


def write_coco(path: Path, found: Annotations, outcome: Outcome) -> tuple[int, int]:
    """Write standard annotations as COCO's JSON; return how many images and objects. Categories count from 1.

    Objects without a class are dropped. A million records are written one by one. Raises OSError.
    """
    details = _joint_details(found.meta.get("meta", {}), found.records)
    categories = [{"id": label, "name": name, **details} for label, name in enumerate(found.category, 1)]
    encode = json.JSONEncoder(ensure_ascii=False).encode  # made once, not for each of millions
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        counts: list[int] = []
        for key, entries in (("images", _images(found)), ("annotations", _annotations(found, outcome))):
            file.write(f'{", " if counts else "{"}"{key}": [')
            count = 0
            for count, entry in enumerate(entries, 1):
                file.write(f"{', ' if count > 1 else ''}{encode(entry)}")
            file.write("]")
            counts.append(count)
        file.write(f', "categories": {encode(categories)}}}\n')
    return counts[0], counts[1]


def _images(found: Annotations) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(found.records, 1):
        size = {"width": value(record, "width"), "height": value(record, "height")}
        yield {"id": number, "file_name": value(record, "image_file"), **size}


def _annotations(found: Annotations, outcome: Outcome) -> Iterator[dict[str, Any]]:
    count = 0
    for number, record in enumerate(found.records, 1):
        for each in objects_of(record, found.category):
            if each.label == NO_LABEL:
                outcome.counts["objects without a class, dropped"] += 1
                continue
            count += 1
            yield _entry(each, count, number)


def _joint_details(details: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Return what COCO's categories say of joints: nothing where no record has any."""
    count = max((len(points) for record in records for points in record.get("joints2d", ())), default=0)
    if not count:
        return {}
    names = details.get("joints") or [str(joint) for joint in range(count)]
    return {"keypoints": names, "skeleton": [[a + 1, b + 1] for a, b in details.get("skeleton", [])]}


def _entry(found: ImageObject, number: int, image: int) -> dict[str, Any]:
    x0, y0, x1, y1 = found.box
    entry: dict[str, Any] = {"id": number, "image_id": image, "category_id": found.label + 1, "iscrowd": 0}
    entry["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    entry["area"] = sum(map(_area, found.rings)) if found.rings else (x1 - x0) * (y1 - y0)
    entry["segmentation"] = [[number for point in ring for number in point] for ring in found.rings]
    if found.joints:
        pairs = zip(found.joints, found.visibilities, strict=True)
        entry["keypoints"] = [number for (x, y), sight in pairs for number in (x, y, int(sight))]
        entry["num_keypoints"] = sum(sight > 0 for sight in found.visibilities)
    return entry


def _area(ring: Sequence[Sequence[float]]) -> float:
    """Return the area that a ring encloses (the shoelace formula)."""
    following = [*ring[1:], ring[0]]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, following, strict=True))) / 2


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(joint) is int for joint in pair)


def _details(categories: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return skeleton (joint indices from 0) and names of the joints, of the first category that has them."""
    for entry in categories.values():
        if isinstance(names := entry.get("keypoints"), list) and names:
            pairs = entry.get("skeleton") or []
            is_skeleton = isinstance(pairs, list) and all(_is_pair(pair) for pair in pairs)
            return {"skeleton": [[a - 1, b - 1] for a, b in pairs] if is_skeleton else [], "joints": names}
    return {}


def _add_row(
    found: CocoRecords,
    entry: Mapping[str, Any],
    by_image: dict[Any, list[Any]],
    names: Mapping[int, str],
    labels: Mapping[str, int],
    problems: Problems,
    outcome: Outcome,
) -> None:
    name, number = entry.get("file_name"), entry.get("id")
    if not isinstance(name, str) or not name or "\0" in name or type(number) not in (int, str):
        problems.add(0, f"an image needs id and file_name, got {short_json(entry)}")
        return
    own = by_image.pop(number, [])
    path = os.path.normpath(name).replace(os.sep, "/")
    if path.split("/")[0] == ".." or path.startswith("/"):
        problems.add(0, f'file_name "{path}" leaves the folder of the images')
        return
    objects = []
    for each in own:
        class_name = names[each["category_id"]]
        if class_name not in labels:
            continue
        try:
            made = _object(each, outcome)
        except ImageError as error:
            problems.add(0, str(error))
            continue
        made.label, made.name = labels[class_name], found.category[labels[class_name]]
        objects.append(made)
    sides = (entry.get("width"), entry.get("height"))
    said = (int(sides[0] or 0), int(sides[1] or 0)) if all(type(side) is int for side in sides) else (0, 0)
    found.rows.append((path, said, objects))


def _object(entry: dict[str, Any], outcome: Outcome) -> ImageObject:
    """Return an annotation's box, rings and joints. Raises ImageError."""
    where = f"annotation {short_json(entry.get('id'))}"
    found, shape = ImageObject(box_of(entry, where)), entry.get("segmentation")
    if entry.get("iscrowd") in (1, True) or isinstance(shape, dict):
        outcome.counts[CROWD] += 1
    elif isinstance(shape, list):
        for ring in shape:
            if not are_numbers(ring) or len(ring) < 6:
                outcome.counts[SHORT_RING] += 1
                continue
            found.rings.append([[ring[i], ring[i + 1]] for i in range(0, len(ring) - 1, 2)])
    points = entry.get("keypoints")
    if points:
        if not are_numbers(points) or len(points) % 3:
            raise ImageError(f"{where}: keypoints must be x, y, visibility of each joint, got {short_json(points)}")
        found.visibilities = points[2::3]
        found.joints = [
            [x, y] if sight else [0, 0] for x, y, sight in zip(points[::3], points[1::3], points[2::3], strict=True)
        ]
        if not any(found.visibilities):
            found.joints, found.visibilities = [], []
            outcome.counts[NO_JOINTS] += 1
    return found
