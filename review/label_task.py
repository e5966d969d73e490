"""A labelling: what is labelled with which classes, and the standard annotations that come out at Finish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets.files import Annotations, free_name, write_annotations
from datasets.objects import ImageObject, objects_of, with_objects
from datasets.outcome import Outcome
from datasets.pictures import take_along
from datasets.records import NO_LABEL, Record, value
from review.answers import class_name, is_drawable
from review.errors import RefusedError
from review.labels import KINDS, Labels, Size, checked_labels, draft_of, labelled

OTHERS = "labels of classes that --tags does not name, left out"


@dataclass
class LabelTask:
    """What `label/start` was asked for; `outcome` and `summary` say what came out."""

    kind: str  # of KINDS
    category: tuple[str, ...]
    target: Path
    ignore_incomplete: bool = False
    no_pictures: bool = False
    outcome: Outcome = field(default_factory=Outcome)
    summary: str = ""

    @property
    def head(self) -> dict[str, Any]:
        """Return what a journal of other labels would contradict."""
        return {"type": self.kind, "category": list(self.category)}

    def draft(self, record: Record, size: Size) -> tuple[Labels, str]:
        """Return what is laid before a person, and where it is from, as `draft_of`."""
        return draft_of(record, self.kind, self.category, size)

    def checked(self, found: Any, size: Size | None = None) -> Labels:
        """Return labels that may be kept, as `checked_labels`. Raises RefusedError."""
        return checked_labels(found, self.kind, len(self.category), size)

    def record(self, record: Record, labels: Labels) -> Record:
        """Return a record with a person's labels."""
        return labelled(record, labels, self.category)

    def with_classes(self, found: Annotations) -> Annotations:
        """Return annotations with this task's classes, by their names; labels of other classes are counted."""
        if found.category == self.category:
            return found
        indices = {name: index for index, name in enumerate(self.category)}
        known = found.category
        if not found.meta["meta"]["category"] and all(name.isdecimal() for name in known):
            known = self.category  # nothing names the classes: indices stay
        records = [self._with_classes(record, known, indices) for record in found.records]
        return replace(found, records=records, category=self.category)

    def write(self, found: Annotations, kept: Mapping[int, Labels], sizes: Mapping[int, Size]) -> Path:
        """Write the labelled records, and their images where the target is another folder; return the file's path.

        Raises RefusedError where nothing is left, and OSError.
        """
        self.outcome.left_out.clear()  # of a try that failed
        records = [
            self.record(_sized(found.records[index], sizes.get(index, (0, 0))), labels)
            for index, labels in sorted(kept.items())
            if not (self.ignore_incomplete and labels.get("label") == NO_LABEL)
        ]
        if not self.no_pictures and self.target.resolve() != found.folder.resolve():
            records = take_along(records, found.folder, self.target, self.outcome)
        if not records:
            raise RefusedError(409, "no image has a label yet")
        stem = f"{found.path.stem}_label"
        name = f"{stem}.json" if self.outcome.overwrite else free_name(self.target, stem)
        path = write_annotations(self.target, records, self.category, found.meta, name=name)
        objects = sum(len(value(record, "bboxes")) for record in records)
        self.summary = f"{path}: {len(records):,} records, {objects:,} objects, {len(self.category)} classes"
        return path

    def _with_classes(self, record: Record, known: Sequence[str], indices: Mapping[str, int]) -> Record:
        made = self._renamed(record, known, indices)
        predictions = value(record, "predictions")
        if predictions and is_drawable(predictions):
            made["predictions"] = self._renamed(predictions, known, indices)
        elif predictions:
            del made["predictions"]  # whose indices would be of other classes
        return made

    def _renamed(self, record: Record, known: Sequence[str], indices: Mapping[str, int]) -> Record:
        """Return a record, or predictions, with indices of this task's classes, without those of other classes."""
        made = dict(record)
        if name := class_name(record, known):
            made |= {"image_label": indices.get(name, NO_LABEL), "image_label_name": name if name in indices else ""}
            self.outcome.counts[OTHERS] += self.kind == KINDS[0] and name not in indices
        if objects := objects_of(record, known):
            kept: list[ImageObject] = []
            for each in objects:
                each.label = indices.get(each.name, NO_LABEL)
                if each.label != NO_LABEL:
                    kept.append(each)
            made = with_objects(made, kept)
            self.outcome.counts[OTHERS] += (len(objects) - len(kept)) * (self.kind != KINDS[0])
        return made


def _sized(record: Record, size: Size) -> Record:
    width, height = value(record, "width"), value(record, "height")
    return record if (width and height) or not all(size) else {**record, "width": size[0], "height": size[1]}
