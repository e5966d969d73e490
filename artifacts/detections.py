"""From the output of a net that gives boxes to the objects in an image: the one place that knows scores and NMS."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from artifacts.metadata import ModelMetadata

SCORE, NMS, OFFSET = "score", "nms_iou", "score_offset"  # of the metadata's thresholds
DEFAULT_SCORE = 0.25  # where the metadata has none
LEAST_SCORE = 0.01  # of what a measure of found objects counts at all
SCORE_THRESHOLDS = np.arange(1, 100) / 100  # of which one is chosen, from LEAST_SCORE on
NMS_IOU = 0.6  # of two boxes of one class, above which the one of the lower score goes
MOST_CANDIDATES = 1000  # of an image, the highest scores
MOST_OBJECTS = 100  # of an image, as COCO counts


class ScoreMap(NamedTuple):
    """The score of a logit: the sigmoid of logit / temperature + offset, as a calibration fits them.

    It only rises with the logit, so that the same objects stay in the same order.
    """

    temperature: float = 1.0
    offset: float = 0.0

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return the scores float64 (...) of logits (...)."""
        with np.errstate(over="ignore"):  # exp of a logit below -709 is infinite, and the score 0
            return np.asarray(1 / (1 + np.exp(-(logits.astype(np.float64) / self.temperature + self.offset))))

    def logit_of(self, score: float) -> float:
        """Return the logit of a score; -inf for 0, inf for 1."""
        return (logit_of(score) - self.offset) * self.temperature


SIGMOID = ScoreMap()  # of a net without calibration


class Detections(NamedTuple):
    """The objects of an image, the highest score first: boxes (n, 4) float32, labels (n,) int64, scores (n,) float32.

    A box is left, top, right, bottom.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def find_objects(
    outputs: np.ndarray,
    score_threshold: float,
    nms_iou: float = NMS_IOU,
    most: int = MOST_OBJECTS,
    candidates: int = MOST_CANDIDATES,
    score_map: ScoreMap = SIGMOID,
) -> list[Detections]:
    """Return the objects of each image of outputs (N, A, 4 + K): boxes in pixels of the net's input, and logits.

    Each class of a position whose score is not below the threshold is a candidate; the highest `candidates` go through
    non-maximum suppression class by class, and the highest `most` of the rest stay. Equal scores stand in the order of
    positions, then classes.
    """
    least = score_map.logit_of(score_threshold)
    return [_of_image(rows, least, nms_iou, most, candidates, score_map) for rows in outputs]


def objects_of(outputs: np.ndarray, metadata: ModelMetadata) -> list[Detections]:
    """Return the objects of each image of outputs (N, A, 4 + K), by the net's own thresholds and scores."""
    thresholds = score_threshold_of(metadata), nms_iou_of(metadata)
    return find_objects(outputs, *thresholds, score_map=score_map_of(metadata))


def score_threshold_of(metadata: ModelMetadata) -> float:
    """Return the score that a net's objects have at least."""
    return metadata.thresholds.get(SCORE, DEFAULT_SCORE)


def nms_iou_of(metadata: ModelMetadata) -> float:
    """Return the IoU of two boxes of one class, above which a net's objects are one."""
    return metadata.thresholds.get(NMS, NMS_IOU)


def score_map_of(metadata: ModelMetadata) -> ScoreMap:
    """Return the scores of a net's logits: calibrated ones, or the sigmoid alone."""
    return ScoreMap(metadata.temperature or 1.0, metadata.thresholds.get(OFFSET, 0.0))


def logit_of(score: float) -> float:
    """Return the logit whose sigmoid is a score; -inf for 0, inf for 1."""
    return math.log(score / (1 - score)) if 0 < score < 1 else math.copysign(math.inf, score - 0.5)


def suppressed(boxes: np.ndarray, labels: np.ndarray, nms_iou: float, most: int) -> np.ndarray:
    """Return which of some boxes (n, 4) stay, as indices, at most `most`; they stand by falling score.

    A box goes where one before it, of its class and staying, overlaps it by more than `nms_iou`.
    """
    overlaps = (box_iou(boxes, boxes) > nms_iou) & (labels[:, None] == labels)  # (n, n)
    stays = np.ones(len(boxes), bool)
    kept: list[int] = []
    for index in range(len(boxes)):
        if stays[index]:
            kept.append(index)
            if len(kept) == most:
                break
            stays[index + 1 :] &= ~overlaps[index, index + 1 :]
    return np.array(kept, np.int64)


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return intersection over union (n, m) of boxes (n, 4) and others (m, 4)."""
    common = intersections(boxes, others)
    union = areas(boxes)[:, None] + areas(others) - common
    return common / np.maximum(union, 1e-9)


def paired_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return intersection over union (n,) of boxes (n, 4) and others (n, 4), pair by pair; 1 for two without size."""
    low, high = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    union = areas(boxes) + areas(others) - common
    return np.asarray(np.where(union > 0, common / np.maximum(union, 1e-9), 1.0))


def intersections(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the areas (n, m) that boxes (n, 4) and others (m, 4) have in common."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    sides = np.clip(np.minimum(boxes[:, None, 2:], others[:, 2:]) - low, 0, None)  # (n, m, 2)
    return np.asarray(sides[..., 0] * sides[..., 1])


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (n,) of boxes (n, 4)."""
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _of_image(
    rows: np.ndarray, least: float, nms_iou: float, most: int, candidates: int, score_map: ScoreMap
) -> Detections:
    logits = rows[:, 4:]  # (A, K)
    positions, labels = np.nonzero(logits >= least)
    found = logits[positions, labels]
    order = np.argsort(-found, kind="stable")[:candidates]
    boxes, labels = rows[positions[order], :4].astype(np.float32), labels[order]
    scores = score_map.scores(found[order]).astype(np.float32)
    kept = suppressed(boxes, labels, nms_iou, most)
    return Detections(boxes[kept], labels[kept].astype(np.int64), scores[kept])
