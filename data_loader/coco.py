"""COCO's JSON: the boxes of many images in one file."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.formatting import parse_json, short_json
from data_loader.box_annotations import Annotation, polygon_box
from data_loader.box_classes import named_classes
from data_loader.errors import ImageError
from data_loader.image_files import folder_prefix
from data_loader.mask_classes import LARGEST_VALUE, MaskClass
from data_loader.problems import Problems
from data_loader.samples import ListError, current_folder, read_utf8, shorten, shorten_path

FORM = '{"images": [...], "annotations": [...], "categories": [...]}'


@dataclass
class CocoData:
    """Rows (image path, annotation) in the order of the file, and its classes in the order of their ids."""

    rows: list[tuple[str, Annotation]] = field(default_factory=list)
    classes: tuple[MaskClass, ...] = ()


def read_coco(file: str, root: str, *, allow_outside_root: bool = False) -> CocoData:
    """Return the images below a root folder that a COCO file names, with their boxes.

    Category ids are kept as the classes' values. A category of id 0 that only heads the others, as Roboflow writes it,
    is none. An annotation without bbox gets the box around its polygons; a crowd is ignored. Raises ListError with
    every problem of the file; what is wrong with one image's annotations is the problem of its Annotation.
    """
    data = load_coco(file)
    problems = Problems()
    categories = categories_of(data, problems)
    objects = objects_by_image(data, problems)
    found = CocoData(classes=classes_of(categories))
    seen: set[str] = set()
    for entry in data["images"]:
        row = _row(entry, root, objects, categories, file, problems, allow_outside_root)
        if row is not None and row[0] in seen:
            problems.add(0, f'file_name "{shorten_path(row[0])}" is there twice')
        elif row is not None:
            seen.add(row[0])
            found.rows.append(row)
    if objects:
        first = next(iter(objects))
        problems.add(0, f"{len(objects)} image_id of annotations are of no image, such as {short_json(first)}")
    if not found.rows and not problems.count:
        problems.add(0, "it names no images")
    problems.raise_any(file)
    return found


def load_coco(file: str) -> dict[str, Any]:
    """Return the content of a COCO file, three lists of objects. Raises ListError."""
    try:
        data = parse_json(read_utf8(file))
    except json.JSONDecodeError as error:
        raise ListError([f"{file}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}"]) from error
    except (ValueError, RecursionError) as error:
        raise ListError([f"{file}: not valid JSON: {error}"]) from error
    keys = ("images", "annotations", "categories")
    if not isinstance(data, dict) or any(not isinstance(data.get(key), list) for key in keys):
        raise ListError([f"{file}: expected COCO's {FORM}, got {short_json(data)}"])
    for key in keys:
        if wrong := [entry for entry in data[key] if not isinstance(entry, dict)]:
            raise ListError([f"{file}: {key} must hold objects, got {short_json(wrong[0])}"])
    return data


def categories_of(data: dict[str, Any], problems: Problems) -> dict[int, dict[str, Any]]:
    """Return the categories by id, in the order of their ids; without an id 0 that heads others and has no objects."""
    heads = [entry.get("supercategory") for entry in data["categories"] if entry.get("id") != 0]
    is_used = any(type(number := entry.get("category_id")) is int and number == 0 for entry in data["annotations"])
    categories: dict[int, dict[str, Any]] = {}
    names: Counter[str] = Counter()
    for entry in data["categories"]:
        number, name = entry.get("id"), entry.get("name")
        if type(number) is int and number == 0 and isinstance(name, str) and name in heads and not is_used:
            continue  # Roboflow's, which may have a class's own name
        if type(number) is not int or not 0 <= number <= LARGEST_VALUE:
            problems.add(0, f"a category's id must be 0..{LARGEST_VALUE}, got {short_json(number)}")
        elif not isinstance(name, str) or not name.strip():
            problems.add(0, f"category {number} has no name")
        elif number in categories:
            problems.add(0, f'categories "{categories[number]["name"]}" and "{name}" have the same id {number}')
        else:
            categories[number] = {**entry, "name": name.strip()}
            names[name.strip()] += 1
    for name, count in names.items():
        if count > 1:
            problems.add(0, f'{count} categories are called "{shorten(name)}"')
    return dict(sorted(categories.items()))


def classes_of(categories: dict[int, dict[str, Any]]) -> tuple[MaskClass, ...]:
    """Return the classes, whose values are the categories' ids."""
    return named_classes([entry["name"] for entry in categories.values()], list(categories))


def objects_by_image(data: dict[str, Any], problems: Problems) -> dict[Any, list[Any]]:
    """Return the annotations by image_id, which must be the id of one image."""
    ids = Counter(number for entry in data["images"] if type(number := entry.get("id")) in (int, str))
    for number, count in ids.items():
        if count > 1:
            problems.add(0, f"{count} images have the same id {short_json(number)}")
    objects: defaultdict[Any, list[Any]] = defaultdict(list)
    for entry in data["annotations"]:
        number = entry.get("image_id")
        if type(number) in (int, str):
            objects[number].append(entry)
        else:
            problems.add(0, f"an annotation's image_id must be an image's id, got {short_json(number)}")
    return dict(objects)


def _row(
    entry: dict[str, Any],
    root: str,
    objects: dict[Any, list[Any]],
    categories: dict[int, dict[str, Any]],
    file: str,
    problems: Problems,
    allow_outside_root: bool,
) -> tuple[str, Annotation] | None:
    """Return an image's path and annotation, and take its objects out of `objects`."""
    name, number = entry.get("file_name"), entry.get("id")
    if not isinstance(name, str) or not name or "\0" in name or type(number) not in (int, str):
        problems.add(0, f"an image needs id and file_name, got {short_json(entry)}")
        return None
    own = objects.pop(number, [])
    inside = os.path.normpath(name).replace(os.sep, "/")
    if not allow_outside_root and (inside.split("/")[0] == ".." or Path(inside).is_absolute()):
        problems.add(0, f'file_name "{shorten_path(name)}" leaves the root folder {root}')
        return None
    path = Path(root, name).as_posix()
    if not os.path.isfile(path):  # noqa: PTH113
        in_images = folder_prefix(root) + "images/" + name
        hint = f"; set the root folder to {folder_prefix(root)}images" if os.path.isfile(in_images) else ""  # noqa: PTH113
        problems.add(0, f"image not found: {shorten_path(path)}{current_folder(path)}{hint}")
        return None
    try:
        annotation = _annotation(file, own, categories)
    except ImageError as error:
        return path, Annotation(file, problem=str(error))
    width, height = entry.get("width"), entry.get("height")
    if width and height and (type(width), type(height)) == (int, int):
        annotation = replace(annotation, size=(width, height))
    return path, annotation


def _annotation(file: str, objects: Sequence[dict[str, Any]], categories: dict[int, dict[str, Any]]) -> Annotation:
    boxes, names, ignored = [], [], []
    for entry in objects:
        where = f"annotation {short_json(entry.get('id'))}"
        number = entry.get("category_id")
        if type(number) is not int or number not in categories:
            raise ImageError(f"{where}: category_id {short_json(number)} is none of the categories")
        boxes.append(box_of(entry, where))
        names.append(categories[number]["name"])
        ignored.append(_is_crowd(entry.get("iscrowd"), where))
    array = np.array(boxes, np.float64).reshape(-1, 4)
    return Annotation(file, array, tuple(names), ignored=np.array(ignored, bool))


def _is_crowd(value: Any, where: str) -> bool:
    if value not in (None, 0, 1):  # True and False are
        raise ImageError(f"{where}: iscrowd must be 0 or 1, got {short_json(value)}")
    return bool(value)


def box_of(entry: dict[str, Any], where: str) -> list[float]:
    """Return left, top, right, bottom of bbox [x, y, width, height], or around the polygons. Raises ImageError."""
    box, polygons = entry.get("bbox"), entry.get("segmentation")
    if box is None or box == []:
        if not isinstance(polygons, list) or not all(are_numbers(part) and len(part) >= 6 for part in polygons):
            raise ImageError(f"{where} has neither bbox nor polygons")
        values = [value for part in polygons for value in part[: len(part) // 2 * 2]]
        if not values:
            raise ImageError(f"{where} has neither bbox nor polygons")
        return polygon_box(values)
    if not are_numbers(box) or len(box) != 4:
        raise ImageError(f"{where}: bbox must be [x, y, width, height], got {short_json(box)}")
    x, y, width, height = box
    if width < 0 or height < 0:
        raise ImageError(f"{where}: width and height of bbox must be at least 0, got {width:g} and {height:g}")
    return [x, y, x + width, y + height]


def are_numbers(values: Any) -> bool:
    """Return whether a value is a list of finite numbers."""
    return isinstance(values, list) and all(
        type(value) in (int, float) and abs(value) <= 1e7
        for value in values  # NaN is not
    )
