"""PASCAL VOC's average precision on cases that are counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from artifacts.coco_map import average_precision
from artifacts.detections import Detections
from artifacts.voc_ap import voc_average_precision
from data_loader.box_target import Boxes


def truth(*rows: Sequence[Any]) -> Boxes:
    """Return objects of rows (left, label, ignored), 10 pixels wide and high."""
    boxes = np.array([[left, 0, left + 10, 10] for left, *_ in rows], float).reshape(-1, 4)
    return Boxes(boxes, np.array([row[1] for row in rows], int), np.array([row[2] for row in rows], bool), (1000, 1000))


def found(*rows: Sequence[float]) -> Detections:
    """Return objects of rows (left, label, score), the highest score first."""
    boxes = np.array([[left, 0, left + 10, 10] for left, *_ in rows], np.float32).reshape(-1, 4)
    return Detections(
        boxes, np.array([row[1] for row in rows], np.int64), np.array([row[2] for row in rows], np.float32)
    )


def test_the_area_under_the_highest_precisions() -> None:
    """Right, wrong, right, wrong, right of 4 objects: recalls 1/4, 2/4, 3/4 at precisions 1, 2/3, 3/5."""
    truths = [truth((0, 0, 0), (100, 0, 0)), truth((0, 0, 0), (100, 0, 0))]
    objects = [found((0, 0, 0.9), (500, 0, 0.8), (100, 0, 0.7)), found((300, 0, 0.6), (0, 0, 0.5))]
    assert voc_average_precision(truths, objects, 1) == [pytest.approx((1 + 2 / 3 + 3 / 5) / 4)]


def test_a_later_higher_precision_counts_for_lower_recalls() -> None:
    """Wrong, right, right of 2 objects: precisions 1/2 and 2/3, of which the higher one counts for both."""
    objects = [found((500, 0, 0.9), (0, 0, 0.8), (100, 0, 0.7))]
    assert voc_average_precision([truth((0, 0, 0), (100, 0, 0))], objects, 1) == [pytest.approx(2 / 3)]


def test_the_second_on_an_object_is_wrong_where_coco_gives_it_another() -> None:
    truths = [truth((0, 0, 0), (3, 0, 0))]  # IoU 7 / 13 with each other
    objects = [found((0, 0, 0.9), (1, 0, 0.8))]  # the second overlaps the first object by 9 / 11, the other by 8 / 12
    assert voc_average_precision(truths, objects, 1) == [pytest.approx(1 / 2)]
    assert average_precision(truths, objects, 1).ap50 == [pytest.approx(1.0)]


def test_difficult_objects_are_neither_right_nor_wrong() -> None:
    truths = [truth((0, 0, 0), (100, 0, 1))]
    objects = [found((100, 0, 0.9), (101, 0, 0.85), (0, 0, 0.8))]
    assert voc_average_precision(truths, objects, 1) == [pytest.approx(1.0)]


def test_classes_are_counted_each_by_itself() -> None:
    truths = [truth((0, 0, 0), (100, 1, 0)), truth()]
    objects = [found((0, 1, 0.9), (100, 1, 0.8)), found((0, 2, 0.7))]
    assert voc_average_precision(truths, objects, 4) == [0.0, pytest.approx(0.5), None, None]
    assert voc_average_precision([truth(), truth((0, 0, 1))], objects, 1) == [None]
    assert voc_average_precision([truth((0, 0, 0))], [found()], 1) == [0.0]
