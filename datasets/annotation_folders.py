"""Folders of images with VOC XML or YOLO txt -> standard annotations, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from common.atomic_io import write_atomic
from data_loader.box_annotations import Annotation, read_annotation
from data_loader.box_classes import class_file, read_classes
from data_loader.box_folders import find_annotated
from data_loader.image_files import natural_sorted
from data_loader.samples import CLASS_NAMES_FILE
from datasets.errors import DatasetError
from datasets.files import Annotations
from datasets.image_sizes import decoded_sizes, upright_objects
from datasets.objects import ImageObject, objects_of, with_objects, within_image
from datasets.outcome import Outcome
from datasets.pictures import place_file
from datasets.records import NO_LABEL, Record, value
from datasets.tags import category_of_tags, check_known

VOC, YOLO = "voc", "yolo"
SUFFIXES = {VOC: ".xml", YOLO: ".txt"}


@dataclass
class AnnotatedFolder:
    """The images of a folder, by paths below it, with their annotations, and the names of the classes."""

    rows: list[tuple[str, Annotation]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def read_folder(root: Path, kind: str, tags: Mapping[str, int]) -> AnnotatedFolder:
    """Return a folder's images and annotations: images/ and labels/, or both in one folder.

    The classes are `tags`, else those of a classes.json, classes.txt or data.yaml there, else those that the
    annotations name, in natural order. Raises ListError, DatasetError.
    """
    pairs, left_out = find_annotated(str(root))
    left_out.print_note(root)
    found_kinds = {Path(path).suffix.lower() for _, path in pairs if path}
    if found_kinds - {SUFFIXES[kind]}:
        other = next(other for other, suffix in SUFFIXES.items() if suffix in found_kinds)
        raise DatasetError(f"--src {root}: it holds {SUFFIXES[other]} files; read them with extract/{other}")
    file = class_file(root)
    names = [found.name for found in read_classes(file)] if file else []
    if kind == YOLO and not names and not tags:
        raise DatasetError(
            f"--src {root}: YOLO's files have but numbers; name the classes in --tags or {CLASS_NAMES_FILE}"
        )
    if kind == YOLO and not names:
        names = category_of_tags(dict(tags))
    found = AnnotatedFolder()
    for image, path in pairs:
        annotation = read_annotation(path, names if kind == YOLO else ()) if path else Annotation("")
        found.rows.append((Path(image).relative_to(root).as_posix(), annotation))
    counts = Counter(name for _, annotation in found.rows for name in annotation.names)
    known = names or natural_sorted(counts)
    if tags:
        check_known(dict(tags), known, root)
    found.labels = dict(tags) or {name: label for label, name in enumerate(known)}
    return found


def folder_records(root: Path, found: AnnotatedFolder, outcome: Outcome) -> list[Record]:
    """Return the records of a folder; images that cannot be read, or whose annotation cannot be used, are left out."""
    records = []
    category = category_of_tags(found.labels) if found.labels else []
    sizes = decoded_sizes([root / path for path, _ in found.rows])
    for (path, annotation), size in zip(found.rows, sizes, strict=True):
        problem = f"its annotation {annotation.path}: {annotation.problem}" if annotation.problem else size.problem
        scale = np.tile(size.shown, 2) if annotation.is_relative else 1.0
        objects = []
        for box, name in zip((annotation.boxes * scale).tolist(), annotation.names, strict=True):
            if name in found.labels:
                label = found.labels[name]
                objects.append(ImageObject(box, label, category[label]))
            else:
                outcome.counts["objects of other classes, dropped"] += 1
        upright = problem or upright_objects(objects, annotation.size or (0, 0), size)
        if isinstance(upright, str):
            outcome.leave_out(path, upright)
            continue
        outcome.counts["difficult objects, whose mark is dropped"] += int(annotation.ignored.sum())
        width, height = size.shown
        record: Record = {"image_file": path, "width": width, "height": height}
        records.append(with_objects(record, within_image(upright, size.shown, outcome)))
    return records


def write_folder(found: Annotations, target: Path, kind: str, outcome: Outcome) -> int:
    """Write images/, labels/ and, of YOLO, classes.txt, as a training reads them; return the number of images.

    Paths become names: pond/7.jpg is pond-7.jpg. Objects without a class are dropped. Raises OSError.
    """
    names = flat_names([value(record, "image_file") for record in found.records])
    (target / "labels").mkdir(parents=True, exist_ok=True)
    if kind == YOLO:
        write_atomic(target / CLASS_NAMES_FILE, "".join(f"{name}\n" for name in found.category))
    done = 0
    for index, record in enumerate(found.records):
        path, size = value(record, "image_file"), (value(record, "width"), value(record, "height"))
        if not path or not all(size):
            outcome.leave_out(
                found.name(index), "it has no image_file" if not path else "width and height are not known"
            )
            continue
        objects = objects_of(record, found.category)
        named = [each for each in objects if each.label != NO_LABEL]
        outcome.counts["objects without a class, dropped"] += len(objects) - len(named)
        text = voc_text(names[path], size, named) if kind == VOC else yolo_text(size, named)
        try:
            place_file(found.folder / path, target / "images" / names[path], overwrite=outcome.overwrite)
        except OSError as error:
            outcome.leave_out(path, f"{error.filename}: {error.strerror}")
            continue
        stem = Path(names[path]).stem
        write_atomic(target / "labels" / (stem + SUFFIXES[kind]), text, durable=False)
        done += 1
    return done


def flat_names(paths: Sequence[str]) -> dict[str, str]:
    """Return a name for each path, - for /; paths of one stem keep their ending in it: a.jpg.jpg, a.png.png."""
    flat = {path: path.replace("/", "-") for path in paths}
    counts = Counter(Path(name).stem for name in flat.values())
    names = {path: name if counts[Path(name).stem] == 1 else name + Path(name).suffix for path, name in flat.items()}
    return (
        names if len(set(names.values())) == len(names) else {p: f"{i}-{n}" for i, (p, n) in enumerate(names.items())}
    )


def voc_text(name: str, size: tuple[int, int], objects: Sequence[ImageObject]) -> str:
    """Return a VOC XML, coordinates as they are."""
    root = Element("annotation")
    SubElement(root, "filename").text = name
    sides = SubElement(root, "size")
    for key, number in (("width", size[0]), ("height", size[1]), ("depth", 3)):
        SubElement(sides, key).text = str(number)
    for found in objects:
        entry = SubElement(root, "object")
        SubElement(entry, "name").text = found.name
        SubElement(entry, "difficult").text = "0"
        box = SubElement(entry, "bndbox")
        for key, side in zip(("xmin", "ymin", "xmax", "ymax"), found.box, strict=True):
            SubElement(box, key).text = str(side)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def yolo_text(size: tuple[int, int], objects: Sequence[ImageObject]) -> str:
    """Return YOLO's lines `class cx cy w h`, in shares of the image's sides."""
    lines = []
    for found in objects:
        (x0, y0, x1, y1), (width, height) = found.box, size
        shares = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
        lines.append(f"{found.label} {' '.join(map(repr, shares))}\n")
    return "".join(lines)
