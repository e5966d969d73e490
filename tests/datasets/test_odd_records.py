"""Fifty odd COCO images -> standard -> Label Studio -> standard -> COCO: equal within 1e-6 px, or as listed here."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.records import assert_close
from tools import antgo

SIZE = (64, 48)
BOX = [10.25, 20.5, 5, 7.125]
RING = [10.25, 20.5, 15, 21, 12.125, 27.5]
CIRCLE = [c for step in range(100) for c in (30 + 9 * math.cos(step / 16), 20 + 9 * math.sin(step / 16))]
RLE = {"counts": [100, 10, 2962], "size": [48, 64]}

Entry = dict[str, Any]


def foot(*box: float, **others: Any) -> Entry:
    return {"category_id": 3, "bbox": list(box or BOX), "iscrowd": 0, **others}


def hand(*joints: float, **others: Any) -> Entry:
    return {"category_id": 7, "bbox": BOX, "iscrowd": 0, "keypoints": list(joints), **others}


# name: the annotations of an image, all of which come round
SAME: dict[str, list[Entry]] = {
    "plain.png": [foot()],
    "thirds.png": [foot(1 / 3, 2 / 3, 10 / 3, 20 / 7)],
    "tiny.png": [foot(31.1, 17.3, 1e-3, 1e-3)],
    "whole.png": [foot(0, 0, 64, 48)],
    "corner.png": [foot(63, 47, 1, 1)],
    "half a pixel outside.png": [foot(-0.5, -0.75, 10, 10)],
    "a pixel beyond.png": [foot(60, 40, 5, 9)],
    "line.png": [foot(0, 10, 64, 1e-2)],
    "same twice.png": [foot(), foot()],
    "nested.png": [foot(0, 0, 40, 40), foot(1, 1, 10, 10), foot(2, 2, 1, 1)],
    "two classes.png": [foot(), {**foot(1, 2, 3, 4), "category_id": 7}, foot(5, 6, 7, 8)],
    "many.png": [foot(i, i / 3, 2 + i / 7, 3) for i in range(40)],
    "empty.png": [],
    "ring.png": [foot(segmentation=[RING])],
    "two rings.png": [foot(segmentation=[RING, [1, 2, 9, 2, 9, 8.5]])],
    "hole.png": [foot(segmentation=[[0, 0, 40, 0, 40, 40, 0, 40], [10, 10, 20, 10, 20, 20]])],
    "closed ring.png": [foot(segmentation=[[*RING, *RING[:2]]])],
    "crossing ring.png": [foot(segmentation=[[0, 0, 20, 20, 20, 0, 0, 20]])],
    "flat ring.png": [foot(segmentation=[[0, 5, 10, 5, 20, 5]])],
    "circle.png": [foot(segmentation=[CIRCLE])],
    "ring at the border.png": [foot(segmentation=[[0, 0, 64, 0, 64, 48, 0, 48]])],
    "ring outside its box.png": [foot(segmentation=[[40, 30, 50, 30, 50, 40]])],
    "one of two with a ring.png": [foot(), foot(1, 1, 5, 5, segmentation=[RING])],
    "no segmentation.png": [foot(segmentation=[])],
    "joints.png": [hand(11, 21, 2, 12.125, 22, 2, 13, 23.5, 2)],
    "hidden joint.png": [hand(11, 21, 1, 12, 22, 2, 13, 23, 1)],
    "missing joint.png": [hand(11, 21, 2, 0, 0, 0, 13, 23, 1)],
    "joint at the corner.png": [hand(0, 0, 2, 64, 48, 2, 0, 48, 1)],
    "joint outside its box.png": [hand(60, 2, 2, 12, 22, 2, 13, 23, 2)],
    "joints and ring.png": [hand(11, 21, 2, 12, 22, 2, 13, 23, 2, segmentation=[RING])],
    "joints of one of two.png": [foot(1, 1, 5, 5), hand(11, 21, 2, 12, 22, 1, 0, 0, 0)],
    "池塘/照片 一.png": [foot()],
    "a b/c  d.png": [foot()],
    "100%.png": [foot()],
    "#1&2+3?=;.png": [foot()],
    "it's (a) [b] {c}, d.png": [foot()],
    'say "so".png': [foot()],
    "كلب🐕.png": [foot()],
    "a/b/c/d/e/f.png": [foot()],
    "pond/images/x.png": [foot()],
    "0a1b2c3d-upload.png": [foot()],
    "mirrored.jpg": [foot()],
    "upside down.jpg": [foot()],
}
# name: the annotations, and those of them that come round; docs/datasets.md says what cannot be kept
CHANGED: dict[str, tuple[list[Entry], list[Entry]]] = {
    "crowd.png": ([foot(iscrowd=1, segmentation=RLE)], [foot()]),
    "crowd of rings.png": ([foot(iscrowd=1, segmentation=[RING])], [foot()]),
    "mask.png": ([foot(segmentation=RLE)], [foot()]),
    "packed mask.png": ([foot(segmentation={"counts": "PP`0", "size": [48, 64]})], [foot()]),
    "ring of two points.png": ([foot(segmentation=[[1, 2, 3, 4], RING])], [foot(segmentation=[RING])]),
    "over the border.png": ([foot(50, 40, 20, 20), foot(-9, -8, 20, 20)], [foot(50, 40, 14, 8), foot(0, 0, 11, 12)]),
    "elsewhere.png": ([foot(100, 100, 20, 20), foot()], [foot()]),
    "no size.png": ([foot(5, 6, 0, 10), foot(5, 6, 10, 0)], []),
    "box of its ring.png": ([foot(bbox=None, segmentation=[RING])], [foot(10.25, 20.5, 4.75, 7, segmentation=[RING])]),
    "no joint.png": ([hand(1, 2, 0, 3, 4, 0, 0, 0, 0)], [hand()]),
    "place of a missing joint.png": ([hand(11, 21, 2, 9, 9, 0, 13, 23, 1)], [hand(11, 21, 2, 0, 0, 0, 13, 23, 1)]),
    # annotated as stored: a quarter to the right is x' = 48 - y, y' = x; to the left x' = y, y' = 64 - x
    "to the right.jpg": (
        [foot(10, 20, 5, 7, segmentation=[[10, 20, 15, 20, 15, 27]])],
        [foot(21, 10, 7, 5, segmentation=[[28, 10, 28, 15, 21, 15]])],
    ),
    "to the left.jpg": (
        [hand(10, 20, 2, 0, 0, 0, 12, 21, 1, bbox=[10, 20, 5, 7])],
        [hand(20, 54, 2, 0, 0, 0, 21, 52, 1, bbox=[20, 49, 7, 5])],
    ),
}
ORIENTATIONS = {"mirrored.jpg": 2, "upside down.jpg": 3, "to the right.jpg": 6, "to the left.jpg": 8}
NOTES = [
    "1 rings of fewer than 3 points",
    "4 crowds and RLE masks, of which the box is kept",
    "1 objects whose joints are all missing",
    "3 boxes that reached over their image's border, cut there",
    "3 objects whose box has no size",
]


def write_coco(folder: Path) -> Path:
    rows = {**SAME, **{name: before for name, (before, _) in CHANGED.items()}}
    images: list[Entry] = []
    annotations: list[Entry] = []
    for number, (name, entries) in enumerate(rows.items()):
        exif = Image.Exif()
        exif[0x0112] = ORIENTATIONS.get(name, 1)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = Image.new("RGB", SIZE, (number, 2 * number, 255 - number))
        pixels.save(folder / name, exif=exif)
        images.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        annotations += [{**entry, "id": len(annotations) + i, "image_id": number} for i, entry in enumerate(entries)]
    categories = [{"id": 3, "name": "脚 foot"}, {"id": 7, "name": "hand", "keypoints": ["a", "b", "c"]}]
    path = folder / "odd.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def comparable(entry: Entry) -> Entry:
    """Return what an annotation says, by its class and not by its category's number."""
    kept = {"bbox": entry["bbox"], "rings": entry.get("segmentation") or [], "joints": entry.get("keypoints") or []}
    return kept


def test_fifty_odd_images_come_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(SAME) + len(CHANGED) >= 50
    source, out = write_coco(tmp_path / "coco"), str(tmp_path)
    assert antgo.main(["extract/coco", "--src", str(source), "--tgt", f"{out}/a", "--keep-empty"]) == 0
    notes = capsys.readouterr().err
    assert [note for note in NOTES if f"note: {note}" not in notes] == []
    assert antgo.main(["label/studio", "--to", "--src", f"{out}/a/annotation.json", "--tgt", f"{out}/b"]) == 0
    words = ["--src", f"{out}/b/annotation_studio.json", "--tgt", f"{out}/a", "--tags", "脚 foot,hand"]
    assert antgo.main(["label/studio", "--from", "--keep-unlabelled", *words]) == 0
    assert antgo.main(["package/coco", "--src", f"{out}/a/annotation_studio_label.json", "--tgt", f"{out}/c"]) == 0
    content = json.loads((tmp_path / "c/_annotations.coco.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in content["categories"]] == ["脚 foot", "hand"]
    expected = {**SAME, **{name: after for name, (_, after) in CHANGED.items()}}
    assert [entry["file_name"].removeprefix("images/") for entry in content["images"]] == list(expected)
    for image, (name, entries) in zip(content["images"], expected.items(), strict=True):
        turned = ORIENTATIONS.get(name, 1) > 4
        assert (image["width"], image["height"]) == (SIZE[::-1] if turned else SIZE), name
        found = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        assert [entry["category_id"] for entry in found] == [1 if e["category_id"] == 3 else 2 for e in entries], name
        assert_close([comparable(entry) for entry in found], [comparable(entry) for entry in entries])
