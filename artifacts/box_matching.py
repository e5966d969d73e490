"""Which of the objects found in an image are right."""

from __future__ import annotations

import numpy as np

from artifacts.detections import Detections, areas, intersections
from data_loader.box_target import Boxes

MATCH_IOU = 0.5
HIT, MISS, IGNORED = 1, 0, -1  # what a found object is


def matched(found: Detections, truth: Boxes) -> np.ndarray:
    """Return HIT, MISS or IGNORED (n,) of each object found in an image, at MATCH_IOU, as COCO matches them.

    By falling score each takes the free object of its class that it overlaps most. One that gets none is ignored where
    half of it or more lies in an ignored object of its class.
    """
    kinds = np.full(len(found.scores), MISS)
    common = intersections(found.boxes.astype(np.float64), truth.boxes)  # (n, M)
    own, theirs = areas(found.boxes.astype(np.float64))[:, None], areas(truth.boxes)
    same = found.labels[:, None] == truth.labels
    overlaps = np.where(same & ~truth.ignored, common / np.maximum(own + theirs - common, 1e-9), 0.0)
    in_ignored = (np.where(same & truth.ignored, common / np.maximum(own, 1e-9), 0.0) >= MATCH_IOU).any(axis=1)
    is_free = np.ones(len(truth.labels), bool)
    for place in np.flatnonzero((overlaps >= MATCH_IOU).any(axis=1)):
        row = np.where(is_free, overlaps[place], 0.0)
        best = int(row.argmax())
        if row[best] >= MATCH_IOU:
            kinds[place], is_free[best] = HIT, False
    return np.where((kinds == MISS) & in_ignored, IGNORED, kinds)
