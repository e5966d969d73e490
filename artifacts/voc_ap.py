"""PASCAL VOC's average precision, as its development kit computes it from 2010 on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from artifacts.box_matching import HIT, IGNORED, MATCH_IOU, MISS
from artifacts.detections import Detections, box_iou
from data_loader.box_target import Boxes


def voc_average_precision(truths: Sequence[Boxes], found: Sequence[Detections], num_classes: int) -> list[float | None]:
    """Return the average precision of each class at IoU 0.5, None of one without objects (Everingham et al. 2010).

    An object found counts for the true one of its class that it overlaps most, and is wrong where that has been found
    before, by a higher score: COCO would give it another one that is free. What overlaps a difficult object most is
    neither right nor wrong. The precision at a recall is the highest at that recall or a higher one, and the area under
    it counts.
    """
    return [_of_class(truths, found, label) for label in range(num_classes)]


def _of_class(truths: Sequence[Boxes], found: Sequence[Detections], label: int) -> float | None:
    total = sum(int(((truth.labels == label) & ~truth.ignored).sum()) for truth in truths)
    if not total:
        return None
    scores, kinds = [np.empty(0)], [np.empty(0, np.int64)]
    for truth, objects in zip(truths, found, strict=True):
        own = objects.labels == label
        scores.append(objects.scores[own])
        kinds.append(_kinds(objects.boxes[own], truth, label))
    counted = np.concatenate(kinds)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits = counted[order][counted[order] != IGNORED] == HIT
    recall = np.cumsum(hits) / total
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * highest).sum())


def _kinds(boxes: np.ndarray, truth: Boxes, label: int) -> np.ndarray:
    """Return HIT, MISS or IGNORED of boxes (n, 4) of a class, which stand by falling score."""
    mine = truth.labels == label
    if not mine.any():
        return np.full(len(boxes), MISS)
    overlaps, ignored = box_iou(boxes.astype(np.float64), truth.boxes[mine]), truth.ignored[mine]  # (n, M)
    kinds, taken = np.full(len(boxes), MISS), set[int]()
    for place, row in enumerate(overlaps):
        best = int(row.argmax())
        if row[best] >= MATCH_IOU and ignored[best]:
            kinds[place] = IGNORED
        elif row[best] >= MATCH_IOU and best not in taken:
            kinds[place] = HIT
            taken.add(best)
    return kinds
