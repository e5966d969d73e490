"""The doctor with targets that are files: label images and boxes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers import boxes
from tests.helpers.masks import VALUES, mask_nets, scene, write_config, write_scenes
from tools.doctor import __main__ as doctor


@pytest.fixture
def tiny_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with mask_nets(tmp_path, monkeypatch):
        yield


def examine(folder: Path, *flags: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    """Run the doctor; return its exit code and the report."""
    config = write_config(folder, **changes)
    code = doctor.main(["--config", str(config), "--output", str(folder / "out"), "--workers", "0", *flags])
    return code, json.loads((folder / "out/doctor.json").read_text(encoding="utf-8"))


def found(report: dict[str, Any], kind: str) -> dict[str, Any]:
    (finding,) = [finding for finding in report["findings"] if finding["kind"] == kind]
    return finding


def test_classes_are_counted_in_pixels_and_a_step_is_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path)
    net = {"model_module_name": "lraspp_module", "model_net_name": "lraspp", "model_type": "mobilenet_v3_small"}
    code, report = examine(tmp_path, **net, img_height=32, img_width=32)
    assert code == 0 and report["counted_in"] == "pixels" and report["step"]["losses"]
    for split, first, count in (("training", 0, 10), ("validation", 100, 5)):
        labels = np.stack([scene(first + number)[1] for number in range(count)])
        assert [row[split] for row in report["classes"]] == np.bincount(labels.ravel(), minlength=3).tolist()
    counts = np.array([row["training"] for row in report["classes"]])
    assert report["paste"]["class_weights"] == pytest.approx(counts.sum() / (3 * counts), abs=1e-4)
    assert "training  validation  (pixels)\nground" in capsys.readouterr().out
    assert "<h2>Classes, in pixels</h2>" in (tmp_path / "out/doctor.html").read_text(encoding="utf-8")


def test_masks_that_cannot_be_used_and_a_leak(tiny_nets: None, tmp_path: Path) -> None:
    write_scenes(tmp_path)
    labels = tmp_path / "train/labels"
    Image.new("L", (5, 5)).save(labels / "02.png")
    (labels / "03.png").unlink()
    Image.fromarray(VALUES[scene(3)[1]]).save(labels / "03.jpg", quality=95)
    Image.new("L", (28, 24), 3).save(labels / "04.png")  # one class alone
    unknown = np.array(VALUES[scene(5)[1]])
    unknown[:9] = 77
    Image.fromarray(unknown).save(labels / "05.png")
    (tmp_path / "train/images/06.png").write_bytes(b"")
    for name in ("images", "labels"):
        shutil.copy(tmp_path / f"train/{name}/00.png", tmp_path / f"valid/{name}/leaked.png")
    code, report = examine(tmp_path, "--skip_step", bad_images="skip", max_bad_share=0.5)
    assert code == 1 and "also in training" in found(report, "leakage")["text"]
    unusable = found(report, "unusable training masks")
    assert unusable["level"] == "warning" and unusable["text"] == "2 of 10 training masks cannot be used"
    reasons = [image["reason"] for group in unusable["groups"] for image in group]
    assert "02.png is 5x5, the image 28x24" in reasons[0] and "a label image cannot be JPEG" in reasons[1]
    assert found(report, "unreadable")["groups"][0][0]["reason"] == "it is empty (0 bytes)"
    (alone,) = found(report, "one class alone")["groups"]
    assert alone[0]["file"] == "images/04.png"
    texts = [finding["text"] for finding in report["findings"] if finding["kind"] == "masks of training"]
    assert any("value 77 (252 pixels)" in text for text in texts)
    code, report = examine(tmp_path, "--skip_step")
    assert code == 1 and found(report, "unusable training masks")["level"] == "problem"


def test_label_images_that_are_no_label_images(tiny_nets: None, tmp_path: Path) -> None:
    write_scenes(tmp_path)
    for file in (tmp_path / "train/labels").iterdir():
        Image.fromarray(scene(1)[0]).save(file)  # photographs
    code, report = examine(tmp_path)
    assert code == 1 and report["step"] == {}
    assert "no pixel of any mask is of a class" in found(report, "masks of training")["text"]


@pytest.mark.parametrize("flags", [["--fix", "lists"], ["--wrong_labels"]])
def test_flags_for_labels_alone(
    tiny_nets: None, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path)
    assert doctor.main(["--config", str(write_config(tmp_path)), *flags]) == 2
    assert f"{flags[0]} is for images with one label each, and this training learns masks" in capsys.readouterr().err


def test_classes_are_counted_in_objects(tmp_path: Path) -> None:
    boxes.write_boxes(tmp_path / "data")
    (tmp_path / "data/train/labels/00.xml").write_text("<annotation><object></annotation>", encoding="utf-8")
    (tmp_path / "more").mkdir()
    with pytest.MonkeyPatch.context() as patch, boxes.box_nets(tmp_path / "more", patch):
        config = boxes.write_config(tmp_path / "data", bad_images="skip", max_bad_share=0.5)
        flags = ["--output", str(tmp_path / "out"), "--workers", "0", "--skip_step"]
        assert doctor.main(["--config", str(config), *flags]) == 0
    report = json.loads((tmp_path / "out/doctor.json").read_text(encoding="utf-8"))
    assert report["counted_in"] == "objects" and "class_weights" not in report["paste"]
    assert found(report, "unusable training annotations")["text"].startswith("1 of 12 training annotations cannot be")
    counts = [row["training"] for row in report["classes"]]
    assert sum(counts) == sum(len(boxes.scene(number)[1]) for number in range(1, 11)) > 0  # the last image has none
