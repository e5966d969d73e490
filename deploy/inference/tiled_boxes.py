"""Objects of large images: found tile by tile, and joined where tiles overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts.detections import areas, box_iou, intersections, objects_of
from artifacts.metadata import ModelMetadata
from deploy.inference.box_prediction import BoxPrediction, FoundObject
from deploy.inference.geo_images import GeoImage

BORDER_PX = 1.5  # of a box from its tile's border, within which it may be a part of an object
MOSTLY = 0.5  # share of a cut box that lies in another one, from which it is a part of the same object


@dataclass(frozen=True)
class TiledBoxes(BoxPrediction):
    """Objects that were found in tiles; `geo` is the file, where it was read by rows."""

    geo: GeoImage | None = None


@dataclass(frozen=True)
class Candidates:
    """Boxes (n, 4) in an image's pixels, labels (n,), scores (n,), and which were cut by a tile's border (n,)."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    is_cut: np.ndarray


def candidates_of(
    outputs: np.ndarray, corners: Sequence[tuple[int, int]], metadata: ModelMetadata, size: tuple[int, int]
) -> Iterator[Candidates]:
    """Yield the objects of each tile, outputs (n, A, 4 + K), whose left and top in the image are its corner."""
    width, height = metadata.preprocess.width, metadata.preprocess.height
    for found, (left, top) in zip(objects_of(outputs, metadata), corners, strict=True):
        inner = np.clip(found.boxes, 0, [width, height, width, height])
        boxes = np.clip(inner + np.array([left, top, left, top]), 0, [size[0], size[1], size[0], size[1]])
        is_cut = (inner[:, 0] < BORDER_PX) & (left > 0) | (inner[:, 1] < BORDER_PX) & (top > 0)
        is_cut |= (inner[:, 2] > width - BORDER_PX) & (left + width < size[0])
        is_cut |= (inner[:, 3] > height - BORDER_PX) & (top + height < size[1])
        is_there = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        yield Candidates(boxes[is_there], found.labels[is_there], found.scores[is_there], is_cut[is_there])


def joined_objects(parts: Sequence[Candidates], nms_iou: float) -> tuple[FoundObject, ...]:
    """Return the objects of an image from those of its tiles, the highest score first.

    Whole boxes go before cut ones, and higher scores before lower ones: a whole box goes where one before it, of its
    class, overlaps it by more than `nms_iou`; a cut one where half of it lies in one before it.
    """
    boxes = np.concatenate([part.boxes for part in parts]).astype(np.float64)
    labels, scores, is_cut = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "scores", "is_cut")
    )
    kept: list[int] = []
    by_label: dict[int, list[int]] = {}
    for index in np.lexsort((-scores, is_cut)).tolist():
        same = by_label.setdefault(int(labels[index]), [])
        one, others = boxes[[index]], boxes[same]
        if same and is_cut[index]:
            goes = (intersections(one, others)[0] / max(float(areas(one)[0]), 1e-9) > MOSTLY).any()
        else:
            goes = bool(same) and (box_iou(one, others)[0] > nms_iou).any()
        if not goes:
            same.append(index)
            kept.append(index)
    kept.sort(key=lambda index: -scores[index])
    return tuple(FoundObject(int(labels[i]), float(scores[i]), _box(boxes[i])) for i in kept)


def _box(values: np.ndarray) -> tuple[float, float, float, float]:
    left, top, right, bottom = (round(float(value), 2) for value in values)
    return left, top, right, bottom
