"""What is laid before a person, what may be kept of what a page sends, and the records that come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datasets.files import read_annotations, write_annotations
from datasets.records import find_problems
from review.errors import RefusedError
from review.label_task import LabelTask
from review.labels import MOST_OBJECTS, MOST_POINTS, checked_labels, draft_of, labelled

CLASSES = ("heron", "tern")
SIZE = (64, 48)
BOX = {"label": 1, "box": [1, 2, 30, 40]}
RING = [[1, 2], [30, 2], [10, 40]]
WHOLE: dict[str, Any] = {
    "rings": [],
    "joints": [],
    "visible": [],
    "shown": None,
}  # what an object of a box alone has, too


def checked(found: Any, kind: str = "RECT", size: tuple[int, int] = SIZE) -> Any:
    return checked_labels(found, kind, len(CLASSES), size)


def objects_in(found: dict[str, Any], kind: str = "RECT") -> Any:
    return draft_of(found, kind, CLASSES, SIZE)[0]["objects"]


def test_the_record_comes_before_its_predictions() -> None:
    predicted = {"predictions": {"image_label": 0, "bboxes": [[0, 0, 9, 9]], "labels": [0]}}
    own = {"image_label": 1, "bboxes": [[1, 2, 30, 40]], "labels": [1]}
    assert draft_of({**own, **predicted}, "CLASS", CLASSES, SIZE) == ({"label": 1}, "record")
    assert draft_of(predicted, "CLASS", CLASSES, SIZE) == ({"label": 0}, "predictions")
    assert draft_of({}, "CLASS", CLASSES, SIZE) == ({"label": -1}, "")
    assert draft_of({**own, **predicted}, "RECT", CLASSES, SIZE) == ({"objects": [{**BOX, **WHOLE}]}, "record")
    found, origin = draft_of(predicted, "RECT", CLASSES, SIZE)
    assert found["objects"][0]["box"] == [0, 0, 9, 9] and origin == "predictions"
    assert draft_of({"predictions": {"bboxes": "none"}}, "RECT", CLASSES, SIZE) == ({"objects": []}, "")
    assert draft_of({"predictions": {"image_label_name": 5, "image_label": "x"}}, "CLASS", CLASSES, SIZE)[1] == ""


def test_a_box_becomes_a_polygon_with_its_corners() -> None:
    record = {"bboxes": [[1, 2, 30, 40]], "labels": [1]}
    assert objects_in(record, "POLYGON")[0]["rings"] == [[[1, 2], [30, 2], [30, 40], [1, 40]]]
    ring = {**record, "segments": [RING], "has_segments": [1]}
    assert objects_in(ring, "POLYGON")[0]["rings"] == [RING]


def test_what_a_net_says_outside_the_image_is_moved_to_its_border() -> None:
    outside = {"bboxes": [[-0.5, -7, 70, 20], [70, 0, 80, 9]], "labels": [0, 0], "joints2d": [[[5, 99]], []]}
    (found,) = objects_in({"predictions": outside})  # the second has no size left
    assert found["box"] == [0, 0, 64, 20] and found["joints"] == [[5, 48]]
    own = {"bboxes": [[-0.5, 0, 64.5, 20]], "labels": [0]}
    assert objects_in(own)[0]["box"] == [-0.5, 0, 64.5, 20]  # as the standard allows


def test_objects_of_no_known_class_are_not_laid_before_anybody() -> None:
    for label in (-1, 2):
        assert objects_in({"predictions": {"bboxes": [[0, 0, 9, 9]], "labels": [label]}}) == []


@pytest.mark.parametrize(
    ("kind", "found", "message"),
    [
        ("CLASS", {"label": 2}, "label must be a class from 0 to 1, or -1 for none"),
        ("CLASS", {"label": True}, "label must be a class from 0 to 1, or -1 for none"),
        ("CLASS", {"objects": []}, "label must be a class from 0 to 1, or -1 for none"),
        ("RECT", [], "labels must be an object"),
        ("RECT", {"label": 1}, "objects must be a list of at most 2,000 objects"),
        ("RECT", {"objects": [BOX] * (MOST_OBJECTS + 1)}, "objects must be a list of at most 2,000 objects"),
        ("RECT", {"objects": ["x"]}, "object 1 must be an object"),
        ("RECT", {"objects": [BOX, {**BOX, "label": -1}]}, "object 2 must have a class from 0 to 1"),
        ("RECT", {"objects": [{**BOX, "label": 1.0}]}, "object 1 must have a class from 0 to 1"),
        ("RECT", {"objects": [{"label": 1}]}, "object 1 has no size"),
        ("RECT", {"objects": [{**BOX, "box": [1, 2, 1, 40]}]}, "object 1: its box must have x0 < x1 and y0 < y1"),
        ("RECT", {"objects": [{**BOX, "box": [1, 2, float("nan"), 9]}]}, "object 1: its box must hold points [x, y]"),
        ("RECT", {"objects": [{**BOX, "box": [1, 2, float("inf"), 9]}]}, "object 1: its box must hold points [x, y]"),
        ("RECT", {"objects": [{**BOX, "box": [1, 2, "9", 9]}]}, "object 1: its box must hold points [x, y] in pixels"),
        ("RECT", {"objects": [{**BOX, "box": [1, 2, 66, 9]}]}, "object 1: its box must lie within the image of 64x48"),
        ("RECT", {"objects": [{**BOX, "box": [-2, 2, 6, 9]}]}, "object 1: its box must lie within the image of 64x48"),
        ("RECT", {"objects": [{**BOX, "shown": 2}]}, "object 1: shown must be from 0 to 1"),
        ("RECT", {"objects": [{**BOX, "rings": 5}]}, "object 1: rings must be a list"),
        ("POLYGON", {"objects": [{"label": 0, "rings": [RING[:2]]}]}, "a ring must have at least 3 corners"),
        ("POLYGON", {"objects": [{"label": 0, "rings": [[1, 2, 3]]}]}, "a ring must hold points [x, y] in pixels"),
        ("POLYGON", {"objects": [{"label": 0, "rings": [[[5, 5]] * 3]}]}, "object 1 has no size"),
        ("POLYGON", {"objects": [{"label": 0, "rings": [RING * 20_000]}]}, "must be a list of at most 50,000 points"),
        (
            "POLYGON",
            {"objects": [{"label": 0, "rings": [RING * 9_000]}] * 2},
            f"an image may have at most {MOST_POINTS:,} corners and joints",
        ),
        ("POINT", {"objects": [{"label": 0, "joints": [[5, 5]]}]}, "visible must have a number for each joint"),
        ("POINT", {"objects": [{"label": 0, "joints": [[0, 0]], "visible": [0]}]}, "object 1 has no size"),
    ],
)
def test_what_cannot_be_kept_is_refused(kind: str, found: Any, message: str) -> None:
    with pytest.raises(RefusedError) as caught:
        checked(found, kind)
    assert message in str(caught.value)


def test_nothing_is_drawn_on_an_image_of_unknown_size() -> None:
    assert checked({"objects": []}, size=(0, 0)) == {"objects": []}
    with pytest.raises(RefusedError, match="the image's size is not known"):
        checked({"objects": [BOX]}, size=(0, 0))


def test_boxes_lie_around_rings_and_joints() -> None:
    (found,) = checked({"objects": [{"label": 0, "rings": [RING, [[40, 5], [50, 5], [45, 47]]]}]}, "POLYGON")["objects"]
    assert found["box"] == [1, 2, 50, 47]
    joints = {"label": 0, "joints": [[5, 6], [9, 9], [20, 8]], "visible": [2, 0, 1]}
    (found,) = checked({"objects": [joints]}, "POINT")["objects"]
    assert found["box"] == [5, 6, 20, 8] and found["joints"] == [[5, 6], [0, 0], [20, 8]]


@pytest.mark.parametrize(
    ("point", "box"),
    [
        ([5, 6], [4.5, 5.5, 5.5, 6.5]),
        ([0, 0], [0, 0, 1, 1]),
        ([64, 48], [63, 47, 64, 48]),
        ([64.5, 3], [63, 2.5, 64.5, 3.5]),
    ],
)
def test_a_single_point_has_a_box_of_a_pixel(point: list[float], box: list[float]) -> None:
    labels = checked({"objects": [{"label": 0, "joints": [point], "visible": [2]}]}, "POINT")
    assert labels["objects"][0]["box"] == box
    record = labelled({"width": 64, "height": 48}, labels, CLASSES)
    assert list(find_problems(record, CLASSES)) == []
    assert checked_labels(labels, "POINT", 2, None) == labels  # as a journal is read again


def test_labels_change_their_part_of_a_record_alone() -> None:
    before = {"image_file": "a.png", "own": 1, "image_label": 0, "bboxes": [[0, 0, 5, 5]], "labels": [0]}
    named = labelled(before, {"label": 1}, CLASSES)
    assert named == {**before, "image_label": 1, "image_label_name": "tern"}
    assert labelled(named, {"label": -1}, CLASSES)["image_label_name"] == ""
    ring = {"label": 1, "rings": [RING], "joints": [[3, 4]], "visible": [2], "shown": 0.5}
    made = labelled(before, checked({"objects": [ring]}, "POLYGON"), CLASSES)
    assert made == {
        **{"image_file": "a.png", "own": 1, "image_label": 0},
        **{"bboxes": [[1, 2, 30, 40]], "labels": [1], "label_names": ["tern"], "box_visibility": [0.5]},
        **{"segments": [RING], "has_segments": [1]},
        **{"joints2d": [[[3, 4]]], "has_joints2d": [1], "joints_vis": [[2]]},
    }
    assert all(type(at) is float for at in made["bboxes"][0])


def task(tmp_path: Path, kind: str = "RECT", **more: Any) -> LabelTask:
    return LabelTask(kind, ("tern", "heron"), tmp_path / "out", **more)


def test_classes_are_found_by_name_and_others_are_counted(tmp_path: Path) -> None:
    record = {"image_file": "a.png", "bboxes": [[0, 0, 5, 5], [1, 1, 9, 9]], "labels": [0, 2], "image_label": 1}
    record["predictions"] = {"bboxes": [[2, 2, 8, 8]], "labels": [1], "image_label": 2, "score": 0.5}
    source = write_annotations(tmp_path, [record], ["heron", "tern", "gull"])
    asked = task(tmp_path)
    found = asked.with_classes(read_annotations(source))
    made = found.records[0]
    assert (made["labels"], made["label_names"], made["image_label"]) == ([1], ["heron"], 0)
    assert made["predictions"]["labels"] == [0] and made["predictions"]["image_label"] == -1
    assert list(asked.outcome.counts.values()) == [1]
    assert found.category == ("tern", "heron")


def test_without_names_indices_stay(tmp_path: Path) -> None:
    source = tmp_path / "annotation.json"
    source.write_text('[{"image_file": "a.png", "bboxes": [[0, 0, 5, 5]], "labels": [1]}]', encoding="utf-8")
    found = task(tmp_path).with_classes(read_annotations(source))
    assert found.records[0]["label_names"] == ["heron"]
