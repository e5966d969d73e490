"""Label Studio: what is written, by its documented form, and what is read of its exports."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from datasets.outcome import Outcome
from datasets.studio_reader import studio_annotations
from tests.helpers.records import assert_close, odd_records, picture, records_of, write_set
from tools import antgo


def export(path: Path, *tasks: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def region(kind: str, value: dict[str, Any], **changes: Any) -> dict[str, Any]:
    sides = {"original_width": 200, "original_height": 100, "image_rotation": 0}
    return {"id": "r", "from_name": "x", "to_name": "image", "type": kind, **sides, "value": value, **changes}


def rect(x: float, y: float, width: float, height: float, name: str = "tern", **changes: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [name]}
    return region("rectanglelabels", {**value, **changes.pop("value", {})}, **changes)


def task(*results: dict[str, Any], image: str = "/data/upload/3/0123abcd-a.png", **changes: Any) -> dict[str, Any]:
    return {"data": {"image": image}, "annotations": [{"was_cancelled": False, "result": list(results)}], **changes}


def read(tmp_path: Path, *tasks: dict[str, Any], flags: tuple[str, ...] = (), code: int = 0) -> list[dict[str, Any]]:
    source = export(tmp_path / "export/x.json", *tasks)
    words = [
        "label/studio",
        "--from",
        "--src",
        str(source),
        "--tgt",
        str(tmp_path / "set"),
        "--overwrite",
        "--no-pictures",
    ]
    assert antgo.main([*words, *flags]) == code
    made = sorted((tmp_path / "set").glob("x_label*.json"), key=lambda path: path.stat().st_mtime_ns)
    return records_of(made[-1]) if code < 2 else []


@pytest.mark.parametrize(
    ("proposals", "sentence"),
    [
        ({"bboxes": [[1]], "labels": [0]}, "box 0 must be [x0, y0, x1, y1]"),
        ({"bboxes": [[1, 2, 3, 4]]}, "bboxes has 1 entries, labels has 0"),
        ({"image_label": 7}, "image_label 7 is outside 0..2"),
        ({"image_label": 0, "scores": 5}, "scores must be a list"),
    ],
)
def test_predictions_that_cannot_be_used(
    tmp_path: Path, proposals: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are left out, and the record with its own label stays."""
    record = {"image_file": "a.jpg", "height": 48, "width": 64, "image_label": 1, "predictions": proposals}
    source = write_set(tmp_path, [record])
    words = ["label/studio", "--to", "--src", str(source), "--tgt", str(tmp_path / "out")]
    assert antgo.main(words) == 1
    assert f"left out: a.jpg: its predictions: {sentence}" in capsys.readouterr().err
    (item,) = json.loads((tmp_path / "out/annotation_studio.json").read_text())
    assert "predictions" not in item and len(item["annotations"]) == 1


@pytest.mark.parametrize(
    "result",
    [
        *(None, [5], [{"value": None}], [region("choices", {"choices": "a"})]),
        *([rect(1, 2, 3, 4, value={"rectanglelabels": 5})], [rect(1, 2, 3, 4, value={"rotation": "a"})]),
        [region("polygonlabels", {"points": [1, 2], "polygonlabels": ["tern"]})],
    ],
)
def test_results_of_another_form(tmp_path: Path, result: Any, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"data": {"image": "/data/upload/3/0123abcd-a.png"}, "annotations": [{"result": result}]}
    assert not read(tmp_path, task(rect(1, 2, 3, 4)), odd, code=2)
    assert (
        "expected Label Studio's JSON export, a list of tasks with data and annotations, got a"
        in capsys.readouterr().err
    )


def test_the_contracts_item(tmp_path: Path) -> None:
    """The example of Label Studio's form, byte for byte in its values."""
    record = {
        **{"image_file": "pond/0007.jpg", "height": 480, "width": 640, "label_names": ["tern"]},
        **{"bboxes": [[31.5, 40.0, 210.0, 300.0]], "labels": [1]},
        "predictions": {"image_label": 1, "score": 0.93, "weights_sha256": "net.pth"},
    }
    source = write_set(tmp_path, [record])
    words = ["--to", "--src", str(source), "--tgt", str(tmp_path / "out"), "--prefix", "P"]
    assert antgo.main(["label/studio", *words]) == 0
    (item,) = json.loads((tmp_path / "out/annotation_studio.json").read_text())
    assert item["data"]["image"] == "/data/local-files/?d=P/pond/0007.jpg" and item["data"]["gt_index"] == 0
    sides = {"original_width": 640, "original_height": 480, "image_rotation": 0}
    value = {"x": 4.921875, "y": 8.333333333333334, "width": 27.890625, "height": 54.166666666666664}
    assert item["annotations"] == [
        {
            "was_cancelled": False,
            "ground_truth": False,
            "result": [
                {
                    **{"id": "0_r0", "from_name": "rect", "to_name": "image", "type": "rectanglelabels", **sides},
                    "value": {**value, "rotation": 0, "rectanglelabels": ["tern"]},
                }
            ],
        }
    ]
    (proposal,) = item["predictions"]
    assert (proposal["model_version"], proposal["score"]) == ("net.pth", 0.93)
    assert proposal["result"][0]["value"] == {"choices": ["tern"]} and proposal["result"][0]["type"] == "choices"
    view = ElementTree.parse(tmp_path / "out/annotation_studio.xml").getroot()
    assert [(child.tag, child.attrib["name"]) for child in view] == [
        *(("Image", "image"), ("RectangleLabels", "rect"), ("PolygonLabels", "polygon"), ("Choices", "class")),
    ]
    assert [label.attrib["value"] for label in view[1]] == ["heron", "tern", "鹭"]


@pytest.mark.parametrize("prefix", ["", "P/q"])
def test_there_and_back(tmp_path: Path, prefix: str) -> None:
    """Every odd record is the same within 1e-6 px; the one without any label waits for one."""
    source = write_set(tmp_path)
    out = tmp_path / "out"
    assert antgo.main(["label/studio", "--to", "--src", str(source), "--tgt", str(out), "--prefix", prefix]) == 0
    words = ["--src", str(out / "annotation_studio.json"), "--tgt", str(tmp_path), "--tags", "heron,tern,鹭"]
    assert antgo.main(["label/studio", "--from", *words]) == 1
    found = records_of(tmp_path / "annotation_studio_label.json")
    assert_close(found, [record for record in records_of(source) if record["image_file"] != "empty.jpg"])
    assert antgo.main(["label/studio", "--from", "--keep-unlabelled", *words]) == 0
    assert_close(records_of(tmp_path / "annotation_studio_label_0.json"), records_of(source))


def test_the_interface_has_the_joints_order(tmp_path: Path) -> None:
    """Label Studio's converter to COCO takes the order of key points from `model_index`."""
    source = write_set(tmp_path, odd_records())
    assert antgo.main(["label/studio", "--to", "--src", str(source), "--tgt", str(tmp_path / "out")]) == 0
    points = ElementTree.parse(tmp_path / "out/annotation_studio.xml").getroot().find("KeyPointLabels")
    assert points is not None and [label.attrib for label in points] == [
        {"value": str(joint), "model_index": str(joint)} for joint in range(3)
    ]


def test_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring = [[0, 0], [10, 0], [10, 20]]
    point = {"x": 30, "y": 40, "width": 1}
    (found,) = read(
        tmp_path,
        task(
            rect(10, 20, 30, 40),
            region("polygonlabels", {"points": ring, "polygonlabels": ["heron"]}, id="p"),
            region("polygonlabels", {"points": ring, "polygonlabels": ["tern"]}, id="q", parentID="r"),
            region("keypointlabels", {**point, "keypointlabels": ["1"]}, id="k", parentID="r"),
            region("keypointlabels", {**point, "keypointlabels": ["0"]}, id="l", parentID="other"),
            region("brushlabels", {"format": "rle"}, id="b"),
            region("choices", {"choices": ["x", "y"]}, id="c"),
        ),
    )
    assert found["image_file"] == "a.png" and (found["width"], found["height"]) == (200, 100)
    assert found["bboxes"] == [[20, 20, 80, 60], [0, 0, 20, 20]]
    assert found["label_names"] == ["tern", "heron"] and found["labels"] == [1, 0]
    assert found["segments"] == [[[0, 0], [20, 0], [20, 20]]] * 2
    assert found["joints2d"] == [[[0, 0], [60, 40]], []] and found["joints_vis"] == [[0, 1], []]
    assert (found["image_label"], found["image_label_name"]) == (-1, "x,y")
    notes = capsys.readouterr().err
    assert "1 regions of type brushlabels, left out" in notes and "1 key points without a rectangle" in notes
    assert "1 objects whose box has no size" in notes


def test_a_turned_rectangle_becomes_the_box_around_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = read(tmp_path, task(rect(50, 50, 10, 40, value={"rotation": 90})))
    # 20 x 40 px, turned to the right about its corner (100, 50): to the left of it, 40 wide and 20 high
    assert found["bboxes"][0] == pytest.approx([60, 50, 100, 70])
    assert "1 turned rectangles" in capsys.readouterr().err


def test_which_annotation_counts(tmp_path: Path) -> None:
    def made(x: float, **more: Any) -> dict[str, Any]:
        return {"was_cancelled": False, "ground_truth": False, "result": [rect(x, 0, 10, 10)], **more}

    several = {
        "data": {"image": "/data/local-files/?d=P/a%20b.png"},
        "annotations": [
            made(0, created_at="2026-01-02", ground_truth=True),
            made(10, created_at="2026-01-01", updated_at="2026-01-05"),
            made(20, created_at="2026-01-04"),
            made(30, updated_at="2026-01-09", was_cancelled=True),
        ],
    }
    for which, left in (("newest", 20), ("first", 0), ("ground_truth", 0)):
        (found,) = read(tmp_path, several, flags=("--which", which))
        assert found["bboxes"][0][0] == left and found["image_file"] == "P/a b.png"
    cancelled = {"data": {"image": "b.png"}, "annotations": [made(30, was_cancelled=True)]}
    assert len(read(tmp_path, several, cancelled, code=1)) == 1
    assert len(read(tmp_path, several, cancelled, flags=("--keep-unlabelled",))) == 2


def test_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [
        {**task(rect(0, 0, 5, 5)), "data": {"image": "/data/upload/1/0a-x.png", "file_upload": "0123abcd-照 1.png"}},
        task(rect(0, 0, 5, 5), image="http://a.org/1.png"),
        task(rect(0, 0, 5, 5, "gull"), image="b.png"),
    ]
    found = read(tmp_path, *tasks, flags=("--prefix", "set", "--tags", "tern"))
    assert [(r["image_file"], r["image_url"], r["labels"]) for r in found] == [
        *(("set/照 1.png", "", [0]), ("", "http://a.org/1.png", [0]), ("set/b.png", "", [-1])),
    ]
    assert "1 labels of classes that --tags does not name" in capsys.readouterr().err


def test_images_beside_the_export_are_taken_along(tmp_path: Path) -> None:
    picture(tmp_path / "export/a.png", (200, 100))
    picture(tmp_path / "export/0123abcd-a.png", (200, 100))
    (found,) = with_images(tmp_path, 0)
    assert found["image_file"] == "images/a.png" and (tmp_path / "set/images/a.png").is_file()


def with_images(tmp_path: Path, code: int) -> list[dict[str, Any]]:
    source = export(tmp_path / "export/x.json", task(rect(0, 0, 5, 5)))
    words = ["label/studio", "--from", "--src", str(source), "--tgt", str(tmp_path / "set")]
    assert antgo.main(words) == code
    return records_of(tmp_path / "set/x_label.json")


@pytest.mark.parametrize("place", ["", "media/upload/3/", "upload/3/"])
def test_images_by_the_names_that_label_studio_stores(tmp_path: Path, place: str) -> None:
    picture(tmp_path / f"export/{place}0123abcd-a.png", (200, 100))
    (found,) = with_images(tmp_path, 0)
    assert found["image_file"] == f"images/{place}0123abcd-a.png"
    assert (tmp_path / "set" / found["image_file"]).is_file()
    (listed,) = studio_annotations(tmp_path / "export/x.json", Outcome()).records  # as package/list --studio reads it
    assert listed["image_file"] == f"{place}0123abcd-a.png"


def test_images_that_are_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The records are kept by --from, which ends with 1; a list of them is refused."""
    (found,) = with_images(tmp_path, 1)
    assert found["image_file"] == "a.png"
    sentence = f"left out: the images: 1 of 1 lie neither in {tmp_path}/export nor in {tmp_path}/set; the first, a.png,"
    assert sentence in capsys.readouterr().err
    words = ["package/list", "--studio", "--src", str(tmp_path / "export/x.json"), "--tgt", str(tmp_path / "lists")]
    assert antgo.main(words) == 2
    told = capsys.readouterr().err
    assert f"none of its 1 images lies beside it; the first, a.png, was looked for in {tmp_path}/export" in told
    assert "1b591d75-NAME" in told and not (tmp_path / "lists").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([{"image": "a.png", "label": []}], "got JSON-MIN, whose tasks have no data"),
        ({"images": [], "annotations": [], "categories": []}, "got COCO; export JSON"),
        ({"a": 1}, "a list of tasks with data and annotations, got"),
        ([task(rect(0, 0, 5, 5, original_width=None))], "has no original_width and original_height"),
        ([task(rect(0, 0, 5, 5, value={"x": "a"}))], "coordinates must be per cent"),
        ([task(rect(90, 0, 50, 5))], "box 0 lies outside its image of 200x100"),
        ([task(rect(0, 0, 5, 5), image="/data/local-files/?d=../a.png")], "leaves the folder"),
    ],
)
def test_mistakes(tmp_path: Path, content: Any, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "x.json"
    source.write_text(json.dumps(content))
    words = ["label/studio", "--src", str(source), "--tgt", str(tmp_path / "set")]
    assert antgo.main([*words, "--from"]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "set").exists()


def test_one_of_from_and_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["label/studio", "--src", str(tmp_path / "x.csv"), "--tgt", str(tmp_path / "set")]
    for flags in ([], ["--from", "--to"]):
        assert antgo.main([*words, *flags]) == 2
        assert "name one of --from" in capsys.readouterr().err
    (tmp_path / "x.csv").write_text("a,b")
    assert antgo.main([*words, "--from"]) == 2
    assert "got CSV" in capsys.readouterr().err


def test_other_classes_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "set", odd_records()[:1])
    source = export(tmp_path / "x.json", task(rect(0, 0, 5, 5)))
    assert antgo.main(["label/studio", "--from", "--src", str(source), "--tgt", str(tmp_path / "set")]) == 2
    assert "its meta.json has other classes" in capsys.readouterr().err


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The interface is refused as the tasks are; a further export beside the same classes leaves meta.json's words."""
    source = write_set(tmp_path / "set", odd_records()[:1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/annotation_studio.xml").write_text("mine")
    words = ["label/studio", "--to", "--src", str(source), "--tgt", str(tmp_path / "out")]
    assert antgo.main(words) == 2 and "it holds annotation_studio.xml already" in capsys.readouterr().err
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert antgo.main([*words, "--overwrite"]) == 0
    export_file = export(tmp_path / "export/x.json", task(rect(0, 0, 5, 5)))
    picture(tmp_path / "export/a.png", (200, 100))
    words = ["label/studio", "--from", "--src", str(export_file), "--tgt", str(tmp_path / "made")]
    assert antgo.main(words) == 0
    meta = json.loads((tmp_path / "made/meta.json").read_text()) | {"author": "ann"}
    (tmp_path / "made/meta.json").write_text(json.dumps(meta))
    assert antgo.main(words) == 0 and (tmp_path / "made/x_label_0.json").is_file()
    assert json.loads((tmp_path / "made/meta.json").read_text()) == meta
