"""A classifier that is asked about the images of a review."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from datasets.files import read_annotations, write_annotations
from deploy.backends import loading
from review.errors import ReviewError
from review.labels import draft_of
from review.net import ask_net
from review.review import Choice, open_review
from tests.helpers.calibrated import grey, metadata_with


class Brightness:
    """Logits (N, 3): its second class for bright images, its first for dark ones."""

    name, device = "fake", "cpu"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        mean = images.mean(axis=(1, 2, 3))
        return np.stack([-mean, mean, mean * 0], axis=1).astype(np.float32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write a black, a dark, a bright and a grey image, one that is damaged, and an address."""
    for name, value in (("black.png", 0), ("dark.png", 80), ("bright.png", 255), ("grey.png", 105)):
        grey(tmp_path / name, value)
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = [("black.png", 1), ("dark.png", 0), ("bright.png", 0), ("grey.png", 0), ("bad.png", 0), ("", 0)]
    records = [{"image_file": name, "image_label": label} for name, label in rows]
    records[5]["image_url"] = "http://localhost/a.png"
    return write_annotations(tmp_path, records, ["dog", "猫"])  # another order than the net's


def asked(monkeypatch: pytest.MonkeyPatch, metadata: ModelMetadata, source: Path) -> tuple[int, list[dict[str, Any]]]:
    weights = source.with_name("net.pth")
    weights.write_bytes(b"weights")
    monkeypatch.setattr(loading, "load_backend", lambda path, device: (Brightness(), metadata))
    found = read_annotations(source)
    return ask_net(found, weights, 1), found.records


def test_each_image_gets_its_answer_by_the_class_s_name(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    without, records = asked(monkeypatch, metadata_with(temperature=None, thresholds={}, calibration=None), source)
    assert without == 2 and "predictions" not in records[4] and "predictions" not in records[5]
    black = records[0]["predictions"]
    assert (black["image_label"], black["image_label_name"]) == (1, "猫")  # the net's class 0 is the set's 1
    assert records[2]["predictions"]["image_label_name"] == "dog"
    mean = -np.mean(np.array([0.485, 0.456, 0.406]) / np.array([0.229, 0.224, 0.225]))  # of black, normalised
    scores = np.exp([-mean, mean, 0]) / np.exp([-mean, mean, 0]).sum()
    assert black["score"] == pytest.approx(scores[0], abs=1e-4)
    assert black["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert "uncertainty" not in black


def test_a_calibrated_net_gives_its_decision(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    _, records = asked(monkeypatch, metadata_with(temperature=0.5), source)
    decisions = [record["predictions"]["decision"] for record in records[:4]]
    assert decisions == ["accept", "set_aside", "accept", "set_aside"]
    assert records[0]["predictions"]["uncertainty"] < 0.2 < records[3]["predictions"]["uncertainty"]


def test_contradictions_and_doubt_come_first(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    weights = source.with_name("net.pth")
    weights.write_bytes(b"weights")
    monkeypatch.setattr(loading, "load_backend", lambda path, device: (Brightness(), metadata_with()))
    with open_review(source, ["valid"], ask=lambda found: print(ask_net(found, weights, 1))) as review:
        # "dark" is a cat by the net and a dog by its label, "grey" too, less surely; the black and the bright agree
        assert review.listed(Choice(order="doubt"), "")[:2] == [1, 3]
        assert review.listed(Choice(net="contradicts"), "") == [1, 3]


def test_a_net_without_classes_is_refused(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    metadata = metadata_with()
    object.__setattr__(metadata, "output", "features")
    with pytest.raises(ReviewError, match="does not give a class for each image; name a classifier"):
        asked(monkeypatch, metadata, source)


class Detector:
    """Three boxes in each image, in pixels of its input of 40 x 20, each of its own class."""

    name, device = "fake", "cpu"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        rows = [[10, 5, 20, 15, 2.0, -5.0, -5.0], [22, 0, 30, 10, -5.0, 1.0, -5.0], [10, 16, 14, 20, -5.0, -5.0, 3.0]]
        return np.repeat(np.array([rows], np.float32), len(images), axis=0)


DETECTOR = ModelMetadata(
    ("cell", "dot", "other"),
    Preprocess(20, 40, resize="letterbox"),
    {"module": "m", "name": "n", "args": {}},
    task="detection",
    output="boxes",
    thresholds={"score": 0.5, "nms_iou": 0.6},
)


def test_a_detector_s_boxes_are_laid_before_a_person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An image of 100 x 100 lies in the input at 0.2 of its size, 10 columns from the left."""
    records: list[dict[str, Any]] = [{"image_file": f"{number}.png"} for number in range(3)]
    for record in records:
        Image.new("RGB", (100, 100), (90, 90, 90)).save(tmp_path / record["image_file"])
    given = {"bboxes": [[1, 1, 9, 9]], "labels": [0]}
    records[1]["predictions"] = given
    source = write_annotations(tmp_path, records, ["dot", "cell"])  # another order, and without the net's third class
    weights = tmp_path / "net.pth"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(loading, "load_backend", lambda path, device: (Detector(), DETECTOR))
    found = read_annotations(source)
    assert ask_net(found, weights, 1, output="boxes", all_anew=False) == 0
    assert found.records[1]["predictions"] == given
    asked = found.records[0]["predictions"]
    assert asked["labels"] == [-1, 1, 0] and asked["label_names"] == ["other", "cell", "dot"]
    assert asked["score"] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=1e-4)  # of the least sure one
    labels, origin = draft_of(found.records[0], "RECT", found.category, (100, 100))
    laid = [(each["label"], each["box"]) for each in labels["objects"]]
    assert laid == [(1, [0, 25, 50, 75]), (0, [60, 0, 100, 50])] and origin == "predictions"


def test_each_type_wants_its_own_net(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    weights = source.with_name("net.pth")
    monkeypatch.setattr(loading, "load_backend", lambda path, device: (Brightness(), metadata_with()))
    with pytest.raises(ReviewError, match="its net does not give boxes for each image; name a detector"):
        ask_net(read_annotations(source), weights, 1, output="boxes")
