"""COCO's average precision, by faster-coco-eval."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from artifacts.detections import MOST_OBJECTS, Detections, areas
from data_loader.box_target import Boxes

AREAS = ("all", "small", "medium", "large")  # of an object in its image: below 32 x 32 pixels, below 96 x 96, above


class AveragePrecision(NamedTuple):
    """Means over the classes that have objects: AP and average recall by name; and AP of each class, None without.

    `precision50` is the precision of each class at IoU 0.5 and a recall of 0, 0.01, ... 1, whose mean is its `ap50`:
    the highest of any threshold with that recall at least, 0 for a recall that none has; nothing for a class without.

    `means` has map50_95, map50, map75, map_small, map_medium, map_large, recall_100, recall_small, recall_medium and
    recall_large, but for those of which there are no objects.
    """

    means: dict[str, float]
    ap50: list[float | None]
    ap50_95: list[float | None]
    precision50: list[list[float]]


def average_precision(truths: Sequence[Boxes], found: Sequence[Detections], num_classes: int) -> AveragePrecision:
    """Return COCO's figures of the objects found in images, in the images' pixels.

    At most MOST_OBJECTS an image count. Ignored objects are crowds to it: what lies half in them is neither hit nor
    miss.
    """
    # (10, 101, K, 4) and (10, K, 4), -1 where there are no objects
    precision, recall = _evaluated(_dataset(truths, num_classes), _results(found), num_classes)
    means = {"map50_95": precision[..., 0], "map50": precision[0, ..., 0], "map75": precision[5, ..., 0]}
    means |= {f"map_{name}": precision[..., place] for place, name in enumerate(AREAS) if place}
    means |= {f"recall_{name if place else 100}": recall[..., place] for place, name in enumerate(AREAS)}
    known = {name: _mean(values) for name, values in means.items()}
    return AveragePrecision(
        {name: value for name, value in known.items() if value is not None},
        [_mean(precision[0, :, label, 0]) for label in range(num_classes)],
        [_mean(precision[:, :, label, 0]) for label in range(num_classes)],
        [curve.tolist() if curve[0] > -1 else [] for curve in precision[0, ..., 0].T],
    )


def _evaluated(
    dataset: dict[str, Any], results: list[dict[str, Any]], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    import faster_coco_eval  # late: other tasks need none of it

    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    truth = faster_coco_eval.COCO(dataset)
    evaluator = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(results), "bbox")
    evaluator.params.maxDets = [MOST_OBJECTS]
    evaluator.evaluate()
    evaluator.accumulate()
    precision, recall = (np.asarray(evaluator.eval[key]) for key in ("precision", "recall"))
    thresholds, places = len(evaluator.params.iouThrs), len(AREAS)
    precision = precision.reshape(thresholds, -1, num_classes, places)  # but for the one number of detections
    return precision, recall.reshape(thresholds, num_classes, places)


def _dataset(truths: Sequence[Boxes], num_classes: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, truth in enumerate(truths):
        rows = zip(_xywh(truth.boxes), truth.labels.tolist(), truth.ignored.tolist(), areas(truth.boxes), strict=True)
        for box, label, ignored, area in rows:
            number = len(annotations) + 1
            values = {"id": number, "image_id": image + 1, "category_id": label + 1, "bbox": box}
            annotations.append({**values, "area": float(area), "iscrowd": int(ignored)})
    return {
        "images": [
            {"id": image + 1, "width": truth.size[0], "height": truth.size[1]} for image, truth in enumerate(truths)
        ],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": str(label)} for label in range(num_classes)],
    }


def _results(found: Sequence[Detections]) -> list[dict[str, Any]]:
    return [
        {"image_id": image + 1, "category_id": label + 1, "bbox": box, "score": score}
        for image, objects in enumerate(found)
        for box, label, score in zip(
            _xywh(objects.boxes), objects.labels.tolist(), objects.scores.tolist(), strict=True
        )
    ]


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    values: list[list[float]] = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    return values


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of what is not -1, None where all is."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None
