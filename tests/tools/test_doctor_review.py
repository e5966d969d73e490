"""The doctor's findings are looked at in browser/images, and what is refused there is left out of the next lists."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from datasets.files import read_annotations, write_annotations
from datasets.outcome import Outcome
from tests.helpers.doctor import Planted, examined
from tests.helpers.records import records_of
from tests.helpers.reviewing import started
from tests.helpers.wrong_labels import coloured, planted, start_weights
from tools import antgo
from tools.doctor import __main__ as doctor
from tools.doctor.review_set import ReviewSetError, refused_paths, review_set

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Planted:
    """A wrong label, an image with a near-duplicate and the same wrong label, and one that cannot be read."""
    data = planted(tmp_path / "data")
    data.add("val", "wrong.png", 1, coloured(0, 900))
    data.add("train", "twice.png", 0, coloured(2, 901))
    data.add("train", "again.png", 0, coloured(2, 901).resize((120, 96)))
    data.add("train", "text.jpg", 0, b"not an image")
    return data


@pytest.fixture
def config(data: Planted) -> Path:
    config = start_weights(data, bad_images="skip", max_bad_share=1.0)
    examined(config, "--wrong_labels")
    return config


def by_name(source: Path) -> dict[str, dict[str, Any]]:
    return {Path(record["doctor_path"]).name: record for record in read_annotations(source).records}


def test_findings_become_annotations(config: Path, data: Planted) -> None:
    outcome = Outcome()
    source = review_set(config.parent / "out/doctor.json", outcome)
    assert source == config.parent / "out/doctor_review/annotation.json" and outcome.left_out == []
    found = by_name(source)
    assert next(iter(found)) == "text.jpg" and sorted([*found][1:]) == ["again.png", "twice.png", "wrong.png"]
    wrong = found["wrong.png"]
    assert (wrong["image_label_name"], wrong["predictions"]["image_label_name"]) == ("rose", "daisy")
    assert 0.3 < wrong["predictions"]["score"] <= 1
    assert wrong["tag"] == f"wrong labels ({data.folder}/val.txt:10)"
    assert found["twice.png"]["tag"].startswith("wrong labels, look-alikes in training (")
    assert wrong["image_file"].startswith("images/wrong labels/")
    for name, record in found.items():
        assert (source.parent / record["image_file"]).read_bytes() == (data.images / name).read_bytes()
    assert review_set(config.parent / "out/doctor.json", Outcome()) == source  # once more: the same file


def test_what_a_review_refuses_is_in_no_list(config: Path, data: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    report = config.parent / "out/doctor.json"
    with started(report, "--feedback") as (process, client):
        found = by_name(report.parent / "doctor_review/annotation.json")
        names = list(found)
        client.post("change", records=[names.index("wrong.png")], tag="invalid")
        client.post("change", records=[names.index("twice.png")], tag="valid")
        rest = [index for index, name in enumerate(names) if name not in ("wrong.png", "twice.png")]
        client.post("change", records=rest, tag="")
        client.post("finish")
        assert process.wait(60) == 0
    review = report.parent / "doctor_review/annotation_browser.json"
    examined(config, "--fix", str(data.folder / "lists"), "--reviewed", str(review))
    lists = "".join((data.folder / "lists" / name).read_text(encoding="utf-8") for name in ("train.txt", "val.txt"))
    assert "wrong.png" not in lists and lists.count("----") == 38
    all_valid = refused_paths(review, ["valid"])
    assert [Path(path).name for path in all_valid] == ["twice.png"]


def test_a_set_of_an_earlier_report_is_not_taken_for_this_one(config: Path) -> None:
    report = config.parent / "out/doctor.json"
    source = review_set(report, Outcome())
    report.write_text(report.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ReviewSetError, match=r"of an earlier doctor\.json; move it away or add --overwrite"):
        review_set(report, Outcome())
    assert review_set(report, Outcome(overwrite=True)) == source


def test_images_that_are_gone_are_left_out(config: Path, data: Planted) -> None:
    report = config.parent / "out/doctor.json"
    (data.images / "wrong.png").unlink()
    outcome = Outcome()
    review_set(report, outcome)
    assert outcome.left_out == [(str(data.images / "wrong.png"), "no such file")]
    shutil.rmtree(report.parent / "doctor_review")
    shutil.rmtree(data.images)
    with pytest.raises(ReviewSetError, match="its findings name no image that could be looked at"):
        review_set(report, Outcome())
    assert not (report.parent / "doctor_review").exists()


def test_mistakes(config: Path, data: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = config.parent / "out/doctor.json"
    report.write_text('{"records": 3, "findings": []}', encoding="utf-8")
    assert antgo.main(["browser/images", "--src", str(report), "--port", "0"]) == 2
    assert capsys.readouterr().err == f"browser/images: {report}: it is not what python -m tools.doctor writes\n"
    start = ["--config", str(config), "--skip_step", "--reviewed"]
    assert doctor.main([*start, str(report)]) == 2
    assert "--reviewed leaves images out of the lists that --fix writes: add --fix DIR" in capsys.readouterr().err
    fix = ["--fix", str(tmp_path / "lists")]
    assert doctor.main([*start, str(tmp_path / "x.json"), *fix]) == 2
    assert f"--reviewed {tmp_path}/x.json: it is not there" in capsys.readouterr().err
    other = tmp_path / "a_browser.json"
    other.write_text('{"0": [{"title": "a.png", "tag": ["invalid"]}]}', encoding="utf-8")
    assert doctor.main([*start, str(other), *fix]) == 2
    expected = "it is no review of what browser/images makes of a doctor.json"
    assert expected in capsys.readouterr().err and not (tmp_path / "lists").exists()


def test_a_folder_of_images_set_aside_is_opened_and_labelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As inference_uncertain.py --set_aside writes it; the files of the page beside do not count, and it opens again.

    The net's classes, confirmed or corrected, are the labels of the list.
    """
    folder, names = tmp_path / "uncertain", [f"000{number}_a.png" for number in range(1, 5)]
    folder.mkdir()
    for number, name in enumerate(names):
        coloured(number % 3, number).save(folder / name)
    predicted = {
        "image_label": 1,
        "image_label_name": "rose",
        "score": 0.4,
        "uncertainty": 0.6,
        "decision": "set_aside",
    }
    write_annotations(folder, [{"image_file": name, "predictions": predicted} for name in names], ["daisy", "rose"])
    for _ in range(2):
        with started(folder, "--feedback") as (process, client):
            assert client.get("/api/list?net=set_aside&doubt=0.5")["records"] == [0, 1, 2, 3]
            client.post("change", records=[0, 1, 2, 3], tag="valid")
            client.post("finish")
            assert process.wait(60) == 0
    assert dict(records_of(folder / "annotation_browser.json"))["0"][0]["tag"] == ["valid"]
    with started(folder, "--tgt", str(folder), verb="label/start") as (process, client):
        client.post("label", records=[0], labels={"label": 0})
        client.post("label", records=[1, 2, 3])  # the net's class
        client.post("finish")
        assert process.wait(60) == 0
    source, target = str(folder / "annotation_label.json"), str(tmp_path / "lists")
    capsys.readouterr()
    assert antgo.main(["package/list", "--src", source, "--tgt", target, "--split", "0.5,0.5"]) == 0
    lists = [(tmp_path / "lists" / name).read_text(encoding="utf-8") for name in ("train.txt", "val.txt")]
    expected = [f"{name}----{int(number > 0)}" for number, name in enumerate(names)]
    assert sorted("".join(lists).split()) == expected
