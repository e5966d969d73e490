"""COCO, VOC and YOLO -> standard annotations and back: values from the formats' own definitions."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_loader.box_target import BoxTarget
from data_loader.coco import read_coco
from tests.helpers.boxes import scene, voc, write_boxes, yolo
from tests.helpers.records import HOLES, RING, assert_close, odd_records, picture, records_of, write_set
from tools import antgo

FLAT = [number for point in RING for number in point]


def coco_file(folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    categories = [
        {"id": 7, "name": "hand", "keypoints": ["a", "b", "c"], "skeleton": [[1, 2], [2, 3]]},
        {"id": 3, "name": "foot"},
    ]
    for number, entry in enumerate(images):
        entry.setdefault("id", number)
    for number, entry in enumerate(annotations):
        entry |= {"id": number, **{"iscrowd": 0, **entry}}
    path = folder / "instances.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def odd_coco(folder: Path) -> Path:
    """Write a crowd, RLE, rings, joints, boxes over the border and of no size, a turned and a bad image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, name in enumerate(("一.png", "b/2.png")):
        picture(folder / name, (64, 48), number)
    picture(folder / "turned.jpg", (64, 48), 2, exif=exif)
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff no image")
    images: list[dict[str, Any]] = [
        {"file_name": "一.png", "width": 64, "height": 48},
        {"file_name": "b/2.png", "width": 64, "height": 48},
        {"file_name": "turned.jpg", "width": 64, "height": 48},  # as it is stored
        {"file_name": "bad.jpg", "width": 64, "height": 48},
        {"file_name": "empty.png", "width": 64, "height": 48},
    ]
    picture(folder / "empty.png", (64, 48), 3)
    rle = {"counts": [0, 10], "size": [48, 64]}
    return coco_file(
        folder,
        images,
        [
            {"image_id": 0, "category_id": 3, "bbox": [1, 2, 30, 40], "segmentation": rle, "iscrowd": 1},
            {"image_id": 0, "category_id": 7, "bbox": [0.5, 1.5, 2.25, 3.125], "segmentation": [FLAT, [1, 2, 3, 4]]},
            {"image_id": 0, "category_id": 3, "bbox": [50, 40, 20, 20], "segmentation": []},
            {"image_id": 1, "category_id": 7, "bbox": [5, 6, 0, 10]},
            {
                **{"image_id": 1, "category_id": 7, "bbox": [5, 6, 10, 10]},
                "keypoints": [5, 6, 2, 9, 9, 0, 7.5, 8, 1],
            },
            {"image_id": 2, "category_id": 3, "bbox": [10, 20, 5, 7], "segmentation": [[10, 20, 15, 20, 15, 27]]},
            {"image_id": 3, "category_id": 3, "bbox": [10, 20, 5, 7]},
        ],
    )


def test_coco_becomes_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = odd_coco(tmp_path / "coco")
    assert antgo.main(["extract/coco", "--src", str(path), "--tgt", str(tmp_path / "set")]) == 1
    first, second, turned = records_of(tmp_path / "set")
    assert first["image_file"] == "images/一.png" and (first["width"], first["height"]) == (64, 48)
    assert first["bboxes"] == [[1, 2, 31, 42], [0.5, 1.5, 2.75, 4.625], [50, 40, 64, 48]]
    assert first["labels"] == [0, 1, 0] and first["label_names"] == ["foot", "hand", "foot"]  # by id
    assert first["segments"] == [[], RING, []] and first["has_segments"] == [0, 1, 0]
    assert second["bboxes"] == [[5, 6, 15, 16]]
    assert second["joints2d"] == [[[5, 6], [0, 0], [7.5, 8]]] and second["joints_vis"] == [[2, 0, 1]]
    # turned by EXIF's orientation 6, a quarter to the right: x' = 48 - y, y' = x
    assert (turned["width"], turned["height"]) == (48, 64)
    assert turned["bboxes"] == [[48 - 27, 10, 48 - 20, 15]]
    assert turned["segments"] == [[[28, 10], [28, 15], [21, 15]]]
    meta = json.loads((tmp_path / "set/meta.json").read_text())["meta"]
    assert meta["category"] == ["foot", "hand"] and meta["skeleton"] == [[0, 1], [1, 2]]
    errors = capsys.readouterr().err
    for line in (
        "left out: bad.jpg: it is not an image of a known format",
        "note: 1 crowds and RLE masks",
        "note: 1 rings of fewer than 3 points",
        "note: 1 boxes that reached over their image's border",
        "note: 1 objects whose box has no size",
        "note: 1 images without objects, not kept",
    ):
        assert line in errors
    image = tmp_path / "set" / first["image_file"]
    assert image.samefile(tmp_path / "coco/一.png")  # a link


def test_tags_and_image_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(odd_coco(tmp_path / "coco"))
    words = ["extract/coco", "--src", path, "--no-pictures"]
    assert antgo.main([*words, "--tgt", str(tmp_path / "a"), "--tags", "hand", "--image-label", "--keep-empty"]) == 1
    found = records_of(tmp_path / "a")
    assert [(r["image_file"], r["labels"], r["image_label"]) for r in found] == [
        *(("一.png", [0], 0), ("b/2.png", [0], 0), ("turned.jpg", [], -1), ("empty.png", [], -1)),
    ]
    assert antgo.main([*words, "--tgt", str(tmp_path / "b"), "--tags", "foot:0,hand:0"]) == 1
    found = records_of(tmp_path / "b")
    assert found[0]["labels"] == [0, 0, 0] and found[0]["label_names"] == ["foot"] * 3
    assert antgo.main([*words, "--tgt", str(tmp_path / "c"), "--tags", "hend"]) == 2
    assert 'did you mean "hand"?' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"categories": None}, "expected COCO's"),
        (
            {"annotations": [{"image_id": 9, "category_id": 3, "bbox": [0, 0, 5, 5]}]},
            "1 image_id of annotations are of",
        ),
        ({"annotations": [{"image_id": 0, "category_id": 4, "bbox": [0, 0, 5, 5]}]}, "category_id 4 is none"),
        ({"annotations": [{"image_id": 0, "category_id": 3, "bbox": [0, 0, -5, 5]}]}, "must be at least 0, got -5"),
        (
            {"annotations": [{"image_id": 0, "category_id": 3, "bbox": [0, 0, 5, 5], "keypoints": [1, 2]}]},
            "keypoints must be x, y, visibility",
        ),
        ({"images": [{"id": 0, "file_name": "../a.png"}]}, 'file_name "../a.png" leaves the folder'),
    ],
)
def test_mistakes_of_coco(
    tmp_path: Path, change: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = coco_file(tmp_path, [{"file_name": "a.png"}], [])
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps(content))
    assert antgo.main(["extract/coco", "--src", str(path), "--tgt", str(tmp_path / "set")]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "set").exists()
    assert antgo.main(["extract/coco", "--src", str(path), "--tgt", str(tmp_path)]) == 2
    assert "it is the source's folder" in capsys.readouterr().err


def comparable(path: Path) -> list[dict[str, Any]]:
    """Return a COCO file's images by name, each with its annotations, without ids."""
    content = json.loads(path.read_text(encoding="utf-8"))
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    rows = []
    for image in content["images"]:
        own = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        rows.append(
            {
                "image": Path(image["file_name"]).name,
                "objects": [
                    {
                        "name": names[entry["category_id"]],
                        "bbox": entry["bbox"],
                        "rings": entry.get("segmentation") or [],
                        "keypoints": entry.get("keypoints", []),
                    }
                    for entry in own
                ],
            }
        )
    return rows


def test_through_label_studio_and_back(tmp_path: Path) -> None:
    """COCO -> standard -> Label Studio -> standard -> COCO: the same within 1e-6 px, but for what cannot be."""
    source, out = odd_coco(tmp_path / "coco"), str(tmp_path)
    assert antgo.main(["extract/coco", "--src", str(source), "--tgt", f"{out}/a", "--keep-empty"]) == 1
    assert antgo.main(["label/studio", "--to", "--src", f"{out}/a/annotation.json", "--tgt", f"{out}/b"]) == 0
    words = ["--src", f"{out}/b/annotation_studio.json", "--tgt", f"{out}/a", "--tags", "foot,hand"]
    assert antgo.main(["label/studio", "--from", "--keep-unlabelled", *words]) == 0
    assert_close(records_of(tmp_path / "a/annotation_studio_label.json"), records_of(tmp_path / "a"))
    assert antgo.main(["package/coco", "--src", f"{out}/a/annotation_studio_label.json", "--tgt", f"{out}/c"]) == 0
    before, after = comparable(source), comparable(tmp_path / "c/_annotations.coco.json")
    expected = copy.deepcopy([row for row in before if row["image"] != "bad.jpg"])
    crowd, ringed, over = expected[0]["objects"]
    crowd["rings"] = []  # an RLE mask
    ringed["rings"] = [FLAT]  # a ring of two points
    over["bbox"] = [50, 40, 14, 8]  # cut at the border
    del expected[1]["objects"][0]  # of no size
    expected[1]["objects"][0]["keypoints"][3:6] = [0, 0, 0]  # of a missing joint nothing is kept
    expected[2]["objects"][0] |= {"bbox": [21, 10, 7, 5], "rings": [[28, 10, 28, 15, 21, 15]]}  # upright
    assert_close(after, expected)


def test_packed_coco_trains(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [record for record in odd_records() if record["image_file"][0] not in "b"])
    words = ["--src", str(tmp_path / "set/annotation.json"), "--tgt", str(tmp_path / "coco")]
    assert antgo.main(["package/coco", *words]) == 0
    data = read_coco(str(tmp_path / "coco/_annotations.coco.json"), str(tmp_path / "coco"))
    assert [found.name for found in data.classes] == ["heron", "tern", "鹭"]
    assert np.array_equal(data.rows[0][1].boxes, [[31.5, 40.0, 60.25, 47.125]]) and data.rows[0][1].names == ("tern",)
    assert antgo.main(["package/coco", *words]) == 2


def test_images_of_others_in_the_target_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = odd_coco(tmp_path / "coco")
    (tmp_path / "set/images").mkdir(parents=True)
    (tmp_path / "set/images/一.png").write_bytes(b"somebody's")
    assert antgo.main(["extract/coco", "--src", str(path), "--tgt", str(tmp_path / "set")]) == 1
    assert "images/一.png: another file of this name is there already" in capsys.readouterr().err
    assert (tmp_path / "set/images/一.png").read_bytes() == b"somebody's"
    assert len(records_of(tmp_path / "set")) == 2


@pytest.mark.parametrize("skeleton", [5, [[1]], [["a", "b"]], None])
def test_a_skeleton_of_another_form_is_none(tmp_path: Path, skeleton: Any) -> None:
    source = odd_coco(tmp_path / "coco")
    content = json.loads(source.read_text(encoding="utf-8"))
    content["categories"][0]["skeleton"] = skeleton
    source.write_text(json.dumps(content), encoding="utf-8")
    assert antgo.main(["extract/coco", "--src", str(source), "--tgt", str(tmp_path / "set")]) < 2
    assert json.loads((tmp_path / "set/meta.json").read_text(encoding="utf-8"))["meta"]["skeleton"] == []


def test_areas_and_rings(tmp_path: Path) -> None:
    record = next(record for record in odd_records() if record["image_file"].startswith("b/#"))
    write_set(tmp_path / "set", [record])
    antgo.main(["package/coco", "--src", str(tmp_path / "set/annotation.json"), "--tgt", str(tmp_path / "coco")])
    entries = json.loads((tmp_path / "coco/_annotations.coco.json").read_text())["annotations"]
    # a triangle's half base times height; the four corners by the trapezium rule
    assert entries[0]["area"] == pytest.approx(28.75 * 7.125 / 2 + 7 * (3 + 3.5) / 2)
    assert entries[0]["segmentation"] == [[number for point in ring for number in point] for ring in HOLES]
    assert entries[1]["area"] == pytest.approx((10.1 - 1 / 3) * (20.7 - 2 / 3))


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_folders_with_annotations(tmp_path: Path, kind: str) -> None:
    source = write_boxes(tmp_path, train=4, valid=1) / "train"
    if kind == "yolo":
        for number, path in enumerate(sorted((source / "labels").iterdir())):
            path.with_suffix(".txt").write_text(yolo(scene(number)[1] if number < 3 else []))
            path.unlink()
        (source / "classes.txt").write_text("blue\nred\n")
    target = tmp_path / "set"
    assert antgo.main([f"extract/{kind}", "--src", str(source), "--tgt", str(target)]) == 0
    found = records_of(target)
    assert [record["image_file"] for record in found] == [f"images/0{number}.png" for number in range(4)]
    for number, record in enumerate(found[:3]):
        objects = scene(number)[1]
        assert record["label_names"] == [name for name, *_ in objects]
        assert record["labels"] == [["blue", "red"].index(name) for name, *_ in objects]
        np.testing.assert_allclose(record["bboxes"], [box for _, *box in objects], atol=1e-9)
    assert found[3]["bboxes"] == []
    back = tmp_path / "back"
    assert antgo.main([f"package/{kind}", "--src", str(target / "annotation.json"), "--tgt", str(back)]) == 0
    samples = BoxTarget(2).read_folder(str(back)) if kind == "voc" else None
    if samples is not None:
        assert samples.class_names == ("blue", "red")
        np.testing.assert_allclose(samples.samples[0].target.boxes, [box for _, *box in scene(0)[1]])
    assert antgo.main([f"extract/{kind}", "--src", str(back), "--tgt", str(tmp_path / "again")]) == 0
    again = records_of(tmp_path / "again")
    assert [Path(record["image_file"]).name for record in again] == [f"images-0{number}.png" for number in range(4)]
    for record, other in zip(found, again, strict=True):
        np.testing.assert_allclose(
            np.reshape(other["bboxes"], (-1, 4)), np.reshape(record["bboxes"], (-1, 4)), atol=1e-9
        )
        assert record["labels"] == other["labels"]


def test_what_a_folder_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_boxes(tmp_path, train=4, valid=1) / "train"
    (source / "labels/00.xml").write_text("<annotation><object/></annotation>")
    (source / "labels/01.xml").write_text(voc([("red", 3, 3, 3, 9), ("red", 1, 1, 5, 5)], difficult=1))
    (source / "labels/02.xml").write_text(voc([("red", 1, 1, 5, 5)], (9, 9)))
    words = ["extract/voc", "--src", str(source), "--tgt"]
    assert antgo.main([*words, str(tmp_path / "set")]) == 1
    errors = capsys.readouterr().err
    assert "images/00.png: its annotation" in errors and "object 1 has no name" in errors
    assert "images/02.png: its annotation is of 9x9, the image is 72x64" in errors
    assert "note: 1 objects whose box has no size" in errors and "2 difficult objects" in errors
    assert [record["bboxes"] for record in records_of(tmp_path / "set")] == [[[1, 1, 5, 5]], []]
    assert antgo.main([*words, str(tmp_path / "b"), "--tags", "rad"]) == 2
    assert 'did you mean "red"?' in capsys.readouterr().err
    assert antgo.main(["extract/yolo", *words[1:], str(tmp_path / "b")]) == 2
    assert "it holds .xml files; read them with extract/voc" in capsys.readouterr().err


def test_yolo_needs_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a/images/1.png")
    (tmp_path / "a/labels").mkdir()
    (tmp_path / "a/labels/1.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    words = ["extract/yolo", "--src", str(tmp_path / "a"), "--tgt", str(tmp_path / "set")]
    assert antgo.main(words) == 2
    assert "YOLO's files have but numbers; name the classes in --tags or classes.txt" in capsys.readouterr().err
    assert antgo.main([*words, "--tags", "x,y"]) == 0
    assert records_of(tmp_path / "set")[0]["bboxes"] == [[16, 12, 48, 36]]
    assert records_of(tmp_path / "set")[0]["label_names"] == ["y"]
