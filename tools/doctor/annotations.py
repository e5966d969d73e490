"""The checks of standard annotations and their images; each file is a split, the first one the training's."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets.files import Annotations
from datasets.objects import objects_of
from datasets.records import NO_LABEL, OUTSIDE_PX, Record, value
from tools.doctor.checks import LEVELS, PROBLEM, WARNING
from tools.doctor.near_duplicates import duplicate_groups, near_duplicate_groups
from tools.doctor.scan import ScannedImages

SHOWN = 5


@dataclass(frozen=True)
class AnnotationFinding:
    """One finding, with the names of what it is about; of related records in one text."""

    level: str
    kind: str
    text: str
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AnnotationStudy:
    """The files with the scan of their records' images: a row for each record, file after file.

    `wrong` has the sentences about records that cannot be used, which have no row.
    """

    files: Sequence[Annotations]
    wrong: Sequence[str]
    images: ScannedImages

    @functools.cached_property
    def rows(self) -> list[tuple[int, int]]:
        """Return the file and the record of each row."""
        return [(split, index) for split, file in enumerate(self.files) for index in range(len(file.records))]

    def split(self, row: int) -> int:
        """Return the number of a row's file."""
        return self.rows[row][0]

    def record(self, row: int) -> Record:
        """Return a row's record."""
        split, index = self.rows[row]
        return self.files[split].records[index]

    def name(self, row: int) -> str:
        """Return how a finding names a row."""
        split, index = self.rows[row]
        file = self.files[split]
        return f"{file.path}: {file.name(index)}" if len(self.files) > 1 else file.name(index)

    def labels(self, row: int) -> Any:
        """Return what a row's record says of its image: the class, and each object's class and whole pixels."""
        record, category = self.record(row), self.files[self.split(row)].category
        label = value(record, "image_label")
        objects = [(found.name, *map(round, found.box)) for found in objects_of(record, category)]
        return category[label] if 0 <= label < len(category) else "", sorted(objects)


def check_annotations(study: AnnotationStudy) -> list[AnnotationFinding]:
    """Return what is wrong, the worst first."""
    duplicates = duplicate_groups(study.images)
    near = [group for group in near_duplicate_groups(study.images, duplicates) if group not in duplicates]
    found = [
        *_records(study),
        *_sizes(study),
        *_duplicates(study, duplicates, "the same image", PROBLEM),
        *_duplicates(study, near, "a near-duplicate", WARNING),
        *_clips(study),
        *_objects(study),
        *_classes(study),
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _records(study: AnnotationStudy) -> Iterator[AnnotationFinding]:
    if study.wrong:
        text = f"{len(study.wrong)} mistakes in records, which are not looked at further"
        yield AnnotationFinding(PROBLEM, "records", text, list(study.wrong))
    if study.images.errors:
        names = [f"{study.name(row)}: {reason}" for row, reason in sorted(study.images.errors.items())]
        yield AnnotationFinding(PROBLEM, "unreadable images", f"{len(names)} images cannot be read", names)


def _sizes(study: AnnotationStudy) -> Iterator[AnnotationFinding]:
    """Yield records whose size is not their image's, and boxes outside their image where the record names no size."""
    sizes, outside = [], []
    for row in range(len(study.rows)):
        if row in study.images.errors:
            continue
        record, (width, height) = study.record(row), study.images.sizes[row].tolist()
        said = (value(record, "width"), value(record, "height"))
        if all(said) and said != (width, height):
            sizes.append(f"{study.name(row)}: {said[0]}x{said[1]}, the image is {width}x{height}")
        for box in value(record, "bboxes"):
            if min(box[:2]) < -OUTSIDE_PX or box[2] > width + OUTSIDE_PX or box[3] > height + OUTSIDE_PX:
                outside.append(f"{study.name(row)}: {box} in an image of {width}x{height}")
    if sizes:
        yield AnnotationFinding(PROBLEM, "sizes", f"{len(sizes)} records are of images of another size", sizes)
    if outside:
        yield AnnotationFinding(PROBLEM, "boxes outside", f"{len(outside)} boxes lie outside their image", outside)


def _duplicates(
    study: AnnotationStudy, groups: Sequence[Sequence[int]], what: str, level: str
) -> Iterator[AnnotationFinding]:
    """Yield images in two splits, images with different labels, and those twice in one split."""
    leaks, contradicting, repeated = [], [], []
    for group in groups:
        names = " = ".join(study.name(row) for row in group)
        splits = [study.split(row) for row in group]
        if len(set(splits)) > 1:
            leaks.append(names)
        if any(study.labels(row) != study.labels(group[0]) for row in group[1:]):
            contradicting.append(names)
        elif len(set(splits)) < len(splits):
            repeated.append(names)
    kind = "near-duplicates" if level == WARNING else "duplicates"
    if leaks:
        yield AnnotationFinding(level, f"{kind} in two splits", f"{len(leaks)} times {what} in two files", leaks)
    if contradicting:
        text = f"{len(contradicting)} times {what} with other labels"
        yield AnnotationFinding(level, f"contradicting {kind}", text, contradicting)
    if repeated and level == PROBLEM:
        yield AnnotationFinding(WARNING, kind, f"{len(repeated)} times {what} twice in one file", repeated)


def _clips(study: AnnotationStudy) -> Iterator[AnnotationFinding]:
    splits: defaultdict[str, set[int]] = defaultdict(set)
    for row in range(len(study.rows)):
        if clip := value(study.record(row), "clip_tag"):
            splits[clip].add(study.split(row))
    names = [clip for clip, found in splits.items() if len(found) > 1]
    if names:
        text = f"{len(names)} clips have frames in two files, which show nearly the same"
        yield AnnotationFinding(PROBLEM, "clips in two splits", text, names)


def _objects(study: AnnotationStudy) -> Iterator[AnnotationFinding]:
    """Yield boxes that an image has twice, with two classes or with one."""
    contradicting, repeated = [], []
    for row in range(len(study.rows)):
        classes: defaultdict[tuple[float, ...], list[str]] = defaultdict(list)
        for found in objects_of(study.record(row), study.files[study.split(row)].category):
            classes[tuple(found.box)].append(found.name)
        for box, names in classes.items():
            text = f"{study.name(row)}: {list(box)} is {' and '.join(names)}"
            if len(set(names)) > 1:
                contradicting.append(text)
            elif len(names) > 1:
                repeated.append(text)
    if contradicting:
        text = f"{len(contradicting)} boxes have two classes"
        yield AnnotationFinding(PROBLEM, "contradicting boxes", text, contradicting)
    if repeated:
        yield AnnotationFinding(WARNING, "repeated boxes", f"{len(repeated)} boxes are there twice", repeated)


def _classes(study: AnnotationStudy) -> Iterator[AnnotationFinding]:
    """Yield the classes without an image or object: a problem in the first file, a warning in the others."""
    for split, file in enumerate(study.files):
        counts: Counter[int] = Counter()
        for record in file.records:
            counts.update(value(record, "labels"))
            counts[value(record, "image_label")] += 1
        missing = [name for label, name in enumerate(file.category) if not counts[label]]
        if missing:
            text = f"{file.path}: {len(missing)} of {len(file.category)} classes have no image and no object"
            yield AnnotationFinding(WARNING if split else PROBLEM, "classes without images", text, missing)
        unlabelled = sum(
            not value(record, "labels")
            and not value(record, "semantic_file")
            and value(record, "image_label") == NO_LABEL
            for record in file.records
        )
        if unlabelled:
            text = f"{file.path}: {unlabelled} of {len(file.records)} records have no label"
            yield AnnotationFinding(WARNING, "no label", text)
    for file in study.files[1:]:
        if file.category != study.files[0].category:
            text = f"{file.path}: its classes are not those of {study.files[0].path}, or in another order"
            yield AnnotationFinding(PROBLEM, "other classes", text, list(file.category))
