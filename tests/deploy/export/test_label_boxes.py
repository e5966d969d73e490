"""The annotations beside a verification's images, and what an int8 detector loses against them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.metadata import ModelMetadata
from data_loader.box_target import Boxes
from data_loader.mask_classes import MaskClass
from data_loader.preprocess import Preprocess
from deploy.export.dense_parity import BoxParity
from deploy.export.label_boxes import ap_loss, label_boxes, objects_to_measure
from deploy.export.reference import Reference
from deploy.export.sample_images import SampleImages
from tests.helpers.boxes import write_boxes, write_coco

METADATA = ModelMetadata(
    ("blue", "red"),
    Preprocess(64, 96),
    {"module": "m", "name": "n", "args": {}},
    output="boxes",
    mask_classes=(MaskClass("blue", 0, (0, 0, 255), ""), MaskClass("red", 1, (255, 0, 0), "")),
    thresholds={"score": 0.5, "nms_iou": 0.6},
    precision="int8",
)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.png"))


def test_boxes_are_found_as_a_training_finds_them(tmp_path: Path) -> None:
    write_boxes(tmp_path, valid=6)
    files = files_of(tmp_path / "valid" / "images")
    found = label_boxes(files, METADATA)
    assert found is not None and len(found) == 6
    total = sum(len(boxes.boxes) for boxes in found)
    texts = [path.read_text() for path in sorted((tmp_path / "valid" / "labels").iterdir())]
    assert total == sum(text.count("<object>") for text in texts) > 4
    assert {boxes.size for boxes in found} == {(96, 64)}
    assert all((boxes.boxes[:, 2:] <= (96, 64)).all() for boxes in found)
    (tmp_path / "valid" / "labels" / Path(files[1]).with_suffix(".xml").name).unlink()
    assert label_boxes(files, METADATA) is None  # one has none
    assert label_boxes([str(tmp_path / "elsewhere.jpg")], METADATA) is None
    assert label_boxes([], METADATA) is None


def truths_and_outputs(count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Return an object in each image, and outputs (N, 2, 6) that find it for sure, and nothing else."""
    truths, outputs = np.empty(count, object), np.zeros((count, 2, 6), np.float32)
    for image in range(count):
        left, label = 10.0 + image, image % 2
        truths[image] = Boxes(np.array([[left, 10, left + 30, 40]]), np.array([label]), np.zeros(1, bool), (96, 64))
        outputs[image, :, :4] = [left, 10, left + 30, 40]
        outputs[image, :, 4:] = -9
        outputs[image, 0, 4 + label] = 4
    return truths, outputs


def test_what_reaches_out_of_the_input_is_cut_as_the_annotations_are() -> None:
    outputs = np.array([[[-30.0, -9, 20, 90, 5, -5]]], np.float32)
    (found,) = objects_to_measure(outputs, METADATA)
    side = METADATA.preprocess.height
    assert found.boxes.tolist() == [[0, 0, 20, min(90, side)]]


def test_the_loss_of_map_is_counted_with_its_deviation() -> None:
    truths, outputs = truths_and_outputs()
    worse = outputs.copy()
    worse[:6, 0, 4:] = -9  # 3 of 15 objects of each class are not found: AP at every IoU is 81 / 101
    before, after, deviation = ap_loss(
        list(truths), objects_to_measure(outputs, METADATA), objects_to_measure(worse, METADATA), 2
    )
    assert before == pytest.approx(1) and after == pytest.approx(81 / 101, abs=1e-6)
    assert 0.02 < deviation < 0.12  # of a share of 0.2 in 30 images: sqrt(0.2 * 0.8 / 30) is 0.073


def result_of(labels: Any, outputs: np.ndarray, file: np.ndarray) -> Any:
    images = SampleImages(
        np.zeros((len(outputs), 64, 96, 3), np.uint8), labels, tuple(f"{n}.jpg" for n in range(len(outputs))), "x",
        len(outputs),
    )  # fmt: skip
    metadata = replace(METADATA, precision="fp32")
    reference = Reference(lambda images: outputs, images, metadata, outputs)
    return BoxParity().compare(file, reference, METADATA)


def test_int8_is_accepted_by_its_map_where_there_are_annotations() -> None:
    truths, outputs = truths_and_outputs()
    moved = outputs.copy()
    moved[:, 0, 4:] -= 0.1  # surely found all the same
    result = result_of(truths, outputs, moved)
    assert (result.problem, result.accuracy) == ("", (pytest.approx(1), pytest.approx(1)))
    worse = outputs.copy()
    worse[:12, 0, 4:] = -5
    result = result_of(truths, outputs, worse)
    assert result.accuracy == (pytest.approx(1), pytest.approx(61 / 101, abs=1e-6))
    assert "mAP falls from 100.00 % to 60.40 % on 30 images" in result.problem and "over a point" in result.problem
    assert "of the boxes stay, under 90 %" in result_of(None, outputs, worse).problem  # without annotations


def test_coco_files_count_too(tmp_path: Path) -> None:
    write_boxes(tmp_path, valid=6)
    files = files_of(write_coco(tmp_path) / "valid")
    found, of_xml = label_boxes(files, METADATA), label_boxes(files_of(tmp_path / "valid" / "images"), METADATA)
    assert found is not None and of_xml is not None and len(found) == 6
    for boxes, others in zip(found, of_xml, strict=True):
        assert np.array_equal(boxes.boxes, others.boxes) and np.array_equal(boxes.labels, others.labels)
