"""A labelling by its HTTP interface: what is laid before people, saved, undone, refused and written at Finish."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datasets.files import read_annotations, write_annotations
from datasets.outcome import Outcome
from datasets.records import complete
from review import journal as journal_module
from review.desk import Desk
from review.errors import ReviewError
from review.label_task import LabelTask
from review.review import open_review
from tests.helpers.records import picture, records_of
from tests.helpers.reviewing import Client, reviewing

CLASSES = ("heron", "tern")
USERS = {"ann": "ann's password", "bo": "bo's password"}
BOX = {"label": 1, "box": [1, 2, 30, 40]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write three images: one with a box, one with a prediction, one with nothing, whose size is not written."""
    records: list[dict[str, Any]] = [
        {"image_file": "a.png", "width": 64, "height": 48, "bboxes": [[5, 5, 20, 20]], "labels": [0], "image_label": 0},
        {"image_file": "b.png", "width": 64, "height": 48},
        {"image_file": "c.png", "tag": "pond"},
    ]
    records[1]["predictions"] = {"bboxes": [[8, 8, 30, 30]], "labels": [1], "image_label": 1, "score": 0.7}
    for number, record in enumerate(records):
        picture(tmp_path / "set" / str(record["image_file"]), (64, 48), number)
    return write_annotations(tmp_path / "set", records, CLASSES)


def task_of(source: Path, kind: str = "RECT", **more: Any) -> LabelTask:
    return LabelTask(kind, CLASSES, source.parent.parent / "out", **more)


@contextmanager
def labelling(source: Path, kind: str = "RECT", **more: Any) -> Iterator[tuple[Client, Desk]]:
    with reviewing(source, task=task_of(source, kind, **more)) as (port, desk):
        client = Client(port)
        client.begin()
        yield client, desk


@contextmanager
def people(source: Path, kind: str = "CLASS") -> Iterator[tuple[Client, Client]]:
    with reviewing(source, task=task_of(source, kind), users=USERS) as (port, _):
        ann, bo = Client(port), Client(port)
        ann.login("ann", USERS["ann"])
        bo.login("bo", USERS["bo"])
        yield ann, bo


def draft(client: Client, record: int) -> Any:
    return client.post("look", records=[record])["records"][0]["draft"]


def test_what_is_laid_before_a_person(source: Path) -> None:
    with labelling(source) as (client, _):
        found = client.begin()
        assert found["labelling"] == "RECT" and found["classes"] == ["heron", "tern"] and found["can_finish"]
        assert [draft(client, record)["origin"] for record in range(3)] == ["record", "predictions", ""]
        assert draft(client, 1)["objects"][0]["box"] == [8, 8, 30, 30]
        assert client.post("look", records=[2])["records"][0]["width"] == 64  # read from the image
        client.post("label", records=[1], labels={"objects": []})
        assert draft(client, 1) == {"objects": [], "origin": "saved"}


def test_the_file_at_finish(source: Path) -> None:
    with labelling(source) as (client, desk):
        client.post("look", records=[2])
        client.post("label", records=[0])  # as it is
        client.post("label", records=[2], labels={"objects": [BOX]})
        assert client.refused("finish") == (409, "1 images are not labelled yet")
        client.post("label", records=[1], labels={"objects": []})
        assert client.post("finish") == {"path": "annotation_label.json"}
        assert (
            desk.is_finished
            and desk.options.task
            and desk.options.task.summary.endswith("annotation_label.json: 3 records, 2 objects, 2 classes")
        )
    out = source.parent.parent / "out"
    size = {"width": 64, "height": 48}
    own = {"bboxes": [[5.0, 5.0, 20.0, 20.0]], "labels": [0], "label_names": ["heron"], "image_label": 0}
    prediction = {"bboxes": [[8, 8, 30, 30]], "labels": [1], "image_label": 1, "score": 0.7}
    assert records_of(out / "annotation_label.json") == [
        complete({"image_file": "images/a.png", **size, **own}),
        complete({"image_file": "images/b.png", **size, "predictions": prediction}),
        complete(
            {"image_file": "images/c.png", **size, "tag": "pond", "bboxes": [[1.0, 2.0, 30.0, 40.0]], "labels": [1]}
            | {"label_names": ["tern"]}
        ),
    ]
    meta: Any = records_of(out / "meta.json")
    assert meta["meta"]["category"] == ["heron", "tern"] and meta["extent"] == {"total": 3}
    assert (out / "images" / "c.png").read_bytes() == (source.parent / "c.png").read_bytes()
    assert len(read_annotations(out / "annotation_label.json").records) == 3


def test_of_an_image_that_cannot_be_read_the_draft_alone_may_be_kept(source: Path) -> None:
    record = {"image_file": "missing.png", "bboxes": [[5, 5, 20, 20]], "labels": [0]}
    write_annotations(source.parent, [record], CLASSES)
    with labelling(source) as (client, _):
        assert client.post("look", records=[0])["records"][0]["width"] == 0
        assert client.refused("label", records=[0], labels={"objects": [BOX]})[0] == 409
        laid = draft(client, 0)
        assert client.post("label", records=[0], labels={"objects": laid["objects"]})["reviewed"] == 1
        assert draft(client, 0)["objects"][0]["box"] == [5, 5, 20, 20]


def test_names_count_up_and_overwrite_replaces(source: Path) -> None:
    def finished(**more: Any) -> str:
        with labelling(source, "CLASS", **more) as (client, _):
            client.post("label", records=[0, 1, 2], labels={"label": 1})
            return str(client.post("finish")["path"])

    assert [finished(), finished()] == ["annotation_label.json", "annotation_label_0.json"]
    assert finished(outcome=Outcome(overwrite=True)) == "annotation_label.json"


def test_in_the_sources_folder_paths_stay(source: Path) -> None:
    task = LabelTask("CLASS", CLASSES, source.parent)
    with reviewing(source, task=task) as (port, _):
        client = Client(port)
        client.begin()
        client.post("label", records=[0, 1, 2], labels={"label": 0})
        client.post("finish")
    assert [record["image_file"] for record in records_of(source.with_name("annotation_label.json"))] == [
        *("a.png", "b.png", "c.png")
    ]
    assert not (source.parent / "images").exists()


def test_incomplete_records_are_left_out_if_asked(source: Path) -> None:
    with labelling(source, "CLASS", ignore_incomplete=True) as (client, _):
        assert client.begin()["can_leave_out"]
        assert client.refused("finish") == (409, "no image has a label yet")
        client.post("label", records=[0], labels={"label": -1})  # looked at, and of no class
        client.post("label", records=[2], labels={"label": 1})
        client.post("finish")
    found = records_of(source.parent.parent / "out" / "annotation_label.json")
    assert [(record["image_file"], record["image_label_name"]) for record in found] == [("images/c.png", "tern")]


def test_an_image_that_is_missing_is_left_out_and_told(source: Path) -> None:
    with labelling(source, "CLASS") as (client, desk):
        client.post("label", records=[0, 1, 2], labels={"label": 1})
        (source.parent / "b.png").unlink()
        client.post("finish")
        assert desk.options.task and desk.options.task.outcome.exit_code == 1
    assert len(records_of(source.parent.parent / "out" / "annotation_label.json")) == 2


def test_many_at_once_and_drafts_as_they_are(source: Path) -> None:
    with labelling(source, "CLASS") as (client, _):
        assert client.refused("label", records=[0, 1, 2]) == (409, "c.png has no class yet")
        assert client.begin()["reviewed"] == 0
        found = client.post("label", records=[0, 1])
        assert {index: view["label"] for index, view in found["marks"].items()} == {"0": "heron", "1": "tern"}
        client.post("label", records=[1, 2], labels={"label": 0})
        assert client.get("/api/list?label=0")["records"] == [0, 1, 2]  # filters follow what was saved
        assert client.post("undo")["marks"]["2"]["tags"] is None
        assert client.get("/api/list?label=0")["records"] == [0] and client.get("/api/list?label=1")["records"] == [1]


def test_objects_are_of_one_record(source: Path) -> None:
    with labelling(source) as (client, _):
        objects = {"objects": [BOX]}
        assert client.refused("label", records=[0, 1], labels=objects) == (400, "objects are of one record")


def test_the_last_who_saved_counts_and_all_stay_in_the_journal(source: Path) -> None:
    with people(source) as (ann, bo):
        ann.post("label", records=[0], labels={"label": 1})
        ann.post("look", records=[1])
        bo.post("label", records=[0], labels={"label": 0})
        assert bo.refused("label", records=[1], labels={"label": 0}) == (409, "ann is working on this")
        assert bo.post("look", records=[1])["records"][0]["holder"] == "ann"
        assert ann.post("undo")["marks"] == {}  # bo has changed it since
        assert draft(bo, 0)["label"] == 0
    lines = (source.parent.parent / "out" / "annotation_label.log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert events[0]["type"] == "CLASS" and events[0]["category"] == ["heron", "tern"]
    assert [(event["user"], event["set"]) for event in events[1:3]] == [
        ("ann", {"0": {"label": 1}}),
        ("bo", {"0": {"label": 0}}),
    ]


def test_it_goes_on_where_it_was_with_the_same_type_and_classes_alone(source: Path) -> None:
    with labelling(source) as (client, _):
        client.post("label", records=[1], labels={"objects": [BOX]})
        client.post("label", records=[1], labels={"objects": []})
    with labelling(source) as (client, _):
        assert client.begin()["reviewed"] == 1 and draft(client, 1)["objects"] == []
        assert client.post("undo")["marks"]["1"]["draft"]["objects"][0]["box"] == [1, 2, 30, 40]
    journal = source.parent.parent / "out" / "annotation_label.log.jsonl"
    anew = "start as then, or move the journal away to begin anew"
    for other, message in (
        (task_of(source, "POLYGON"), f'{journal}: it was begun with type "RECT", not "POLYGON"; {anew}'),
        (
            LabelTask("RECT", ("tern", "heron"), journal.parent),
            f'{journal}: it was begun with category ["heron", "tern"], not ["tern", "heron"]; {anew}',
        ),
    ):
        with pytest.raises(ReviewError) as caught, open_review(source, (), feedback=True, task=other):
            pass
        assert str(caught.value) == message
    source.write_text(source.read_text(encoding="utf-8").replace("pond", "lake"), encoding="utf-8")
    with pytest.raises(ReviewError) as caught, labelling(source):
        pass
    assert str(caught.value).startswith(f"{source}: it has changed since the review that annotation_label.log.jsonl")


@pytest.mark.parametrize("line", ['{"objects": [{"label": 7}]}', '{"label": 0}', "5", "[]"])
def test_a_damaged_line_of_labels_is_named(source: Path, line: str) -> None:
    with labelling(source):
        pass
    journal = source.parent.parent / "out" / "annotation_label.log.jsonl"
    with journal.open("a", encoding="utf-8") as file:
        file.write(f'{{"time": "", "user": "ann", "set": {{"0": {line}}}}}\n')
    with pytest.raises(ReviewError, match=r"annotation_label.log.jsonl:2: not an event"), labelling(source):
        pass


def test_a_full_disk_is_told_and_nothing_counts(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with labelling(source) as (client, _):
        with monkeypatch.context() as patched:
            patched.setattr(journal_module.os, "fsync", full)
            assert client.refused("label", records=[1], labels={"objects": [BOX]})[0] == 507
        assert client.begin()["reviewed"] == 0 and draft(client, 1)["origin"] == "predictions"


def test_finish_on_a_full_disk_leaves_no_image_out(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with labelling(source, "CLASS") as (client, desk):
        client.post("label", records=[0, 1, 2], labels={"label": 1})
        with monkeypatch.context() as patched:
            patched.setattr(os, "link", full)
            patched.setattr(shutil, "copyfile", full)
            assert client.refused("finish") == (507, "it could not be written: No space left on device")
        client.post("finish")
        assert desk.options.task and desk.options.task.outcome.exit_code == 0
    assert len(records_of(source.parent.parent / "out" / "annotation_label.json")) == 3


# --- What nobody should send


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"records": [0], "labels": {"objects": [{"label": 1, "box": [NaN, 0, 9, 9]}]}}', 400),
        (b'{"records": [0], "labels": {"objects": [{"label": 1, "box": [0, 0, 1e999, 9]}]}}', 400),
        (b'{"records": [0], "labels": {"objects": [{"label": 1, "box": [0, 0, 900, 9]}]}}', 400),
        (b'{"records": [0], "labels": ' + b"[" * 100_000 + b"}", 400),
        (b'{"records": [0], "labels": {"objects": "' + b"x" * 5_000_000 + b'"}}', 413),
        (b'{"records": [99], "labels": {"objects": []}}', 400),
        (b'{"records": [0], "labels": 5}', 400),
        (b"[]", 400),
    ],
)
def test_labels_that_are_none_change_nothing(source: Path, body: bytes, status: int) -> None:
    with labelling(source) as (client, _):
        assert client.send("POST", "/api/label", body)[0] == status
        assert client.begin()["reviewed"] == 0
        assert client.post("label", records=[0], labels={"objects": [BOX]})["reviewed"] == 1


def test_fifty_megabytes_are_not_read(source: Path) -> None:
    with labelling(source) as (client, _):
        try:
            status = client.send("POST", "/api/label", b'{"records": "' + b"x" * 50_000_000 + b'"}')[0]
        except (BrokenPipeError, ConnectionResetError):  # it is cut off while it is still being sent
            status = 413
        assert status == 413
        assert client.post("label", records=[0])["reviewed"] == 1


def test_only_a_session_of_ones_own_labels(source: Path) -> None:
    labels = {"records": [0], "labels": {"label": 1}}
    with people(source) as (ann, bo):
        stranger = Client(ann.port)
        assert stranger.refused("label", **labels) == (401, "log in first")
        stranger.cookie = ann.cookie
        assert stranger.refused("label", **labels)[0] == 403  # without her token
        stranger.token = bo.token
        assert stranger.refused("label", **labels)[0] == 403  # another's
        own = {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-site"}
        assert ann.send("POST", "/api/label", labels, headers=own)[0] == 403  # a page on another port
        plain = {"content-type": "text/plain"}
        assert ann.send("POST", "/api/label", labels, headers=plain)[0] == 415  # a form of another page
        assert ann.begin()["reviewed"] == 0


def test_tags_and_labels_do_not_mix(source: Path) -> None:
    with labelling(source) as (client, _):
        assert client.refused("change", records=[0], tag="") == (403, "this is a labelling: there are no tags")
    with reviewing(source, "valid") as (port, _):
        client = Client(port)
        client.begin()
        message = "this review is only tagged: label/start labels"
        assert client.refused("label", records=[0], labels={"label": 1}) == (403, message)
