"""doctor/annotations: each finding in data that have it and nothing else, and none in data that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.files import write_annotations
from tests.helpers.records import picture
from tools import antgo

CATEGORY = ["heron", "tern"]
SIZE = (64, 48)


def record(number: int, folder: Path, **changes: Any) -> dict[str, Any]:
    """Write an image of its own, of coarse noise, and return its record."""
    path = f"{number}.png"
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).save(folder / path)
    made = {"image_file": path, "width": SIZE[0], "height": SIZE[1], "image_label": number % 2}
    return {**made, "image_label_name": CATEGORY[number % 2], **changes}


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    return write_annotations(folder, records, CATEGORY)


def findings(tmp_path: Path, *files: Path, code: int = 1) -> dict[str, tuple[str, list[str]]]:
    """Return level and names of the findings by their kinds."""
    words = ["doctor/annotations", "--src", ",".join(map(str, files)), "--tgt", str(tmp_path / "out"), "--workers", "0"]
    assert antgo.main(words) == code
    content = json.loads((tmp_path / "out/doctor.json").read_text(encoding="utf-8"))
    return {finding["kind"]: (finding["level"], finding["names"]) for finding in content["findings"]}


def clean(folder: Path, first: int) -> list[dict[str, Any]]:
    return [record(first + number, folder) for number in range(6)]


def test_nothing_is_found_in_clean_data(tmp_path: Path) -> None:
    train, val = (write(tmp_path / name, clean(tmp_path / name, first)) for name, first in (("a", 0), ("b", 100)))
    assert findings(tmp_path, train, val, code=0) == {}


def test_images_in_two_splits(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    train, val = clean(a, 0), clean(b, 100)
    (b / "100.png").write_bytes((a / "0.png").read_bytes())  # both are heron
    (b / "101.png").write_bytes((a / "2.png").read_bytes())  # tern and heron
    with Image.open(a / "3.png") as image:
        image.save(b / "103.png", compress_level=1)
        image.convert("RGB").resize((62, 47)).resize(SIZE).save(b / "105.jpg", quality=90)
    val[5]["image_file"] = "105.jpg"
    found = findings(tmp_path, write(a, train), write(b, val))
    assert set(found) == {"duplicates in two splits", "contradicting duplicates", "near-duplicates in two splits"}
    level, names = found["duplicates in two splits"]
    assert level == "problem" and len(names) == 3
    assert names[0] == f"{a}/annotation.json: 0.png = {b}/annotation.json: 100.png"
    assert found["contradicting duplicates"] == (
        *("problem", [f"{a}/annotation.json: 2.png = {b}/annotation.json: 101.png"]),
    )
    level, (names_of_near,) = found["near-duplicates in two splits"]
    assert level == "warning" and "105.jpg" in names_of_near


def test_clips_and_classes(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    train = [record(2 * number, a, clip_tag=f"clip{number}") for number in range(4)]
    val = [record(101, b, clip_tag="clip3"), record(103, b, clip_tag="clip9")]
    found = findings(tmp_path, write(a, train), write(b, val))
    assert found == {
        "clips in two splits": ("problem", ["clip3"]),
        "classes without images": ("warning", ["heron"]),  # the second file's, behind the first's
    }


def test_boxes_sizes_and_records(tmp_path: Path) -> None:
    a = tmp_path / "a"
    box: dict[str, Any] = {"bboxes": [[1.0, 1.0, 9.0, 9.0]] * 2, "label_names": []}
    outside = {"bboxes": [[1.0, 1.0, 70.0, 9.0]], "labels": [0], "label_names": []}
    records = [
        record(0, a, **box, labels=[0, 1]),
        record(1, a, **box, labels=[1, 1]),
        record(2, a, width=0, height=0, **outside),
        record(3, a, width=48, height=64),
        record(4, a, **outside),
        record(5, a, image_label=-1, image_label_name=""),
        record(6, a),
    ]
    (a / "6.png").write_bytes(b"no image")
    found = findings(tmp_path, write(a, records))
    assert {kind: level for kind, (level, _) in found.items()} == {
        **{"records": "problem", "unreadable images": "problem", "sizes": "problem", "boxes outside": "problem"},
        **{"contradicting boxes": "problem", "repeated boxes": "warning", "no label": "warning"},
    }
    assert found["records"][1] == [
        f"{a}/annotation.json: record 4: box 0 lies outside its image of 64x48: [1.0, 1.0, 70.0, 9.0]"
    ]
    assert found["sizes"][1] == ["3.png: 48x64, the image is 64x48"]
    assert found["boxes outside"][1] == ["2.png: [1.0, 1.0, 70.0, 9.0] in an image of 64x48"]
    assert found["contradicting boxes"][1] == ["0.png: [1.0, 1.0, 9.0, 9.0] is heron and tern"]
    assert found["repeated boxes"][1] == ["1.png: [1.0, 1.0, 9.0, 9.0] is tern and tern"]


def test_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    train = write(a, clean(a, 0))
    picture(b / "x.png", SIZE)
    val = write_annotations(b, [{"image_file": "x.png", "image_label": 0}], CATEGORY[::-1])
    found = findings(tmp_path, train, val)
    assert found["other classes"] == ("problem", ["tern", "heron"])
    assert "problem: " in capsys.readouterr().out
