"""The objects of standard annotations -> images of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_loader.decoding import decode
from data_loader.errors import ImageError
from datasets.files import Annotations
from datasets.images import save_image
from datasets.objects import ImageObject, moved, objects_of, with_objects
from datasets.outcome import Outcome
from datasets.records import Record, value

KEPT = ("tag", "clip_tag", "timestamp")

Window = tuple[int, int, int, int]  # left, top, right, bottom


def crop_objects(
    found: Annotations, target: Path, ratio: float, *, is_square: bool, outcome: Outcome
) -> Iterator[Record]:
    """Yield a record for each object, its crop written below the target; images that cannot be read are left out.

    An object's box is made larger about its middle, by `ratio` of its larger side, or of both sides where the crop is
    not to be square, and cut at the image's border. Box, rings and joints move along.
    """
    taken: set[str] = set()
    for index, record in enumerate(found.records):
        objects = objects_of(record, found.category)
        if not objects:
            continue
        try:
            image = decode(str(found.folder / value(record, "image_file")))
        except ImageError as error:
            outcome.leave_out(found.name(index), str(error))
            continue
        for number, each in enumerate(objects):
            window = crop_window(each.box, image.size, ratio, is_square=is_square)
            made = _cropped(record, each, number, window, taken)
            path = made["image_file"]
            try:
                save_image(image.crop(window), target / path, is_jpeg=False, overwrite=outcome.overwrite)
            except FileExistsError as error:
                outcome.leave_out(path, str(error.strerror))
            else:
                yield made


def crop_window(box: list[float], size: tuple[int, int], ratio: float, *, is_square: bool) -> Window:
    """Return the whole pixels of a crop around a box, within an image of (width, height); at least one pixel."""
    x0, y0, x1, y1 = box
    sides = (x1 - x0, y1 - y0)
    if is_square:
        sides = (max(sides), max(sides))
    wide, high = (side * (1 + ratio) / 2 for side in sides)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    left, top = max(0, math.floor(x - wide)), max(0, math.floor(y - high))
    right, bottom = min(size[0], math.ceil(x + wide)), min(size[1], math.ceil(y + high))
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _cropped(record: Record, found: ImageObject, number: int, window: Window, taken: set[str]) -> Record:
    """Return the record of an object's crop, whose path is none of those that are taken."""
    class_name = (found.name or str(found.label)).replace("/", "-").replace("\\", "-")
    class_name = class_name if class_name.strip(".") else "-" * len(class_name)  # a folder's name, but not ..
    flat = value(record, "image_file").replace("/", "-")
    path = f"images/{class_name}/{flat}_box_{number}_label_{class_name}.png"
    while path in taken:  # a/b.jpg and a-b.jpg
        path = f"{path.removesuffix('.png')}-.png"
    taken.add(path)
    shift = np.array([window[0], window[1]] * 2, np.float64)
    made: Record = {key: record[key] for key in KEPT if key in record}
    made |= {"image_file": path, "width": window[2] - window[0], "height": window[3] - window[1]}
    made |= {"image_label": found.label, "image_label_name": found.name}
    return with_objects(made, [moved(found, lambda boxes: boxes - shift)])
