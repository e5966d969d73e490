"""Annotations of one image: VOC XML and YOLO txt to boxes with the names of their classes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.parsers import expat

import numpy as np

from data_loader.errors import ImageError
from data_loader.samples import shorten

MAX_BYTES = 4_000_000  # of an annotation; the largest of COCO's would have 0.03 MB
MAX_OBJECTS = 20_000  # of an image; a loss takes memory for each at each position
MAX_DEPTH = 16  # of elements in each other; VOC's parts of a person lie five deep
CORNERS = ("xmin", "ymin", "xmax", "ymax")
SUFFIXES = (".xml", ".txt")
CHINESE = re.compile(rb"""<\?xml[^>]*\sencoding\s*=\s*["'](?i:gbk|gb2312|gb18030)["']""")


@dataclass(frozen=True, eq=False)
class Annotation:
    """The objects of one image as its annotation has them.

    `boxes` (M, 4) float64 are left, top, right, bottom in the image's pixels, or in shares of its sides where
    `is_relative`. `names` are their classes; `labels` (M,) int64 the same as indices, once the classes are known.
    `ignored` (M,) objects, which are difficult or a crowd, are neither hit nor miss. `size` (width, height) is what the
    annotation says of the image, or None. `problem` is why the annotation cannot be used, or "". `boxes_left_out`
    counts the boxes of no size, which are no longer in it.
    """

    path: str
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    names: tuple[str, ...] = ()
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    size: tuple[int, int] | None = None
    is_relative: bool = False
    problem: str = ""
    boxes_left_out: int = 0


def read_annotation(path: str, class_names: Sequence[str] = ()) -> Annotation:
    """Return the objects of a VOC XML or YOLO txt file, by its ending; what is wrong with it is its `problem`.

    `class_names` are those that YOLO's numbers count; without them a class is called by its number.
    """
    try:
        data = _read(path)
        return read_voc(path, data) if path.lower().endswith(".xml") else read_yolo(path, data, class_names)
    except ImageError as error:
        return Annotation(path, problem=str(error))


def read_voc(path: str, data: bytes) -> Annotation:
    """Return the objects of a VOC XML. Raises ImageError with the reason.

    Coordinates are taken as they stand. Parts of an object, file name and folder do not count.
    """
    root = _parsed(data)
    objects = root.findall("object")
    if not objects and any(part.tag.lower() in ("object", "bndbox") for part in root.iter()):
        raise ImageError("its objects are no <object> right within <annotation>, as VOC XML has them")
    rows, names, ignored = [], [], []
    for number, found in enumerate(objects, 1):
        name = (found.findtext("name") or "").strip()
        if not name:
            raise ImageError(f"object {number} has no name")
        where = f'object {number} ("{shorten(name)}")'
        boxes_there = found.findall("bndbox")
        if len(boxes_there) != 1:
            raise ImageError(f"{where} has {len(boxes_there) or 'no'} bndbox")
        (box,) = boxes_there
        rows.append(checked_corners([_number(box.findtext(key), f"{where}: {key}") for key in CORNERS], where))
        names.append(name)
        ignored.append(_is_difficult(found.findtext("difficult"), where))
    boxes = np.array(rows, np.float64).reshape(-1, 4)
    return Annotation(path, boxes, tuple(names), ignored=np.array(ignored, bool), size=_voc_size(root))


def read_yolo(path: str, data: bytes, class_names: Sequence[str]) -> Annotation:
    """Return the objects of a YOLO txt: `class cx cy w h`, or `class x1 y1 x2 y2 ...` of a polygon, in shares.

    Raises ImageError with the reason.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ImageError("it is no UTF-8 text") from error
    rows, names = [], []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts:
            continue
        where = f"line {number}"
        if len(parts) != 5 and (len(parts) < 7 or len(parts) % 2 == 0):
            form = "class cx cy w h, or class x1 y1 x2 y2 x3 y3 ... of a polygon"
            raise ImageError(f"{where} has {len(parts)} values; write {form}")
        if not parts[0].isdecimal() or len(parts[0]) > 9:
            raise ImageError(f'{where}: the class must be a whole number, got "{shorten(parts[0])}"')
        label = int(parts[0])
        if class_names and label >= len(class_names):
            raise ImageError(f"{where}: class {label} is outside 0..{len(class_names) - 1}")
        values = [_number(part, f"{where}: a coordinate") for part in parts[1:]]
        if any(not -1 <= value <= 2 for value in values):
            raise ImageError(f"{where}: coordinates are shares of the image's sides, from 0 to 1, got {values[:4]}")
        if len(values) > 4 and max(values) > 1.5:
            hint = "key points (YOLO's pose) are not read: keep class cx cy w h of each line"
            raise ImageError(f"{where}: a polygon's coordinates are from 0 to 1, got {max(values):g}; {hint}")
        rows.append(_yolo_box(values, where))
        names.append(class_names[label] if class_names else str(label))
    boxes = np.array(rows, np.float64).reshape(-1, 4)
    return Annotation(path, boxes, tuple(names), ignored=np.zeros(len(rows), bool), is_relative=True)


def checked_corners(corners: Sequence[float], where: str) -> Sequence[float]:
    """Return left, top, right, bottom. Raises ImageError where left and right, or top and bottom, are swapped."""
    left, top, right, bottom = corners
    for low, high, names in ((left, right, "xmin and xmax"), (top, bottom, "ymin and ymax")):
        if low > high:
            raise ImageError(f"{where}: {names} are swapped: {low:g} and {high:g}")
    return corners


def polygon_box(values: Sequence[float]) -> list[float]:
    """Return left, top, right, bottom around a polygon x1, y1, x2, y2, ..."""
    xs, ys = values[0::2], values[1::2]
    return [min(xs), min(ys), max(xs), max(ys)]


def _yolo_box(values: Sequence[float], where: str) -> list[float]:
    if len(values) > 4:
        return polygon_box(values)
    x, y, width, height = values
    if width < 0 or height < 0:
        raise ImageError(f"{where}: width and height must be at least 0, got {width:g} and {height:g}")
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"it cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ImageError(f"it has more than {MAX_BYTES // 1_000_000} MB, which no annotation of one image has")
    return data


def _parsed(data: bytes) -> Element:
    """Return the root of an XML; it may declare neither a document type nor entities. Raises ImageError."""
    if not data.strip():
        raise ImageError("it is empty")
    builder, parser, open_elements = TreeBuilder(), expat.ParserCreate(), 0
    if CHINESE.match(data):  # which expat does not know
        try:
            data, parser = data.decode("gb18030").encode(), expat.ParserCreate("utf-8")
        except UnicodeDecodeError as error:
            raise ImageError(f"it is no valid XML: it is not in the encoding that it declares: {error}") from error

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal open_elements
        open_elements += 1
        if open_elements > MAX_DEPTH:
            raise ImageError(f"its elements lie more than {MAX_DEPTH} deep in each other")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal open_elements
        open_elements -= 1
        builder.end(tag)

    def refuse(*_: Any) -> None:
        raise ImageError("it declares a document type or entities, which an annotation does not need")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(data, True)
        root: Element = builder.close()
    except (expat.ExpatError, ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise ImageError(f"it is no valid XML: {error}") from error
    if root.tag != "annotation":
        raise ImageError(f'its outermost element is "{shorten(root.tag)}", not "annotation" as in VOC XML')
    return root


def _number(text: str | None, where: str) -> float:
    try:
        value = float((text or "").strip().replace("_", "x"))  # Python would take 1_0 for 10
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1e7:
        raise ImageError(f'{where} must be a number, got "{shorten((text or "").strip())}"')
    return value


def _is_difficult(text: str | None, where: str) -> bool:
    value = (text or "").strip()
    if value not in ("", "0", "1"):
        raise ImageError(f'{where}: difficult must be 0 or 1, got "{shorten(value)}"')
    return value == "1"


def _voc_size(root: Element) -> tuple[int, int] | None:
    """Return (width, height); None where they are missing, or 0 as some tools write."""
    texts = [root.findtext(f"size/{key}") for key in ("width", "height")]
    if texts == [None, None]:
        return None
    width, height = (_number(text, f"size/{key}") for text, key in zip(texts, ("width", "height"), strict=True))
    return (round(width), round(height)) if width and height else None
