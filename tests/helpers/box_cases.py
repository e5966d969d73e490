"""Objects and detections written as rows, and pycocotools' figures of them."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from artifacts.detections import Detections
from data_loader.box_target import Boxes

STATS = (
    *("map50_95", "map50", "map75", "map_small", "map_medium", "map_large"),
    *("", "", "recall_100", "recall_small", "recall_medium", "recall_large"),
)


def truth(*rows: tuple[Any, ...], size: tuple[int, int] = (640, 480)) -> Boxes:
    """Return objects of (label, left, top, right, bottom) or with a sixth value for ignored."""
    boxes = np.array([row[1:5] for row in rows], float).reshape(-1, 4)
    ignored = np.array([len(row) > 5 for row in rows], bool)
    return Boxes(boxes, np.array([row[0] for row in rows], np.int64), ignored, size)


def found(*rows: tuple[Any, ...]) -> Detections:
    """Return detections of (score, label, left, top, right, bottom), by falling score."""
    rows = tuple(sorted(rows, key=lambda row: -row[0]))
    boxes = np.array([row[2:] for row in rows], np.float32).reshape(-1, 4)
    labels, scores = np.array([row[1] for row in rows], np.int64), np.array([row[0] for row in rows], np.float32)
    return Detections(boxes, labels, scores)


def pycocotools(truths: list[Boxes], results: list[Detections]) -> dict[str, float]:
    """Return its figures by our names, -1 without objects, with at most 100 detections of a class in an image."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    annotations: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image, (objects, seen) in enumerate(zip(truths, results, strict=True), 1):
        for box, label, ignored in zip(objects.boxes, objects.labels, objects.ignored, strict=True):
            values = [float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": image, "category_id": int(label) + 1, "bbox": values},
                    **{"area": values[2] * values[3], "iscrowd": int(ignored)},
                }
            )
        for box, label, score in zip(seen.boxes.tolist(), seen.labels, seen.scores.tolist(), strict=True):
            values = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            rows.append({"image_id": image, "category_id": int(label) + 1, "bbox": values, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        base = coco.COCO()
        base.dataset = {
            "images": [{"id": image + 1, "width": 640, "height": 480} for image in range(len(truths))],
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": str(label)} for label in range(3)],
        }
        base.createIndex()
        evaluation = cocoeval.COCOeval(base, base.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {key: float(value) for key, value in zip(STATS, evaluation.stats, strict=True) if key}
