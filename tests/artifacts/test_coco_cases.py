"""COCO's average precision on odd cases, beside values worked out by hand and beside pycocotools.

The precision at 101 recalls, 0, 0.01 to 1, is averaged, each the highest at that recall or a higher one; over the IoUs
0.5, 0.55 to 0.95 for map50_95. So one of two objects found counts 51 of 101: the recalls from 0 to 0.5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.coco_map import average_precision
from artifacts.detections import Detections
from data_loader.box_target import Boxes, BoxTarget
from tests.helpers.box_cases import found, pycocotools, truth

Case = tuple[list[Boxes], list[Detections], dict[str, float | None]]

A, B = (0, 10, 10, 110, 110), (0, 200, 10, 300, 110)  # 100 x 100: large
S, OTHER_S = (0, 400, 300, 420, 320), (0, 450, 300, 470, 320)  # 20 x 20: small
X, Y = (0, 0, 0, 100, 100), (0, 30, 0, 130, 100)  # their IoU is 70 / 130
EDGE = (0, 0, 0, 100, 100)
HALF = 51 / 101


def one(objects: Boxes, seen: Detections, map50: float | None, **others: float | None) -> Case:
    """Return a case of one image."""
    return [objects], [seen], {"map50": map50, **others}


def cut(width: float) -> Detections:
    """Return EDGE found by this width: its IoU is width / 100."""
    return found((0.9, 0, 0, 0, width, 100))


def square(side: float) -> tuple[Boxes, Detections]:
    """Return an object of this side, found."""
    box = (0, 10, 10, 10 + side, 10 + side)
    return truth(box), found((0.9, *box))


CASES: dict[str, Case] = {
    # what is there, and what is found
    "all found": one(truth(A, B), found((0.9, *A), (0.8, *B)), 1, map50_95=1, recall_100=1),
    "half found": one(truth(A, B), found((0.9, *A)), HALF, recall_100=0.5),
    "a mistake first": one(truth(A), found((0.9, *B), (0.8, *A)), 0.5),
    "a mistake last": one(truth(A), found((0.9, *A), (0.8, *B)), 1),
    "twice": one(truth(A, B), found((0.9, *A), (0.8, *A), (0.7, *B)), (51 + 50 * 2 / 3) / 101),
    "of another class": one(truth(A), found((0.9, 1, *A[1:])), 0),
    "nothing": one(truth(A, S), found(), 0, map50_95=0, recall_100=0, map_small=0, map_large=0, map_medium=None),
    "no objects": one(truth(), found((0.9, *A)), None, map50_95=None, recall_100=None),
    "no objects, nothing found": one(truth(), found(), None, map50_95=None, recall_100=None),
    "nine of ten": one(
        truth(*[(0, 60 * i, 0, 60 * i + 50, 50) for i in range(10)]),
        found(*[(0.9, 0, 60 * i, 0, 60 * i + 50, 50) for i in range(9)]), 91 / 101, recall_100=0.9,
    ),
    "hit, miss, hit, hit of three": one(  # 34 recalls up to a third, then 3 of 4
        truth(A, B, S), found((0.9, *A), (0.8, 0, 500, 0, 600, 99), (0.7, *B), (0.6, *S)), (34 + 67 * 3 / 4) / 101
    ),
    "hit, miss, miss, hit of four": one(
        truth(A, B, S, OTHER_S), found((0.9, *A), (0.8, 0, 500, 0, 600, 99), (0.7, 0, 500, 200, 600, 299), (0.6, *B)),
        (26 + 25 / 2) / 101, recall_100=0.5,
    ),
    "nested": one(truth(X, (0, 20, 20, 80, 80)), found((0.9, 0, 20, 20, 80, 80), (0.8, *X)), 1),
    "one box over all": one(truth(A), found((0.9, 0, 0, 0, 640, 480), (0.8, *A)), 0.5),
    # images
    "an empty image": ([truth(), truth(A)], [found((0.95, *A)), found((0.9, *A))], {"map50": 0.5}),
    "empty images, nothing found": ([truth()] * 5 + [truth(A)], [found()] * 5 + [found((0.9, *A))], {"map50": 1}),
    "a weak mistake in an empty image": ([truth(), truth(A)], [found((0.1, *A)), found((0.9, *A))], {"map50": 1}),
    "the other image's object": ([truth(A), truth(B)], [found((0.9, *B)), found((0.8, *A))], {"map50": 0}),
    # equal scores: images in their order, and in them the order of the list
    "equal scores, the right one first": one(truth(A), found((0.5, *A), (0.5, *B)), 1),
    "equal scores, the wrong one first": one(truth(A), found((0.5, *B), (0.5, *A)), 0.5),
    "equal scores, the right image first": ([truth(A), truth()], [found((0.5, *A)), found((0.5, *B))], {"map50": 1}),
    "equal scores, the wrong image first": ([truth(), truth(A)], [found((0.5, *B)), found((0.5, *A))], {"map50": 0.5}),
    "scores of 0 and 1": one(truth(A), found((1.0, *B), (0.0, *A)), 0.5),
    "a score of 0.001": one(truth(A), found((0.001, *A)), 1),
    # IoU
    "IoU of exactly 0.5": one(truth(EDGE), cut(50), 1, map75=0, map50_95=0.1, recall_100=0.1),
    "IoU of 0.499": one(truth(EDGE), cut(49.9), 0, recall_100=0),
    "IoU of exactly 0.75": one(truth(EDGE), cut(75), 1, map75=1, map50_95=0.6),
    "IoU of 0.92": one(truth(EDGE), cut(92), 1, map50_95=0.9),
    "IoU of 0.99": one(truth(EDGE), cut(99), 1, map50_95=1),
    "half beside it": one(truth(EDGE), found((0.9, 0, 50, 0, 150, 100)), 0),  # 50 / 150
    "two of other IoUs": one(  # the second counts at 0.5, 0.55 and 0.6
        truth(A, B), found((0.9, *A), (0.8, 0, 200, 10, 262, 110)), 1, map75=HALF, map50_95=(3 + 7 * HALF) / 10
    ),
    "the second takes what is left": one(truth(X, Y), found((0.9, 0, 5, 0, 105, 100), (0.8, *X)), 1),  # Y, 70 / 130
    "a worse box of a higher score": one(  # 90 / 110 of X at 0.9; X itself is then a mistake, at 0.85 and more the hit
        truth(X), found((0.9, 0, 10, 0, 110, 100), (0.8, *X)), 1, map75=1, map50_95=(7 + 3 * 0.5) / 10
    ),
    # duplicates
    "two objects in one place, one found": one(truth(A, A), found((0.9, *A)), HALF),
    "two objects in one place, both found": one(truth(A, A), found((0.9, *A), (0.8, *A)), 1),
    "two in one place, found three times": one(truth(A, A), found((0.9, *A), (0.8, *A), (0.7, *A)), 1),
    # numbers
    "100 found, the last right": one(truth(A), found(*[(0.9, *B)] * 99, (0.1, *A)), 0.01),
    "101 found, the last right": one(truth(A), found(*[(0.9, *B)] * 100, (0.1, *A)), 0, recall_100=0),
    "100 in each image": (
        [truth(A)] * 2, [found(*[(0.9, *B)] * 59, (0.1, *A))] * 2, {"map50": 1 / 60},  # 2 of 120
    ),
    "100 of each class": one(truth(A, (1, *B[1:])), found(*[(0.9, 1, *B[1:])] * 100, (0.1, *A)), 1),
    # classes
    "one class of two": one(truth(A, (1, *B[1:])), found((0.9, *A)), 0.5),
    "swapped classes": one(truth(A, (1, *B[1:])), found((0.9, 1, *A[1:]), (0.8, 0, *B[1:])), 0),
    "a class without objects, found": one(truth(A), found((0.9, 1, *B[1:]), (0.8, *A)), 1),
    "a class of a crowd alone": one(truth(A, (1, *B[1:], "crowd")), found((0.9, 1, *B[1:]), (0.8, *A)), 1),
    # crowds and difficult objects
    "a crowd": one(truth(A, (*B, "crowd")), found((0.9, *B), (0.8, *A)), 1),
    "in a crowd": one(truth(A, (0, 200, 0, 600, 400, "crowd")), found((0.9, *B), (0.8, *A)), 1),
    "in a crowd, often": one(truth(A, (0, 200, 0, 600, 400, "crowd")), found(*[(0.9, *B)] * 9, (0.8, *A)), 1),
    "mostly outside a crowd": one(truth(A, (0, 260, 0, 600, 400, "crowd")), found((0.9, *B), (0.8, *A)), 0.5),
    "a crowd of another class": one(truth(A, (1, *B[1:], "crowd")), found((0.9, *B), (0.8, *A)), 0.5),
    "twice in a crowd": one(
        truth(A, B, (0, 0, 0, 150, 150, "crowd")), found((0.9, *A), (0.8, *A), (0.7, *B)), 1
    ),  # the second time is the crowd's
    "a difficult one, not found": one(truth(A, (*B, "difficult")), found((0.9, *A)), 1),
    "difficult ones alone": one(truth((*A, "difficult")), found((0.9, *A)), None),
    # sizes: up to 32 x 32, to 96 x 96, above
    "side 31": one(*square(31), 1, map_small=1, map_medium=None, map_large=None),
    "side 32": one(*square(32), 1, map_small=1, map_medium=1, map_large=None),
    "side 96": one(*square(96), 1, map_small=None, map_medium=1, map_large=1),
    "side 97": one(*square(97), 1, map_small=None, map_medium=None, map_large=1),
    "the small one missed": one(truth(A, S), found((0.9, *A)), HALF, map_small=0, map_large=1, recall_small=0),
    "a large mistake": one(truth(S), found((0.9, *A), (0.8, *S)), 0.5, map_small=1, map_large=None),
    "a small mistake": one(truth(S), found((0.9, *OTHER_S), (0.8, *S)), 0.5, map_small=0.5),
    # boxes
    "a found box of area 0": one(truth(A), found((0.9, 0, 50, 50, 50, 50), (0.8, *A)), 0.5),
    "an object of area 0": one(truth(A, (0, 300, 300, 300, 300)), found((0.9, *A), (0.8, 0, 300, 300, 300, 300)), HALF),
    "an object over the border": one(truth((0, -50, -50, 50, 50)), found((0.9, 0, -50, -50, 50, 50)), 1),
    "cut at the border": one(truth((0, -50, 0, 50, 99)), found((0.9, 0, 0, 0, 50, 99)), 1, map75=0),
    "a found box outside": one(truth(A), found((0.9, 0, 700, 500, 800, 600), (0.8, *A)), 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_values_by_hand(name: str) -> None:
    truths, results, expected = CASES[name]
    average = average_precision(truths, results, 2)
    assert {key: average.means.get(key) for key in expected} == {
        key: value if value is None else pytest.approx(value, abs=1e-9) for key, value in expected.items()
    }
    known = [value for value in average.ap50 if value is not None]
    assert (np.mean(known) if known else None) == (pytest.approx(average.means["map50"]) if known else None)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if any(len(seen.scores) for seen in case[1])])
def test_the_values_of_pycocotools(name: str) -> None:
    """Of an empty list it has none."""
    truths, results, expected = CASES[name]
    stats, means = pycocotools(truths, results), average_precision(truths, results, 2).means
    assert {key: means.get(key, -1) for key in stats} == pytest.approx(stats, abs=1e-9)
    assert {key: stats[key] for key in expected} == {
        key: -1 if value is None else pytest.approx(value, abs=1e-9) for key, value in expected.items()
    }


def test_there_are_fifty() -> None:
    assert len(CASES) >= 50


def test_ids_of_0_count(tmp_path: Path) -> None:
    """An annotation of id 0 is never found to pycocotools, which takes it for none; images and categories may be 0."""
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    rows: list[dict[str, Any]] = [
        {"id": number, "image_id": 0, "category_id": number, "bbox": [x, 10, 100, 100], "area": 10_000, "iscrowd": 0}
        for number, x in ((0, 10), (1, 200))
    ]
    images = [{"id": 0, "file_name": "a.png", "width": 640, "height": 480}]
    categories = [{"id": number, "name": f"class {number}"} for number in (0, 1)]
    values = {"images": images, "annotations": rows, "categories": categories}
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(values), encoding="utf-8")
    target = BoxTarget(2)
    samples = target.read_folder(str(tmp_path))
    boxes = [target.scan(sample)[0] for sample in samples.samples]
    average = average_precision(boxes, [found((0.9, *A), (0.8, 1, *B[1:]))], 2)
    assert samples.class_names == ("class 0", "class 1") and average.ap50 == [1.0, 1.0]
