"""Scripts of antgo's that let people tag and label what they record, and their mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.paths import ROOT
from review.context import InteractContext
from review.errors import ReviewError
from tests.helpers.records import picture
from tests.helpers.reviewing import Client
from tests.helpers.scripts import HEAD, port_of, running_script
from tools import antgo

USERS = {"ann": {"password": "a"}, "bo": {"password": "b"}}
BROWSER = f"""
import json
config = {{"tags": ["hello", "world"], "white_users": {USERS}, "port": 0}}
ctx.browser.start("b_exp", config=config)
for number in range(3):
    ctx.recorder.record({{
        "id": 10 + number,
        "score": {{"data": np.full((30, 40), number, dtype=np.uint8), "type": "IMAGE"}},
        "description": {{"data": f"hello the world {{number}}", "type": "STRING"}},
    }})
ctx.browser.waiting()
print(json.dumps(ctx.browser.download()), flush=True)
ctx.browser.exit()
"""
LABEL = """
import json, sys
config = {{
    "metas": {{"category": [{{"class_name": "A", "class_index": 0}}, {{"class_name": "B", "class_index": 1}}]}},
    "white_users": {{"ann": {{"password": "a"}}, "bo": {{"password": "b"}}}},
    "label_type": "{kind}",
    "port": 0,
}}
ctx.activelearning.start("b_exp", config=config)
ctx.activelearning.labeling()
for number in range(2):
    ctx.recorder.record({{"id": number, "image": np.zeros((48, 64), dtype=np.uint8)}})
ctx.recorder.record({{"id": 7, "image_file": "pond/7.jpg"}})
print(json.dumps(ctx.activelearning.state()), file=sys.stderr, flush=True)
found = ctx.activelearning.download()
print(json.dumps([found, ctx.activelearning.state()]), flush=True)
ctx.activelearning.waiting()
print(json.dumps(ctx.activelearning.state()), flush=True)
ctx.activelearning.exit()
"""


def lines(process: Any) -> list[Any]:
    """Return the lines of JSON that a script has printed, which must have ended well."""
    assert process.wait(60) == 0, process.stderr.read()
    return [json.loads(line) for line in process.stdout.read().splitlines() if line.startswith(("[", "{"))]


def test_what_is_recorded_is_tagged(tmp_path: Path) -> None:
    with running_script(tmp_path, BROWSER) as (process, port):
        ann = Client(port)
        ann.login("ann", "a")
        found = ann.post("look", records=[0, 1, 2])["records"]
        assert [record["file"] for record in found] == ["10.png", "11.png", "12.png"]
        assert found[1]["from"] == "description: hello the world 1"
        ann.post("change", records=[0, 2], tag="world")
        ann.post("change", records=[1], tag="")
        ann.post("finish")
        (result,) = lines(process)
    assert list(result) == ["0", "1", "2"]
    image, text = result["2"]
    assert (image["id"], image["type"], image["data"], image["title"]) == (12, "IMAGE", "12.png", "score")
    assert (text["type"], text["data"], text["title"]) == ("STRING", "hello the world 2", "description")
    assert image["tag"] == text["tag"] == ["world"] and image["user"] == "ann" and result["1"][0]["tag"] == []
    assert (np.asarray(Image.open(tmp_path / "dump/b_exp/12.png")) == 2).all()


def test_a_script_that_is_started_again_goes_on(tmp_path: Path) -> None:
    with running_script(tmp_path, BROWSER) as (process, port):
        ann = Client(port)
        ann.login("ann", "a")
        ann.post("change", records=[0], tag="hello")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    with running_script(tmp_path, BROWSER) as (_, port):
        assert Client(port).login("bo", "b")["reviewed"] == 1


def test_what_is_finished_is_left_alone(tmp_path: Path) -> None:
    """The next start begins anew beside it; other records under a review that is not finished are a mistake."""
    for folder in ("b_exp", "b_exp_1"):
        with running_script(tmp_path, BROWSER) as (process, port):
            ann = Client(port)
            assert ann.login("ann", "a")["reviewed"] == 0
            ann.post("change", records=[0, 1, 2], tag="hello")
            ann.post("finish")
            lines(process)
        assert (tmp_path / "dump" / folder / "finished").read_bytes() == b""
    with running_script(tmp_path, BROWSER) as (_, port):
        ann = Client(port)
        ann.login("ann", "a")
        ann.post("change", records=[0], tag="hello")
    before = (tmp_path / "dump/b_exp_2/11.png").read_bytes()
    (tmp_path / "other.py").write_text(HEAD + BROWSER.replace("(30, 40)", "(31, 40)"), encoding="utf-8")
    command = [sys.executable, "-m", "tools.antgo", "run", "other.py"]
    found = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    text = "run: dump/b_exp_2: it holds people's work on other records, which was not finished; move it away, or name"
    assert found.returncode == 2 and found.stderr.decode().startswith(text)
    assert (tmp_path / "dump/b_exp_2/11.png").read_bytes() == before


def test_boxes_of_two_people(tmp_path: Path) -> None:
    """The newest person's annotation comes first; numbers are those that were sent."""
    picture(tmp_path / "pond/7.jpg", (64, 48))
    box = {"box": [31.5, 40, 60, 44.25], "label": 1, "rings": [], "joints": [], "visible": [], "shown": 1.0}
    with running_script(tmp_path, LABEL.format(kind="RECT")) as (process, port):
        ann, bo = Client(port), Client(port)
        ann.login("ann", "a")
        ann.post("label", records=[0], labels={"objects": [box, {**box, "label": 0}]})
        ann.post("label", records=[1, 2])
        ann.post("look", records=[1])
        bo.login("bo", "b")
        bo.post("label", records=[0], labels={"objects": [box]})
        bo.post("finish")
        assert process.stderr
        before = json.loads(process.stderr.readline())
        (entries, after), ended = lines(process)
    state = {"state": "labeling", "round": 1, "sample_num": 3}
    assert before == {**state, "stage": "collect", "sample_num_completed": 0}
    assert after == {**state, "stage": "finish", "sample_num_completed": 3}
    assert ended == {"state": "waiting", "stage": "", "round": 1, "sample_num": 0, "sample_num_completed": 0}
    assert [entry["id"] for entry in entries] == [0, 1, 7]
    assert [entry["data"]["image"] for entry in entries] == [
        f"/static/data/{name}" for name in ("0.png", "1.png", "pond/7.jpg")
    ]
    first = entries[0]
    assert [each["completed_by"] for each in first["annotations"]] == ["bo", "ann"]
    assert first["project"] == "b_exp" and len(first["created_at"]) == len("2026-11-29x08-15-00")
    assert first["annotations"][0]["result"] == [
        {"type": "RECT", "width": 64, "height": 48, "value": {"x": 31.5, "y": 40, "width": 28.5, "height": 4.25}}
        | {"value": {"x": 31.5, "y": 40, "width": 28.5, "height": 4.25, "labels": 1}}
    ]
    assert len(first["annotations"][1]["result"]) == 2 and entries[1]["annotations"][0]["result"] == []


def test_classes(tmp_path: Path) -> None:
    picture(tmp_path / "pond/7.jpg", (64, 48))
    with running_script(tmp_path, LABEL.format(kind="")) as (process, port):
        ann = Client(port)
        ann.login("ann", "a")
        ann.post("label", records=[0, 1, 2], labels={"label": 1})
        ann.post("undo")
        ann.post("label", records=[0, 1, 2], labels={"label": 0})
        ann.post("finish")
        (entries, _), _ = lines(process)
    results = [entry["annotations"][0]["result"][0] for entry in entries]
    assert [(each["type"], each["value"]) for each in results] == [("CHOICES", {"labels": ["A"]})] * 3


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InteractContext:
    monkeypatch.chdir(tmp_path)
    return InteractContext()


IMAGE = np.zeros((2, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"score": {"data": 1, "type": "SCALAR"}}, "a record must have an id"),
        ({"id": 1.5}, "the id of a record must be a whole number or text, got 1.5"),
        ({"id": 0, "a": {"data": 1, "type": "IMG"}}, 'record 0: "a": type must be one of IMAGE, STRING, SCALAR, JSON'),
        ({"id": 0, "a": 3}, 'record 0: "a" must be {"data": ..., "type": ...}'),
        ({"id": 0, "a": {"data": IMAGE / 2, "type": "IMAGE"}}, "an image must be uint8 (H, W) or (H, W, 3), got float"),
        ({"id": 0, "a": {"data": IMAGE[..., :2], "type": "IMAGE"}}, "an image must have 1, 3 or 4 channels, got 2"),
        ({"id": 0, "a": {"data": "x.png", "type": "IMAGE"}}, "there is no file 'x.png'"),
        ({"id": 0, "a": {"data": 3, "type": "STRING"}}, "the data of a STRING must be text, got int"),
        ({"id": 0, "a": {"data": "3", "type": "SCALAR"}}, "the data of a SCALAR must be a number, got str"),
        ({"id": 0, "a": {"data": "x.mp4", "type": "VIDEO"}}, "there is no file 'x.mp4'"),
    ],
)
def test_what_cannot_be_recorded_raises_value_error(
    context: InteractContext, record: dict[str, Any], message: str
) -> None:
    context.browser.start("b")
    with pytest.raises(ValueError) as caught:
        context.recorder.record(record)
    assert message in str(caught.value)
    context.browser.exit()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"support_user_uplod": True}, 'config: unknown key "support_user_uplod"; did you mean "support_user_upload"?'),
        ([("port", 1)], "the config must be a dict, got list"),
        ({"white_users": "ann:pw"}, "config: white_users must be dict, got str"),
        ({"port": "80"}, "config: port must be int, got '80'"),
        ({"port": 70000}, "config: port must be 0 to 65535, got 70000"),
        ({"color": "HSV"}, "config: color must be BGR or RGB, got 'HSV'"),
        ({"request_waiting_time": 0}, "config: request_waiting_time must be above 0, at most 3600 s, got 0"),
        ({"support_user_upload": False}, "config: support_user_upload or support_user_input must be true"),
        ({"host": "0.0.0.0"}, "config: host 0.0.0.0 lets others connect; name who may"),
        ({"white_users": {"ann": {"password": ""}}}, 'config: user "ann" of white_users has no password'),
        ({"white_users": USERS}, "config: a demo has no white_users"),
    ],
)
def test_mistakes_in_a_config(context: InteractContext, config: Any, message: str) -> None:
    with pytest.raises(ReviewError) as caught:
        context.demo.start("b", config=config)
    assert message in str(caught.value)


def test_mistakes_in_the_order_of_calls(context: InteractContext) -> None:
    with pytest.raises(ReviewError, match="nothing was started that could be recorded for: call start first"):
        context.recorder.record({"id": 0})
    with pytest.raises(ReviewError, match=r"browser was not started: call browser\.start first"):
        context.browser.waiting()
    with pytest.raises(ReviewError, match="the name must be text that a folder may have"):
        context.browser.start("a/b")
    context.browser.start("b")
    with pytest.raises(ReviewError, match="demo: another page was started already; call its exit first"):
        context.demo.start("c")
    with pytest.raises(ReviewError, match="nothing was recorded, so there is nothing to look at"):
        context.browser.waiting()
    context.recorder.record({"id": 3})
    with pytest.raises(ReviewError, match="record 3 was recorded already"):
        context.recorder.record({"id": 3})
    context.browser.exit()
    classes = {"metas": {"category": [{"class_name": "A", "class_index": 0}]}, "label_type": "RECT"}
    for wrong, message in (
        ({**classes, "label_type": "CIRCLE"}, "label_type must be one of CLASS, RECT, POLYGON, POINT, got 'CIRCLE'"),
        ({**classes, "metas": {"category": [{"class_name": "A", "class_index": 1}]}}, "indices that count from 0"),
        ({**classes, "metas": {}}, "config: metas must be"),
    ):
        with pytest.raises(ReviewError, match=message):
            context.activelearning.start("b", config=wrong)
    context.activelearning.start("b", config=classes)
    with pytest.raises(ReviewError, match="no round has begun"):
        context.recorder.record({"id": 0, "image": IMAGE})
    context.activelearning.labeling()
    for record, message in (
        ({"id": 0}, "must have an image or an image_file"),
        ({"id": 0, "image_file": "x"}, "no file"),
    ):
        with pytest.raises(ValueError, match=message):
            context.recorder.record(record)


def test_a_script_that_is_not_there_or_makes_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert antgo.main(["run", str(tmp_path / "x.py")]) == 2
    assert capsys.readouterr().err.startswith(f"run: {tmp_path}/x.py: the script is not there")
    (tmp_path / "a.py").write_text(
        "from antgo.interactcontext import InteractContext\nInteractContext().demo.start('b', config={'port': -1})\n",
        encoding="utf-8",
    )
    assert antgo.main(["run", str(tmp_path / "a.py")]) == 2
    assert capsys.readouterr().err == "run: config: port must be 0 to 65535, got -1\n"


def test_two_rounds(tmp_path: Path) -> None:
    text = LABEL.format(kind="").replace("ctx.activelearning.exit()", "")
    picture(tmp_path / "pond/7.jpg", (64, 48))
    more = 'ctx.activelearning.labeling()\nctx.recorder.record({"id": 0, "image": np.zeros((8, 8, 3), np.uint8)})\n'
    more += "print(json.dumps(ctx.activelearning.download()), flush=True)\n"
    with running_script(tmp_path, text + more) as (process, port):
        ann = Client(port)
        ann.login("ann", "a")
        ann.post("label", records=[0, 1, 2], labels={"label": 1})
        ann.post("finish")
        again = Client(port_of(process))
        again.login("ann", "a")
        again.post("label", records=[0], labels={"label": 0})
        again.post("finish")
        (entries,) = lines(process)
    assert [entry["annotations"][0]["result"][0]["value"]["labels"] for entry in entries] == [["A"]]
