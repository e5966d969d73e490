"""label/merge, filter/tags, extract/samples, extract/crop, package/list: what they keep, write and refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_loader.box_target import BoxTarget
from data_loader.decoding import decode
from data_loader.list_reader import read_list, read_target_list
from data_loader.mask_classes import default_classes
from data_loader.mask_target import MaskTarget
from datasets.crop import crop_window
from datasets.files import write_annotations
from tests.helpers.records import odd_records, picture, records_of, write_set
from tools import antgo

BOX: dict[str, Any] = {"width": 64, "height": 48, "bboxes": [[1.0, 2.0, 30.0, 40.0]], "labels": [0]}


def labelled(count: int, **changes: Any) -> list[dict[str, Any]]:
    names = ["heron", "tern"]
    return [
        {
            **{"image_file": f"p/{number}.png", "width": 8, "height": 8, "image_label": number % 2},
            **{"image_label_name": names[number % 2], **changes},
        }
        for number in range(count)
    ]


def test_merge_unites_classes_and_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, records, category in (
        ("a", [{**BOX, "image_file": "x.png"}, {**BOX, "image_file": "y.png"}], ["heron", "tern"]),
        ("b", [{**BOX, "image_file": "x.png"}, {**BOX, "image_file": "other/y.png"}], ["gull", "heron"]),
    ):
        for number, record in enumerate(records):
            picture(tmp_path / name / record["image_file"], seed=7 if number else ord(name))
        write_annotations(tmp_path / name, records, category)
    words = ["label/merge", "--src", f"{tmp_path}/a,{tmp_path}/b/annotation.json", "--to", str(tmp_path / "out")]
    # y.png and other/y.png are the same image: heron in one, gull in the other
    assert antgo.main(words) == 2
    errors = capsys.readouterr().err
    assert "choose with --conflict first, last or keep" in errors
    assert "record 1 (other/y.png) has other labels than before" in errors
    assert not (tmp_path / "out").exists()
    for conflict, names in (("first", ["heron", "heron", "gull"]), ("last", ["heron", "gull", "gull"])):
        out = tmp_path / conflict
        assert antgo.main([*words[:-1], str(out), "--conflict", conflict]) == 0
        found = records_of(out / "annotation_merge.json")
        assert [record["label_names"][0] for record in found] == names
        assert [record["labels"][0] for record in found] == [["heron", "tern", "gull"].index(name) for name in names]
        assert len({record["image_file"] for record in found}) == 3  # x.png are two images
        for record in found:
            assert (out / record["image_file"]).is_file()
    assert antgo.main([*words[:-1], str(tmp_path / "keep"), "--conflict", "keep"]) == 0
    assert len(records_of(tmp_path / "keep/annotation_merge.json")) == 4


def test_merge_of_the_same_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_set(tmp_path / "a")
    (tmp_path / "b.json").write_bytes(source.read_bytes())
    nearly = json.loads(source.read_text())
    nearly[0]["bboxes"][0][0] += 1e-9
    (source.parent / "again.json").write_text(json.dumps(nearly))
    out = str(tmp_path / "out")
    assert antgo.main(["label/merge", "--src", str(source.parent), "--tgt", out]) == 0
    assert "note: 6 records of the same image with the same labels" in capsys.readouterr().err
    assert len(records_of(tmp_path / "out/annotation_merge.json")) == 6
    assert antgo.main(["label/merge", "--src", str(source), "--tgt", out]) == 2
    assert "name those to unite" in capsys.readouterr().err


def test_merge_counts_up_and_keeps_what_meta_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    details = {"skeleton": [[0, 1]], "joints": ["head", "tail"]}
    for name, category in (("a", ["heron"]), ("b", ["tern"]), ("c", ["gull"])):
        picture(tmp_path / name / "x.png", seed=ord(name))
        meta = {"author": "ann", "meta": details if name == "b" else {}}
        write_annotations(tmp_path / name, [{**BOX, "image_file": "x.png"}], category, meta)
    out = tmp_path / "out"
    words = ["label/merge", "--tgt", str(out), "--src"]
    assert antgo.main([*words, f"{tmp_path}/a,{tmp_path}/b"]) == 0
    meta = json.loads((out / "meta.json").read_text())
    assert {key: meta["meta"][key] for key in ("skeleton", "joints", "category")} == {
        **details,
        "category": ["heron", "tern"],
    }
    (out / "meta.json").write_text(json.dumps(meta | {"license": "CC0"}))
    before = (out / "annotation_merge.json").read_bytes()
    for number in range(2):
        assert antgo.main([*words, f"{tmp_path}/a,{tmp_path}/b"]) == 0
        assert (out / f"annotation_merge_{number}.json").read_bytes() == before
    assert json.loads((out / "meta.json").read_text()) == meta | {"license": "CC0"}
    assert antgo.main([*words, f"{tmp_path}/a,{tmp_path}/c"]) == 2
    assert "its meta.json has other classes" in capsys.readouterr().err
    assert len(list(out.glob("*.json"))) == 4
    (tmp_path / "file").write_text("")
    assert antgo.main(["label/merge", "--src", f"{tmp_path}/a,{tmp_path}/b", "--to", str(tmp_path / "file")]) == 2
    assert "it is a file, not a folder" in capsys.readouterr().err


def test_merge_moves_the_classes_of_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proposals = [
        {"bboxes": [[1.0, 2.0, 3.0, 4.0]], "labels": [1], "image_label": 0, "score": 0.5, "scores": [0.25]},
        {"image_label": 1, "image_label_name": "heron"},
        {"labels": ["heron"]},
    ]
    (tmp_path / "b").mkdir()
    write_annotations(tmp_path / "a", [{"image_file": "0.png", "predictions": proposals[2]}], ["heron"])
    rows = [{"image_file": f"{number}.png", "predictions": each} for number, each in enumerate(proposals, 1)]
    write_annotations(tmp_path / "b", rows, ["tern", "heron"])
    words = ["label/merge", "--src", f"{tmp_path}/a,{tmp_path}/b", "--tgt", str(tmp_path / "out"), "--no-pictures"]
    assert antgo.main(words) == 0
    first, second, third, fourth = (r["predictions"] for r in records_of(tmp_path / "out/annotation_merge.json"))
    assert first == proposals[2] and fourth == {}  # heron stays 0 in the first file
    assert (second["labels"], second["label_names"], second["image_label"]) == ([0], ["heron"], 1)
    assert (second["image_label_name"], second["score"], second["scores"]) == ("tern", 0.5, [0.25])
    assert third == {"image_label": 0, "image_label_name": "heron"}
    assert "note: 1 predictions that cannot be read, dropped" in capsys.readouterr().err


def write_review(path: Path, rows: dict[int, tuple[str, list[str]]]) -> Path:
    content = {str(index): [{"id": index, "title": title, "tag": tags}] for index, (title, tags) in rows.items()}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def reviewed(tmp_path: Path) -> tuple[str, str]:
    source = write_annotations(tmp_path, labelled(4), ["heron", "tern"])
    rows = {0: ("p/0.png", ["a", "b"]), 1: ("p/1.png", ["a"]), 2: ("p/2.png", ["c"])}
    return str(source), str(write_review(tmp_path / "annotation_browser.json", rows))


@pytest.mark.parametrize(
    ("flags", "name", "kept"),
    [
        (["--tags", "b,a"], "tags_a_b", [0]),
        (["--tags", "b,a", "--any"], "tags_a_b", [0, 1]),
        (["--tags", "a", "--no-tags", "b"], "tags_a_no_tags_b", [1]),
        (["--no_tags", "b"], "no_tags_b", [1, 2]),
        (["--no-tags", "c", "--unreviewed", "keep"], "no_tags_c", [0, 1, 3]),
    ],
)
def test_filter(tmp_path: Path, reviewed: tuple[str, str], flags: list[str], name: str, kept: list[int]) -> None:
    words = ["filter/tags", "--src", reviewed[0], "--tgt", reviewed[1], *flags]
    assert antgo.main(words) == (0 if "keep" in flags else 1)
    found = records_of(tmp_path / f"annotation_filter_{name}.json")
    assert [record["image_file"] for record in found] == [f"p/{number}.png" for number in kept]
    assert antgo.main(words) == 2


def test_mistakes_of_filter(tmp_path: Path, reviewed: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["filter/tags", "--src", reviewed[0], "--tgt"]
    for review, flags, sentence in (
        (reviewed[1], [], "name --tags that a record must have"),
        (reviewed[1], ["--tags", "a,b", "--no-tags", "b"], 'tag "b" is named twice'),
        (reviewed[0], ["--tags", "a"], "expected a review as browser/images writes it"),
        ("nothing.json", ["--tags", "a"], "the review is not there"),
        (write_review(tmp_path / "o.json", {0: ("p/1.png", [])}), ["--tags", "a"], "it is a review of another file"),
        (write_review(tmp_path / "p.json", {9: ("p/1.png", [])}), ["--tags", "a"], "it is a review of another file"),
    ):
        assert antgo.main([*words, str(review), *flags]) == 2
        assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("*filter*"))


def test_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_annotations(tmp_path, labelled(9), ["heron", "tern"])
    words = ["extract/samples", "--src", str(source), "--num", "3"]
    assert antgo.main([*words, "--feedback"]) == 0
    found = records_of(tmp_path / "annotation_samples_3.json")
    files = [record["image_file"] for record in found]
    assert len(set(files)) == 3 and files == sorted(files)
    shown = capsys.readouterr().out
    assert "total: 9" in shown and "  bboxes: list" in shown and files[0] in shown
    first = (tmp_path / "annotation_samples_3.json").read_bytes()
    assert antgo.main(words) == 2
    assert antgo.main([*words, "--overwrite"]) == 0
    assert (tmp_path / "annotation_samples_3.json").read_bytes() == first
    (tmp_path / "list.txt").write_text("a 0\nb 1\n\nc 2\n")
    assert antgo.main(["extract/samples", "--src", str(tmp_path / "list.txt"), "--num=2", "--seed=1"]) == 0
    lines = (tmp_path / "list_samples_2.txt").read_text().splitlines()
    assert len(lines) == 2 and set(lines) <= {"a 0", "b 1", "c 2"}
    assert antgo.main(["extract/samples", "--src", str(tmp_path / "list.txt"), "--num", "4"]) == 2
    assert "--num must be from 1 to 3" in capsys.readouterr().err


def test_crop_window() -> None:
    """A box of 20 x 10 about (50, 40): 20 * 1.5 = 30 to a side."""
    assert crop_window([40, 35, 60, 45], (100, 80), 0.5, is_square=True) == (35, 25, 65, 55)
    assert crop_window([40, 35, 60, 45], (100, 80), 0.5, is_square=False) == (35, 32, 65, 48)  # 32.5 to 47.5, outwards
    assert crop_window([90, 35, 100, 45], (100, 80), 1.0, is_square=True) == (85, 30, 100, 50)
    assert crop_window([99.9, 79.9, 100.5, 80.5], (100, 80), 0, is_square=True) == (99, 79, 100, 80)


def test_crops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record: dict[str, Any] = {
        **{"image_file": "a/b.png", "width": 100, "height": 80, "clip_tag": "clip", "labels": [1, -1]},
        **{"bboxes": [[40, 35, 60, 45], [0, 0, 4, 8]], "segments": [[[40, 35], [60, 35], [50, 45]], []]},
        **{"has_segments": [1, 0], "joints2d": [[[41, 36], [0, 0]], []], "joints_vis": [[1, 0], []]},
        **{"has_joints2d": [1, 0], "image_label": 0},
    }
    source = write_set(tmp_path / "set", [record, {**BOX, "image_file": "bad.png"}])
    (tmp_path / "set/bad.png").write_bytes(b"no image")
    words = ["extract/crop", "--src", str(source), "--tgt"]
    assert antgo.main([*words, str(tmp_path / "out"), "--ext-ratio", "0.5"]) == 1
    assert "left out: bad.png: it is not an image" in capsys.readouterr().err
    first, second = records_of(tmp_path / "out")
    assert first["image_file"] == "images/tern/a-b.png_box_0_label_tern.png"
    assert second["image_file"] == "images/-1/a-b.png_box_1_label_-1.png"
    assert (first["width"], first["height"], first["image_label"], first["image_label_name"]) == (30, 30, 1, "tern")
    assert first["bboxes"] == [[5, 10, 25, 20]] and first["segments"] == [[[5, 10], [25, 10], [15, 20]]]
    assert first["joints2d"] == [[[6, 11], [0, 0]]] and first["clip_tag"] == "clip"
    whole = np.asarray(decode(str(tmp_path / "set/a/b.png")))
    assert np.array_equal(decode(str(tmp_path / "out" / first["image_file"])), whole[25:55, 35:65])
    for target, flags, sentence in (
        (tmp_path / "b", ["--ext-ratio", "-1"], "--ext-ratio must be from 0 to 10"),
        (tmp_path / "set", ["--overwrite"], "it is the source's folder"),
    ):
        assert antgo.main([*words, str(target), *flags]) == 2
        assert sentence in capsys.readouterr().err


def test_names_of_crops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Paths that become one name, a class that would be the folder above, and another file that is there."""
    records = [{**BOX, "image_file": name} for name in ("a/b.png", "a-b.png", "c.png")]
    for number, record in enumerate(records):
        picture(tmp_path / "set" / record["image_file"], seed=number)
    source = write_annotations(tmp_path / "set", [*records[:2], {**records[2], "labels": [1]}], ["tern", ".."])
    words = ["extract/crop", "--src", str(source), "--tgt", str(tmp_path / "out")]
    assert antgo.main(words) == 0
    found = [record["image_file"] for record in records_of(tmp_path / "out")]
    stem = "images/tern/a-b.png_box_0_label_tern"
    assert found == [f"{stem}.png", f"{stem}-.png", "images/--/c.png_box_0_label_--.png"]
    assert len({(tmp_path / "out" / name).read_bytes() for name in found}) == 3
    (tmp_path / "out/annotation.json").unlink()
    (tmp_path / "out" / found[0]).write_bytes(b"somebody's")
    assert antgo.main(words) == 1
    assert f"left out: {found[0]}: another file of this name is there already" in capsys.readouterr().err
    assert [record["image_file"] for record in records_of(tmp_path / "out")] == found[1:]
    assert (tmp_path / "out" / found[0]).read_bytes() == b"somebody's"


def test_lists_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = labelled(40)
    source = write_set(tmp_path / "set", records)
    words = ["package/list", "--src", str(source), "--tgt", str(tmp_path / "lists")]
    assert antgo.main([*words, "--split", "0.75,0.25", "--stratify"]) == 0
    shown = capsys.readouterr().out
    assert f'"train_data_root_dir": "{tmp_path}/set",' in shown and '"num_classes": 3,' in shown
    names = (tmp_path / "lists/classes.txt").read_text().split()
    train, val = (
        read_list(tmp_path / f"lists/{name}.txt", tmp_path / "set", "----", 3, names) for name in ("train", "val")
    )
    assert (train.class_counts(), val.class_counts()) == ([15, 15, 0], [5, 5, 0])
    known = {str(tmp_path / "set" / record["image_file"]): record["image_label"] for record in records}
    assert {sample.path: sample.label for sample in (*train.samples, *val.samples)} == known
    assert antgo.main(words) == 2
    assert "it holds train.txt already" in capsys.readouterr().err


def test_lists_of_masks_and_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{**BOX, "image_file": f"{number}.png", "semantic_file": f"masks/{number}.png"} for number in range(4)]
    source = write_set(tmp_path / "set", [*records, {**BOX, "image_file": "alone.png"}])
    (tmp_path / "set/masks").mkdir()
    for number in range(4):
        Image.fromarray(np.full((48, 64), number % 3, np.uint8)).save(tmp_path / f"set/masks/{number}.png")
    words = ["package/list", "--src", str(source), "--split", "0.5,0.5", "--tgt"]
    assert antgo.main([*words, str(tmp_path / "masks")]) == 1
    assert "left out: alone.png: it has no semantic_file" in capsys.readouterr().err
    target = MaskTarget(default_classes(["heron", "tern", "鹭"]))
    for name in ("train", "val"):
        found = read_target_list(tmp_path / f"masks/{name}.txt", tmp_path / "set", "----", target)
        for sample in found.samples:
            number = int(Path(sample.path).stem)
            assert np.asarray(target.load(sample)).max() == number % 3
    assert antgo.main([*words, str(tmp_path / "boxes"), "--target", "boxes"]) == 0
    root, boxes = str(tmp_path / "set"), BoxTarget(3)
    read = [
        boxes.read_annotations(f"{tmp_path}/boxes/{n}.json", root, allow_outside_root=False) for n in ("train", "val")
    ]
    assert [len(found.samples) for found in read if found] == [3, 2]
    assert read[0] is not None and read[0].class_names == ("heron", "tern", "鹭")
    assert np.array_equal(read[0].samples[0].target.boxes, BOX["bboxes"])
    assert antgo.main([*words, str(tmp_path / "c"), "--target", "boxes", "--stratify"]) == 2
    assert "--stratify splits by labels" in capsys.readouterr().err


def test_a_clip_stays_in_one_split(tmp_path: Path) -> None:
    records = [{**record, "clip_tag": f"clip{number // 5}"} for number, record in enumerate(labelled(40))]
    source = write_set(tmp_path / "set", records)
    assert antgo.main(["package/list", "--src", str(source), "--tgt", str(tmp_path / "l"), "--split", "0.75,0.25"]) == 0
    clips = [
        {int(line.partition("----")[0][2:-4]) // 5 for line in (tmp_path / f"l/{name}.txt").read_text().splitlines()}
        for name in ("train", "val")
    ]
    assert len(clips[0]) == 6 and len(clips[1]) == 2 and not clips[0] & clips[1]


def test_mistakes_of_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for records, sentence in (
        ([odd_records()[-1]], "there is nothing to learn"),
        (labelled(3, image_file="p.png"), "an image has several records"),
    ):
        source = write_set(tmp_path / "set", records)
        assert antgo.main(["package/list", "--src", str(source), "--tgt", str(tmp_path / "lists")]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "lists").exists()


def test_an_export_becomes_lists_and_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Label Studio's export beside its images, and a recipe: what train.py reads, in one command."""
    tasks = []
    for number in range(10):
        name, choice = f"照 {number}.png", ("tern", "heron")[number % 2]
        picture(tmp_path / "export" / name, (8, 6), number)
        result = [{"id": "x", "type": "choices", "value": {"choices": [choice]}}]
        data = {"image": f"/data/upload/1/0123abcd-{name}"}
        tasks.append({"data": data, "annotations": [{"was_cancelled": False, "result": result}]})
    (tmp_path / "export/照 9.png").unlink()
    source = tmp_path / "export/project-1.json"
    source.write_text(json.dumps(tasks), encoding="utf-8")
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"$schema": "./config.schema.json", "num_classes": 9, "num_epochs": 3, "save_path": "x"}')
    words = [
        "package/list",
        "--studio",
        "--src",
        str(source),
        "--tgt",
        str(tmp_path / "lists"),
        "--split",
        "0.6,0.2,0.2",
    ]
    assert antgo.main([*words, "--config", str(source)]) == 2
    assert "expected a config" in capsys.readouterr().err and not (tmp_path / "lists").exists()
    assert antgo.main([*words, "--config", str(recipe)]) == 1
    assert "left out: 照 9.png: it does not lie beside project-1.json" in capsys.readouterr().err
    lists, config = tmp_path / "lists", json.loads((tmp_path / "lists/config.json").read_text())
    assert config == {
        **{"num_classes": 2, "num_epochs": 3, "save_path": "logs/lists", "file_label_separator": "----"},
        "class_names_file": f"{lists}/classes.txt",
        **{f"{name}_data_root_dir": f"{tmp_path}/export" for name in ("train", "val")},
        **{f"{name}_data_file": f"{lists}/{name}.txt" for name in ("train", "val")},
    }
    lines = [(lists / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in ("train", "val", "test")]
    assert sorted(line for each in lines for line in each) == [
        f"照 {number}.png----{(1, 0)[number % 2]}" for number in range(9)
    ]
    assert [len(each) for each in lines] == [5, 2, 2] and (lists / "classes.txt").read_text() == "heron\ntern\n"
    assert antgo.main([*words, "--config", str(recipe)]) == 2
