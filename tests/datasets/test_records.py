"""Standard annotations: what is read, what is refused by which sentence, and the bytes that are written."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.paths import ROOT
from datasets.files import free_name, read_annotations, source_files, write_annotations
from datasets.records import KEYS, complete, find_problems, sparse
from datasets.tags import category_of_tags, parse_tags
from tools import antgo

SQUARE = [[31.5, 40.0], [210.0, 40.0], [90.0, 300.0]]
RECORD: dict[str, Any] = {  # of the contract's example
    **{"image_file": "pond/0007.jpg", "image_url": "", "height": 480, "width": 640, "image_label": 1},
    **{"image_label_name": "tern", "tag": "pond", "bboxes": [[31.5, 40.0, 210.0, 300.0]], "labels": [1]},
    **{"label_names": ["tern"], "segments": [SQUARE], "has_segments": [1]},
}


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_file_has_every_key_and_the_same_bytes(tmp_path: Path) -> None:
    written = write_annotations(tmp_path, [{**RECORD, "zeta": 1, "alpha": [2]}], ["heron", "tern"])
    first = written.read_bytes()
    found = json.loads(first)
    assert list(found[0]) == [*KEYS, "alpha", "zeta"]
    assert {key: found[0][key] for key in RECORD} == RECORD
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta == {
        **{"info": "", "author": "", "license": "", "extent": {"total": 1}},
        "meta": {"skeleton": [], "model": "", "camera": "", "category": ["heron", "tern"]},
    }
    again = read_annotations(written)
    assert again.records == [sparse({**RECORD, "alpha": [2], "zeta": 1})] and again.category == ("heron", "tern")
    assert write_annotations(tmp_path, again.records, again.category, again.meta).read_bytes() == first


@pytest.mark.parametrize("form", ["by line", "whole", "lines", "empty list"])
def test_the_forms_that_are_read(tmp_path: Path, form: str) -> None:
    records = [{**RECORD, "image_file": f"{i}.jpg"} for i in range(3)]
    if form == "by line":
        path = write_annotations(tmp_path, records, ["heron", "tern"])
    elif form == "lines":
        path = tmp_path / "a.jsonl"
        path.write_text("\n".join(json.dumps(record) for record in records))
    else:
        records = records if form == "whole" else []
        path = write_json(tmp_path / "a.json", records)
    found = read_annotations(path)
    assert [record["image_file"] for record in found.records] == [record["image_file"] for record in records]
    assert all(complete(record)["view_id"] == "-1" for record in found.records)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = write_annotations(tmp_path, [RECORD, RECORD], ["heron", "tern"])
    whole = path.read_bytes()
    for size in (len(whole) - 3, len(whole) - 40, whole.index(b"\n", 2) + 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="not valid JSON"):
            read_annotations(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": []}, "bboxes has 1 entries, labels has 0"),
        ({"labels": [1, 1], "label_names": []}, "bboxes has 1 entries, labels has 2"),
        ({"has_segments": [2]}, "has_segments must hold 0 and 1, got [2]"),
        ({"height": "480"}, 'height must be a whole number, got "480"'),
        ({"image_file": "/a.jpg"}, 'image_file "/a.jpg" is absolute'),
        ({"image_file": "a/../../b.jpg"}, "leaves the folder"),
        ({"image_url": "ftp://a"}, "image_url must begin with http:// or https://"),
        ({"image_url": "http://a/\ud800"}, "image_url 'http://a/\\ud800' is not UTF-8"),
        ({"bboxes": [[5, 0, 5, 5]]}, "box 0 must have x0 < x1 and y0 < y1"),
        ({"bboxes": [[0, 0, 641.5, 5]]}, "box 0 lies outside its image of 640x480"),
        ({"bboxes": [[0, 0, float("nan"), 5]]}, "box 0 must be [x0, y0, x1, y1] in pixels"),
        ({"labels": [2], "label_names": []}, "label 2 is outside 0..1"),
        ({"labels": [1_000_000]}, "label must be a class's index below 1,000,000 or -1, got 1000000"),
        ({"image_label": 10**30}, "image_label must be a class's index below 1,000,000 or -1"),
        ({"label_names": ["heron"]}, 'label 1 is called "heron", but "tern" in meta.json'),
        ({"image_label": 0}, 'image_label 0 is called "tern", but "heron" in meta.json'),
        ({"segments": [[[1, 2], [3, 4]]]}, "segment 0 must be rings of at least 3 points"),
        ({"joints2d": [[[1, 2]]], "joints_vis": [[1, 1]]}, "joints_vis 0 must have a number for each of 1 joints"),
        ({"box_visibility": [2]}, "box_visibility 0 must be from 0 to 1"),
    ],
)
def test_every_mistake_has_its_sentence(change: dict[str, Any], sentence: str) -> None:
    found = list(find_problems({**RECORD, **change}, ["heron", "tern"]))
    assert len(found) == 1 and sentence in found[0]


def test_a_box_may_lie_a_pixel_outside() -> None:
    assert not list(find_problems({**RECORD, "bboxes": [[-1.0, 0, 641.0, 5]]}, ["heron", "tern"]))


def test_mistakes_are_told_together_the_first_twenty(tmp_path: Path) -> None:
    path = write_json(tmp_path / "annotation.json", [{**RECORD, "labels": []} for _ in range(30)])
    with pytest.raises(UserError) as caught:
        read_annotations(path)
    lines = str(caught.value).splitlines()
    assert lines[17] == f"{path}: record 17: bboxes has 1 entries, labels has 0"
    assert len(lines) == 21 and lines[-1] == "... and 10 more"


@pytest.mark.parametrize("text", ["\\ud800", "\\uDC00a", "a\\udbff\\n"])
def test_half_a_character_is_a_mistake(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON can hold one, UTF-8 cannot; both halves, and a backslash before, are text as any other."""
    sources = {"annotation.json": f'[{{"image_file": "a.png", "own": {{"k": "{text}"}}}}]'}
    sources["meta.json"] = f'{{"meta": {{"category": ["{text}"]}}}}'
    sources["studio.json"] = f'[{{"data": {{"image": "{text}"}}}}]'
    sources["coco.json"] = f'{{"images": [], "annotations": [], "categories": [{{"id": 1, "name": "{text}"}}]}}'
    verbs = {"studio.json": ["label/studio", "--from"], "coco.json": ["extract/coco"]}
    for name, content in sources.items():
        (tmp_path / name).write_text(content)
        words = verbs.get(name, ["package/coco"])
        source = tmp_path / ("annotation.json" if name == "meta.json" else name)
        assert antgo.main([*words, "--src", str(source), "--tgt", str(tmp_path / "out")]) == 2
        errors = capsys.readouterr().err
        assert str(tmp_path / name) in errors and "not valid JSON: a text has half a character" in errors
        if name == "annotation.json":
            whole = content.replace(text, r"\ud83d\ude00 \\ud800")
            (tmp_path / name).write_text(whole)
            (found,) = read_annotations(tmp_path / name).records
            assert found["own"] == {"k": "\N{GRINNING FACE} \\ud800"}


def test_flat_rings_and_masks_of_others_are_read(tmp_path: Path) -> None:
    flat = [[0, 0, 4, 0, 4, 4], [5, 5, 9, 5, 9, 9]]
    two = {"bboxes": [[0, 0, 9, 9]] * 3, "labels": [0] * 3, "label_names": [], "has_segments": [1, 1, 1]}
    record = {**RECORD, **two, "segments": [flat, [flat[0]], {"counts": "x", "size": [3, 3]}]}
    found = read_annotations(write_json(tmp_path / "a.json", [record]))
    ring = [[0, 0], [4, 0], [4, 4]]
    assert found.records[0]["segments"] == [[ring, [[5, 5], [9, 5], [9, 9]]], ring, []]
    assert found.records[0]["has_segments"] == [1, 1, 0] and found.masks_dropped == 1


def test_classes_come_from_the_records_where_meta_names_none(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [RECORD, {**RECORD, "image_label": -1, "image_label_name": ""}])
    assert read_annotations(path).category == ("0", "tern")
    write_json(path, [RECORD, {**RECORD, "label_names": ["gull"], "image_label_name": "gull"}])
    with pytest.raises(UserError, match='class 1 is called "tern" and "gull"'):
        read_annotations(path)


def test_other_forms_are_named(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"images": [], "annotations": [], "categories": []})
    with pytest.raises(UserError, match="got COCO's form; read it with extract/coco"):
        read_annotations(path)
    write_json(tmp_path / "meta.json", {"meta": {"category": ["a", "a"]}})
    with pytest.raises(UserError, match="category must be a list of different names"):
        read_annotations(path)


def test_sources(tmp_path: Path) -> None:
    for name in ("b10.json", "b2.json", "meta.json", "c.txt"):
        (tmp_path / name).write_text("[]")
    assert [path.name for path in source_files(str(tmp_path))] == ["b2.json", "b10.json"]
    assert len(source_files(f"{tmp_path}/b2.json,{tmp_path}/b10.json")) == 2
    with pytest.raises(UserError, match=r'--src "nothing\.json": it is not there'):
        source_files("nothing.json")
    assert free_name(tmp_path, "x") == "x.json" and free_name(tmp_path, "b2") == "b2_0.json"


def test_tags() -> None:
    assert parse_tags("hand:0,foot:1") == {"hand": 0, "foot": 1}
    assert parse_tags("a:b,c") == {"a:b": 0, "c": 1}
    assert parse_tags("a:b:0") == {"a:b": 0}
    shared = parse_tags("car:0,truck:0,man:1", may_share=True)
    assert category_of_tags(shared) == ["car", "man"]
    for text, sentence in (
        ("a:0,b", "some names have an index"),
        ("a:0,b:0", "gives an index twice"),
        ("a:0,b:2", "leaves out an index"),
        ("a:0,b:1000000", "leaves out an index"),
        ("a,a", 'has "a" twice'),
        ("a,,b", "empty name"),
    ):
        with pytest.raises(UserError, match=sentence):
            parse_tags(text)


def test_datasets_come_without_torch() -> None:
    names = [f"datasets.{path.stem}" for path in (ROOT / "datasets").glob("*.py") if path.stem != "__init__"]
    code = (
        f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_records_share_what_repeats(tmp_path: Path) -> None:
    """Keys, names, tags and sizes are the same objects in all records: JSON makes new ones for each line."""
    record = {"image_file": "a.jpg", "width": 640, "height": 480, "tag": "pond", "image_label_name": "tern"}
    write_annotations(tmp_path, [{**record, "image_label": 0, "own_key": 1} for _ in range(2)], ["tern"])
    first, second = read_annotations(tmp_path / "annotation.json").records
    assert first == second and all(map(lambda a, b: a is b, first, second))
    assert all(first[key] is second[key] for key in ("width", "height", "tag", "image_label_name"))
