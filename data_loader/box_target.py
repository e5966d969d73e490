"""The target of detection: the boxes of an image's objects, which lie in their image and move with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from data_loader.band_image import Decoded
from data_loader.bands import band_image_size
from data_loader.box_annotations import MAX_OBJECTS, Annotation, read_annotation
from data_loader.box_classes import check_count, found_classes, named_classes
from data_loader.box_folders import coco_file, find_annotated
from data_loader.box_geometry import fitted, oriented, scaled_to, within
from data_loader.coco import CocoData, read_coco
from data_loader.decoding import MAX_PIXELS, TURNED, image_size
from data_loader.errors import ImageError
from data_loader.mask_classes import VOID, MaskClass, OtherClass
from data_loader.packs import array_of, list_keys
from data_loader.preprocess import Preprocess
from data_loader.samples import ListError, Sample, SampleList, shorten
from data_loader.targets import Target, TargetError, View

PADDING = -1.0  # of a batch's rows that hold no object
COLUMNS = 6  # left, top, right, bottom, label, whether it is ignored
LEAST_PX = 1.0  # of a side of a box; a smaller one is left out
SHOWN = 8


class Boxes(NamedTuple):
    """The objects of an image: boxes (M, 4) float64 in pixels of `size` (width, height), labels (M,), ignored (M,)."""

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    size: tuple[int, int]

    def packed(self) -> np.ndarray:
        """Return rows (M, 6) float32: the box, its label, 1 for an ignored object."""
        return np.column_stack([self.boxes, self.labels, self.ignored]).astype(np.float32)


@dataclass(frozen=True)
class BoxSamples(SampleList):
    """Images with their boxes, and the classes of these; `objects` are counted once all were looked at."""

    classes: tuple[MaskClass, ...] = field(kw_only=True)
    objects: tuple[int, ...] = field(default=(), kw_only=True)

    def class_counts(self) -> list[int]:
        """Return the number of objects of each class that are not ignored."""
        return list(self.objects)


class BoxTarget(Target):
    """Boxes of objects: from folders, COCO's JSON, or lists `image----annotation` of VOC XML or YOLO txt files.

    Without `classes` those that the training annotations name count; there must be `num_classes`. A value is `Boxes`;
    a batch is float32 (N, M, 6), of which `unpacked` makes boxes, labels and what is ignored.
    """

    noun = "annotation"
    files = ("annotation",)
    needs_scan = True

    def __init__(
        self,
        num_classes: int,
        classes: Sequence[MaskClass] = (),
        *,
        max_pixels: int = MAX_PIXELS,
        others: Sequence[OtherClass] = (),
        has_bands: bool = False,
    ) -> None:
        self.num_classes, self.classes, self.others = num_classes, tuple(classes), tuple(others)
        self.max_pixels, self.has_bands = max_pixels, has_bands
        self.class_names = tuple(found.name for found in classes)

    def parse(self, text: str, root: str) -> str:
        """Return an annotation's path; `from_files` makes the target of a line."""
        return text

    def from_files(self, paths: Sequence[str]) -> str:
        """Return the annotation's path; `completed` reads it."""
        return paths[-1]

    def describe(self, target: Any) -> str:
        """Return "annotation labels/1.xml"."""
        return f"{self.noun} {target[-1] if isinstance(target, tuple) else target}"

    def read_folder(self, root: str) -> SampleList:
        """Return the samples of a folder with images/ and labels/, or with a COCO file. Raises ListError."""
        if file := coco_file(root):
            return self._of_coco(read_coco(file, root), root, file)
        rows, left_out = find_annotated(root)
        samples = tuple(Sample(image, annotation) for image, annotation in rows)
        return self.completed(SampleList(samples, self.class_names, root, root, left_out=left_out))

    def read_annotations(self, file: str, root: str, *, allow_outside_root: bool) -> SampleList | None:
        """Return the samples of a COCO file, None for another file. Raises ListError."""
        if not file.lower().endswith(".json"):
            return None
        return self._of_coco(read_coco(file, root, allow_outside_root=allow_outside_root), root, file)

    record_keys = ("width", "height", *list_keys("bboxes", "labels"))

    def from_record(self, features: Mapping[str, Any], category: Sequence[str], name: str) -> Annotation:
        """Return the boxes in a packed record, with the names of the pack's classes. Raises TargetError."""
        try:
            boxes = array_of(features, "bboxes").astype(np.float64).reshape(-1, 4)
            labels = array_of(features, "labels").astype(np.int64)
            size = features["width"][0], features["height"][0]
        except (ValueError, KeyError, IndexError) as error:
            raise TargetError(f"its boxes cannot be read: {error}") from error
        if len(labels) != len(boxes) or (labels < 0).any() or (labels >= len(category)).any():
            raise TargetError(f"labels {labels.tolist()} of {len(boxes)} boxes must be 0..{len(category) - 1}")
        names = tuple(category[label] for label in labels)
        ignored = np.zeros(len(boxes), bool)
        return Annotation(name, boxes, names, ignored=ignored, size=size if all(size) else None)

    def completed(self, samples: SampleList) -> BoxSamples:
        """Return the list with the annotations that its targets name, read. Raises ListError."""
        if any(isinstance(sample.target, Annotation) for sample in samples.samples):  # of a pack
            return self._labelled(samples, [sample.target for sample in samples.samples])
        is_yolo = any(sample.target.lower().endswith(".txt") for sample in samples.samples)
        names = [str(label) for label in range(self.num_classes)] if is_yolo else ()  # whose files have but numbers
        target = self if self.classes or not is_yolo else BoxTarget(self.num_classes, named_classes(names))
        read = [
            read_annotation(sample.target, target.class_names) if sample.target else Annotation("")
            for sample in samples.samples
        ]
        return target._labelled(samples, read)

    def settled(self, first: SampleList) -> BoxTarget:
        """Return the target with the classes of the training list."""
        assert isinstance(first, BoxSamples)
        kept: dict[str, Any] = {"max_pixels": self.max_pixels, "others": self.others, "has_bands": self.has_bands}
        return BoxTarget(self.num_classes, first.classes, **kept)

    def load(self, sample: Sample) -> Boxes:
        """Return the boxes in the pixels of the image as it is decoded in full."""
        boxes: Boxes = sample.target
        return boxes

    def fit(self, preprocess: Preprocess, value: Boxes) -> np.ndarray:
        """Return the boxes where the image lies in the net's input, (M, 6) float32."""
        return fitted(preprocess, value.packed(), value.size)

    def of_cached(self, preprocess: Preprocess, sample: Sample, channels: np.ndarray) -> Boxes:
        """Return the boxes in the pixels of the fitted image."""
        rows = self.fit(preprocess, self.load(sample))  # (M, 6)
        boxes, labels, ignored = rows[:, :4].astype(np.float64), rows[:, 4].astype(np.int64), rows[:, 5] > 0
        return Boxes(boxes, labels, ignored, (preprocess.width, preprocess.height))

    def apply_view(
        self, view: View, images: Sequence[Decoded], mirrored: bool, value: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a view of the image uint8 (H, W, C), and the boxes (M, 6) moved with it."""
        moving: Any = view
        pixels, moved = moving(images[0], _rows_in(images[0], value), mirrored)
        return pixels, moved

    def apply_joined(
        self, view: View, parts: Sequence[tuple[Sequence[Decoded], Any]], mirrored: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a mosaic or a blend uint8 (H, W, C), and the boxes (M, 6) of all its images."""
        moving: Any = view
        pixels, moved = moving.joined([(images[0], _rows_in(images[0], value)) for images, value in parts], mirrored)
        return pixels, moved

    def collate(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Return rows (N, M, 6) float32 of all images, padded with -1; M is at least 1."""
        most = max(1, *(len(rows) for rows in values))
        batch = np.full((len(values), most, COLUMNS), PADDING, np.float32)
        for place, rows in zip(batch, values, strict=True):
            place[: len(rows)] = rows
        return batch

    # Before a training

    def scan(self, sample: Sample) -> tuple[Boxes, int]:
        """Return the boxes within the image, and how many were left out. Raises ImageError."""
        found: Annotation = sample.target
        if found.problem:
            raise ImageError(f"its annotation {found.path}: {found.problem}")
        if (count := len(found.boxes)) > MAX_OBJECTS:
            many = f"{count:,} objects, more than {MAX_OBJECTS:,} of one image; cut the image into smaller ones"
            raise ImageError(f"its annotation {found.path} has {many}")
        read_size = band_image_size if self.has_bands else image_size
        upright, stored, orientation = read_size(sample.path, self.max_pixels)
        if found.size not in (None, upright, stored):
            assert found.size is not None
            swapped = "; its sides are swapped" if found.size == upright[::-1] else ""
            sizes = f"{found.size[0]}x{found.size[1]}, the image is {upright[0]}x{upright[1]}"
            raise ImageError(f"its annotation {found.path} is of an image of {sizes}{swapped}")
        boxes = found.boxes * np.tile(upright, 2) if found.is_relative else found.boxes
        if orientation in TURNED and found.size == stored != upright:
            boxes = oriented(boxes, orientation, stored)
        boxes = within(boxes, upright)
        keeps = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_PX).all(axis=1)
        kept = Boxes(boxes[keeps], found.labels[keeps], found.ignored[keeps], upright)
        return kept, int((~keeps).sum())

    def scanned(self, samples: SampleList, scans: Sequence[tuple[Boxes, int]]) -> tuple[BoxSamples, list[str]]:
        """Return the list with its boxes, and lines about it. Raises ListError where there is not one object."""
        assert isinstance(samples, BoxSamples)
        counts = np.zeros(len(samples.class_names), np.int64)
        for boxes, _ in scans:
            counts += np.bincount(boxes.labels[~boxes.ignored], minlength=len(counts))
        if not counts.any():
            raise ListError([f"{samples.origin}: not one object in {len(scans)} images"])
        targets = tuple(
            replace(sample, target=boxes) for sample, (boxes, _) in zip(samples.samples, scans, strict=True)
        )
        kept = replace(samples, samples=targets, objects=tuple(map(int, counts)))
        return kept, list(_lines(kept, scans))

    def _of_coco(self, data: CocoData, root: str, origin: str) -> BoxSamples:
        """Return the samples of a COCO file; its categories are the classes where there are no others."""
        target = self
        if not self.classes:
            check_count(data.classes, self.num_classes, origin)
            target = BoxTarget(self.num_classes, data.classes)
        samples = SampleList(tuple(Sample(path, "") for path, _ in data.rows), target.class_names, root, origin)
        return target._labelled(samples, [annotation for _, annotation in data.rows])

    def _labelled(self, samples: SampleList, annotations: Sequence[Annotation]) -> BoxSamples:
        """Return the list with annotations whose names have become labels. Raises ListError for unknown names."""
        counts = Counter(name for found in annotations for name in found.names)
        try:
            classes = self.classes or found_classes(list(counts.elements()), self.num_classes, samples.origin)
        except ListError as error:  # a file that cannot be used may hold the missing class
            broken = [f"{found.path}: {found.problem}" for found in annotations if found.problem]
            raise ListError([*error.problems, *broken]) from error
        names_in_order = tuple(found.name for found in classes)
        labels = {name: label for label, name in enumerate(names_in_order)}
        labels |= {other.found.name: other.index for other in self.others}
        if unknown := [name for name in counts if name not in labels]:
            first = next(
                f"{sample.path} ({found.path})" if found.path != samples.origin else sample.path
                for sample, found in zip(samples.samples, annotations, strict=True)
                if unknown[0] in found.names
            )
            names = ", ".join(f'"{shorten(name)}" ({counts[name]})' for name in unknown[:SHOWN])
            known = ", ".join(names_in_order[:SHOWN])
            text = f"objects of unknown classes: {names}; the first is in {first}; known: {known}"
            raise ListError([f"{samples.origin}: {text}"])
        made = tuple(
            replace(sample, target=_with_labels(found, labels))
            for sample, found in zip(samples.samples, annotations, strict=True)
        )
        return BoxSamples(**{**vars(samples), "samples": made, "class_names": names_in_order}, classes=tuple(classes))


def _rows_in(image: Decoded, value: Boxes) -> np.ndarray:
    """Return the rows (M, 6) of an image as it was decoded: a JPEG may be so at half its size."""
    return scaled_to(value.packed(), value.size, image.size)


def _with_labels(found: Annotation, labels: Mapping[str, int]) -> Annotation:
    """Return an annotation with the labels of its names, without the objects whose label is VOID."""
    numbers = np.array([labels[name] for name in found.names], np.int64)
    keeps = numbers != VOID
    names = tuple(name for name, is_kept in zip(found.names, keeps, strict=True) if is_kept)
    kept = {"names": names, "labels": numbers[keeps], "boxes": found.boxes[keeps], "ignored": found.ignored[keeps]}
    return replace(found, **kept) if not keeps.all() else replace(found, labels=numbers)


def _lines(samples: BoxSamples, scans: Sequence[tuple[Boxes, int]]) -> list[str]:
    """Return what a split holds, in one line."""
    pairs = list(zip(samples.class_names, samples.objects, strict=True))
    shown = ", ".join(f"{name} {count:,}" for name, count in pairs[:SHOWN])
    parts = [f"objects: {shown}" + (f" and {len(pairs) - SHOWN} more classes" if len(pairs) > SHOWN else "")]
    left_out, ignored = sum(count for _, count in scans), sum(int(boxes.ignored.sum()) for boxes, _ in scans)
    empty = sum(not len(boxes.boxes) for boxes, _ in scans)
    if ignored:
        parts.append(f"{ignored} difficult or of a crowd, ignored")
    if left_out:
        parts.append(f"{left_out} of less than a pixel or outside their image, left out")
    if empty:
        parts.append(f"{empty} images without objects")
    missing = [name for name, count in pairs if not count]
    lines = [f"{samples.origin}: {'; '.join(parts)}"]
    if missing:
        lines.append(f"warning: {samples.origin}: no object of {', '.join(missing[:SHOWN])}")
    return lines
