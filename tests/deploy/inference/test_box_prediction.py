"""Objects from inference.py, in the image's own pixels."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import inference
from artifacts.metadata import ModelMetadata
from data_loader.box_annotations import read_annotation
from data_loader.mask_classes import MaskClass
from data_loader.preprocess import Preprocess
from deploy.inference.box_prediction import BoxPrediction
from deploy.inference.predictor import Predictor

CLASSES = (MaskClass("cell", 1, (200, 0, 0), "细胞"), MaskClass("dot", 2, (0, 0, 0)))
METADATA = ModelMetadata(
    ("cell", "dot"),
    Preprocess(20, 40, resize="letterbox"),
    {"module": "m", "name": "n", "args": {}},
    task="detection",
    output="boxes",
    thresholds={"score": 0.5, "nms_iou": 0.6},
    mask_classes=CLASSES,
)
BOXES = np.array(  # of a net's input of 40 x 20: left, top, right, bottom, then a logit for each class
    [
        [10, 5, 20, 15, 2.0, -5.0],
        [10, 5, 20, 14, 1.0, -5.0],  # overlaps the first by 0.9
        [30, 0, 44, 10, -5.0, 3.0],  # reaches out of the input
        [0, 0, 10, 10, -0.1, -5.0],  # a score of 0.475
        [2, 2, 8, 8, 4.0, -5.0],  # in the bar beside the image
    ],
    np.float32,
)


class BoxBackend:
    name, device = "fake", "cpu"

    def __init__(self, rows: np.ndarray = BOXES) -> None:
        self.rows = rows

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.repeat(self.rows[None], len(images), axis=0)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 100 x 100: letterbox puts it at 0.2 of its size, 10 columns from the left."""
    (tmp_path / "new").mkdir()
    Image.new("RGB", (100, 100), (90, 90, 90)).save(tmp_path / "new/a.png")
    return tmp_path / "new/a.png"


def predict(image: Path, metadata: ModelMetadata = METADATA, rows: np.ndarray = BOXES) -> BoxPrediction:
    (found,) = Predictor(BoxBackend(rows), metadata).predict_files([str(image)], workers=1)
    assert isinstance(found, BoxPrediction)
    return found


def test_calibrated_scores(image: Path) -> None:
    """sigmoid(2.0 / 0.5 - 1) and sigmoid(-0.1 / 0.5 - 1): the threshold is one of these scores."""
    calibrated = replace(METADATA, temperature=0.5, thresholds={"score": 0.2, "nms_iou": 0.6, "score_offset": -1.0})
    scores = [found.score for found in predict(image, replace(calibrated, preprocess=Preprocess(20, 40))).objects]
    assert scores == pytest.approx(sorted((1 / (1 + np.exp(-np.array([5.0, 3.0, 7.0, -1.2])))), reverse=True), abs=1e-6)


def test_boxes_are_in_the_pixels_of_the_image(image: Path) -> None:
    values = predict(image).values()
    assert (values["width"], values["height"]) == (100, 100)
    sigmoid = 1 / (1 + np.exp(-np.array([3.0, 2.0])))
    # the second is a copy, the fourth below the threshold, the fifth beside the image; the third is cut at its border
    assert values["objects"] == [
        {"class": "cell", "label": 0, "score": pytest.approx(sigmoid[1], abs=1e-6), "box": [0, 25, 50, 75]}
    ]
    whole = predict(image, replace(METADATA, preprocess=Preprocess(20, 40))).values()["objects"]  # squash: 2.5 and 5
    assert [(found["class"], found["box"]) for found in whole] == [
        ("cell", [5, 10, 20, 40]),
        ("dot", [75, 0, 100, 50]),
        ("cell", [25, 25, 50, 75]),
    ]
    assert [found["score"] for found in whole[1:]] == pytest.approx(sigmoid, abs=1e-6)


def test_a_net_that_is_not_finite_has_no_prediction(image: Path) -> None:
    rows = BOXES.copy()
    rows[3, 5] = np.nan
    assert predict(image, rows=rows).error == "the net's output is not finite (NaN or infinite logits)"


def test_the_picture_and_the_line(image: Path) -> None:
    found = predict(image, replace(METADATA, preprocess=Preprocess(20, 40)))
    assert found.texts() == ("2 细胞  1 dot",) and found.caption() == ["2 细胞, 1 dot"]
    drawn = np.asarray(found.annotate(Image.new("RGB", (100, 100), (90, 90, 90))))
    scale = drawn.shape[1] // 100  # small images are enlarged
    assert tuple(drawn[70 * scale, 25 * scale]) == (200, 0, 0) and tuple(drawn[45 * scale, 99 * scale]) == (220, 30, 30)
    nothing = predict(image, replace(METADATA, thresholds={"score": 0.99}))
    assert nothing.texts() == ("nothing",) and nothing.caption() == ["nothing found"]
    assert nothing.annotate(Image.new("RGB", (300, 300))).width == 300


def test_inference_writes_them(
    image: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "load_net", lambda *_: (BoxBackend(), METADATA))
    (tmp_path / "net.onnx").write_bytes(b"")
    (image.parent / "bad.png").write_bytes(b"")
    common = ["--weights", str(tmp_path / "net.onnx"), "--image_dir", str(image.parent), "--workers", "1"]
    assert inference.main([*common, "--output", str(tmp_path / "o.csv"), "--save_images", str(tmp_path / "out")]) == 1
    rows = list(csv.DictReader((tmp_path / "o.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert list(rows[0]) == ["file", "width", "height", "count", "objects", "error"]
    row = next(row for row in rows if row["file"].endswith("a.png"))
    assert row["count"] == "1" and json.loads(row["objects"])[0]["box"] == [0, 25, 50, 75]
    assert (tmp_path / "out/a.png.answer.jpg").exists()
    assert inference.main([*common, "--output", str(tmp_path / "o.json"), "--score_threshold", "0.4"]) == 1
    entries = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    (objects,) = [entry["objects"] for entry in entries if "objects" in entry]
    assert [found["box"] for found in objects] == [[0, 25, 50, 75]]  # the fourth ends where the image begins
    other = replace(METADATA, output="logits", thresholds={})
    monkeypatch.setattr(inference, "load_net", lambda *_: (BoxBackend(), other))
    capsys.readouterr()
    assert inference.main([*common, "--output", str(tmp_path / "o.json"), "--score_threshold", "0.4"]) == 2
    assert "--score_threshold is for nets that give boxes" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "ending"), [("voc", ".xml"), ("yolo", ".txt")])
def test_label_files_are_read_as_they_were_written(
    kind: str, ending: str, image: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    squash = replace(METADATA, preprocess=Preprocess(20, 40))
    monkeypatch.setattr(inference, "load_net", lambda *_: (BoxBackend(), squash))
    (tmp_path / "net.onnx").write_bytes(b"")
    Image.new("RGB", (100, 100)).save(image.with_suffix(".bmp"))  # of the same stem
    flags = ["--weights", str(tmp_path / "net.onnx"), "--image_dir", str(image.parent), "--workers", "1", "--quiet"]
    assert inference.main([*flags, "--save_images", str(tmp_path / "out"), "--labels", kind]) == 0
    others = {"classes.txt"} if kind == "yolo" else set()
    names = {path.name for path in (tmp_path / "out").iterdir() if path.suffix in (".xml", ".txt")}
    assert names == {f"a{ending}", f"a.png{ending}"} | others
    read = read_annotation(str(tmp_path / f"out/a{ending}"), METADATA.class_names)
    assert not read.problem and read.names == ("cell", "dot", "cell")
    scale = 100 if read.is_relative else 1
    assert read.boxes * scale == pytest.approx(
        np.array([[5, 10, 20, 40], [75, 0, 100, 50], [25, 25, 50, 75]]), abs=1e-3
    )
    assert inference.main([*flags, "--output", str(tmp_path / "o.csv"), "--labels", kind]) == 2
    assert "--labels goes with --save_images DIR" in capsys.readouterr().err


def labelled_as(kind: str, image: Path, tmp_path: Path, monkeypatch: Any) -> Path:
    """Return the folder into which inference.py has written an image's three objects."""
    classes = tuple(replace(one, value=number) for one, number in zip(METADATA.mask_classes, (7, 3), strict=True))
    squash = replace(METADATA, preprocess=Preprocess(20, 40), mask_classes=classes, weights_sha256="ab" * 32)
    monkeypatch.setattr(inference, "load_net", lambda *_: (BoxBackend(), squash))
    (tmp_path / "net.onnx").write_bytes(b"")
    flags = ["--weights", str(tmp_path / "net.onnx"), "--image_dir", str(image.parent), "--workers", "1", "--quiet"]
    assert inference.main([*flags, "--save_images", str(tmp_path / "out"), "--labels", kind]) == 0
    return tmp_path / "out"


@pytest.mark.parametrize("known", [True, False])
def test_coco_results_have_the_ids_of_the_data(known: bool, image: Path, tmp_path: Path, monkeypatch: Any) -> None:
    if known:
        values = {"images": [{"id": 40, "file_name": "other.png"}, {"id": 0, "file_name": "a.png"}]}
        (image.parent / "_annotations.coco.json").write_text(json.dumps(values), encoding="utf-8")
    out = labelled_as("coco", image, tmp_path, monkeypatch)
    results = json.loads((out / "coco_results.json").read_text(encoding="utf-8"))
    number = 0 if known else 1
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in results] == [
        (number, 7, [5, 10, 15, 30]),
        (number, 3, [75, 0, 25, 50]),
        (number, 7, [25, 25, 25, 50]),
    ]
    assert [row["score"] for row in results[1:]] == pytest.approx(1 / (1 + np.exp(-np.array([3.0, 2.0]))), abs=1e-6)
    assert json.loads((out / "coco_images.json").read_text(encoding="utf-8")) == {
        "images": [{"id": number, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 7, "name": "cell"}, {"id": 3, "name": "dot"}],
    }


def test_label_studio_gets_predictions(image: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = labelled_as("studio", image, tmp_path, monkeypatch)
    (task,) = json.loads((out / "studio.json").read_text(encoding="utf-8"))
    assert task["data"]["image"] == "/data/local-files/?d=a.png" and "annotations" not in task
    assert "predictions" not in task["data"]["record"]
    (prediction,) = task["predictions"]
    scores = [region["score"] for region in prediction["result"]]
    assert prediction["model_version"] == "ab" * 32 and prediction["score"] == pytest.approx(np.mean(scores))
    assert scores[1:] == pytest.approx(1 / (1 + np.exp(-np.array([3.0, 2.0]))), abs=1e-6)
    second = prediction["result"][1]  # in percent of an image of 100 x 100
    assert (second["type"], second["original_width"], second["from_name"]) == ("rectanglelabels", 100, "rect")
    assert second["value"] == {"x": 75, "y": 0, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": ["dot"]}
    assert '<Label value="cell" />' in (out / "studio.xml").read_text(encoding="utf-8")
