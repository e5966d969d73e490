"""label/start as a program: its mistakes, its end, and kills in the middle."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPException
from pathlib import Path

import pytest

from common.paths import ROOT
from datasets.files import read_annotations, write_annotations
from review.label_task import LabelTask
from review.review import open_review
from tests.helpers.records import picture, records_of, write_set
from tests.helpers.reviewing import Client, started
from tools import antgo

TAGS = ("--tags", "heron:0,tern:1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    records = [{"image_file": f"{number}.png", "width": 64, "height": 48} for number in range(4)]
    for number, record in enumerate(records):
        picture(tmp_path / "set" / str(record["image_file"]), (64, 48), number)
    return write_annotations(tmp_path / "set", records, [])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


def labelling(source: Path, target: Path, *flags: str) -> AbstractContextManager[tuple[subprocess.Popen[str], Client]]:
    return started(source, "--tgt", str(target), *TAGS, *flags, verb="label/start")


def mistake(capsys: pytest.CaptureFixture[str], source: Path, target: Path, *flags: str) -> str:
    """Run a command that is a mistake; return its one sentence. Nothing may have been written."""
    before = sorted(target.parent.rglob("*"))
    words = ["label/start", "--src", str(source), "--tgt", str(target), "--port", "0", *flags]
    assert antgo.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("label/start: ")
    assert sorted(target.parent.rglob("*")) == before
    return err.removeprefix("label/start: ").strip()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name the classes with --tags Car:0,Train:1"),
        (["--tags", "a,b,a"], '--tags "a,b,a" has "a" twice'),
        (["--tags", "a,,b"], '--tags "a,,b" has an empty name'),
        (["--tags", "a:0,b:0"], '--tags "a:0,b:0" gives an index twice; each class needs its own'),
        (["--tags", "a:0,b:2"], '--tags "a:0,b:2" leaves out an index; indices must be 0, 1, 2, ...'),
        (["--tags", "a:0,b"], '--tags "a:0,b": some names have an index and some have none'),
        (["--tags", "x" * 257], f'--tags: "{"x" * 20}..." is longer than 256 letters'),
        (["--tags", "a\udcff"], "--tags: 'a\\udcff' is not UTF-8"),
        ([*TAGS, "--white-users", "ann:"], '--white-users: user "ann" has no password'),
        ([*TAGS, "--host", "0.0.0.0"], "--host 0.0.0.0 lets others connect; name who may, with --white-users"),
        ([*TAGS, "--type", "POINT", "--weights", "net.pth"], "--weights goes with --type CLASS or RECT, got POINT"),
        ([*TAGS, "--weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_mistakes_in_flags(
    source: Path, target: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert message in mistake(capsys, source, target, *flags)


def test_mistakes_in_files(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = source.with_name("x.json")
    assert mistake(capsys, nowhere, target, *TAGS).startswith(f'--src "{nowhere}": it is not there')
    target.write_text("a file", encoding="utf-8")
    assert mistake(capsys, source, target, *TAGS) == f"--tgt {target}: it is a file, not a folder"
    target.unlink()
    write_annotations(target, [], ["other"])
    message = f"--tgt {target}: its meta.json has other classes; choose another folder or add --overwrite"
    assert mistake(capsys, source, target, *TAGS) == message


def test_an_unknown_type_and_flag(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in ((["--type", "BOX"], "invalid choice: 'BOX'"), (["--wieghts", "a"], '"--weights"')):
        with pytest.raises(SystemExit) as caught:
            antgo.main(["label/start", "--src", str(source), "--tgt", str(target), *TAGS, *flags])
        assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_busy_port(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = ["label/start", "--src", str(source), "--tgt", str(target), *TAGS, "--port", str(port)]
        assert antgo.main(words) == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err
    assert not target.exists()


def test_finish_writes_the_file_and_ends_it_with_0(source: Path, target: Path) -> None:
    with labelling(source, target, "--type", "rect") as (process, client):
        box = {"label": 1, "box": [1, 2, 30, 40]}
        for record in range(4):
            client.post("label", records=[record], labels={"objects": [box] * record})
        client.post("finish")
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and err == ""
        assert out == f"{target}/annotation_label.json: 4 records, 6 objects, 2 classes\n"
    found = read_annotations(target / "annotation_label.json")
    assert found.category == ("heron", "tern") and [len(record.get("bboxes", [])) for record in found.records] == [
        *range(4)
    ]
    assert sorted(path.name for path in (target / "images").iterdir()) == [f"{number}.png" for number in range(4)]


def test_what_is_left_out_is_told_and_ends_it_with_1(source: Path, target: Path) -> None:
    with labelling(source, target) as (process, client):
        client.post("label", records=[0, 1, 2, 3], labels={"label": 1})
        (source.parent / "2.png").unlink()
        client.post("finish")
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and "3 records" in out
    assert err == f"left out: 2.png: {source.parent}/2.png: no such file\n1 left out\n"


def test_without_tags_the_classes_are_those_of_meta_json(tmp_path: Path, target: Path) -> None:
    with started(write_set(tmp_path / "set"), "--tgt", str(target), verb="label/start") as (_, client):
        assert client.begin()["classes"] == ["heron", "tern", "鹭"]


def test_a_signal_ends_it_and_the_same_command_goes_on(source: Path, target: Path) -> None:
    with labelling(source, target) as (process, client):
        client.post("label", records=[1], labels={"label": 1})
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err == (
            f"not finished: {target}/annotation_label.log.jsonl holds what was saved; the same command goes on\n"
        )
    assert not (target / "annotation_label.json").exists()
    with labelling(source, target, "--ignore-incomplete") as (process, client):
        assert client.begin()["reviewed"] == 1
        client.post("finish")
        assert process.wait(30) == 0
    assert [record["image_label_name"] for record in records_of(target / "annotation_label.json")] == ["tern"]


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_of_the_server_loses_nothing_that_was_acknowledged(source: Path, target: Path, times: int) -> None:
    """Four clients save as fast as they can; each save is another box, and the last acknowledged one must be there."""
    choice = random.Random(0)
    done: dict[int, int] = {}
    for _ in range(times):
        with labelling(source, target, "--type", "RECT") as (process, client):
            for record, number in done.items():
                (kept,) = client.post("look", records=[record])["records"][0]["draft"]["objects"]
                assert kept["box"][2] >= number / 1000
            threads = [threading.Thread(target=save_until_killed, args=(client, record, done)) for record in range(4)]
            for thread in threads:
                thread.start()
            threads[0].join(choice.uniform(0.02, 0.5))
            process.kill()
            for thread in threads:
                thread.join(30)
    assert len(done) == 4


def save_until_killed(client: Client, record: int, done: dict[int, int]) -> None:
    number = done.get(record, 1)
    while number < 64_000:
        number += 1
        box = [0, 0, number / 1000, 9]
        try:
            client.post("label", records=[record], labels={"objects": [{"label": 0, "box": box}]})
        except (OSError, HTTPException, AssertionError):
            return
        done[record] = number


SAVES = """
import sys
from pathlib import Path
from review.label_task import LabelTask
from review.review import open_review
source, target = map(Path, sys.argv[1:])
with open_review(source, (), feedback=True, task=LabelTask("RECT", ("heron", "tern"), target)) as review:
    number = 0
    while True:
        number += 1
        review.label([number % 4], "ann", {"objects": [{"label": 0, "box": [0, 0, number / 1000, 9]}]})
        print(number, flush=True)
"""


@pytest.mark.parametrize("times", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_between_any_two_bytes_loses_no_label(source: Path, target: Path, times: int) -> None:
    choice = random.Random(1)
    for _ in range(times):
        (target / "annotation_label.log.jsonl").unlink(missing_ok=True)
        with saving(source, target) as process:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(choice.randrange(1, 60))]
            process.kill()
            lines += process.stdout.readlines()
        last = max(int(line) for line in lines if line.endswith(b"\n"))
        task = LabelTask("RECT", ("heron", "tern"), target)
        with open_review(source, (), feedback=True, task=task) as review:
            assert review.marks
            kept = {
                round(mark.labels["objects"][0]["box"][2] * 1000) for mark in review.marks.of.values() if mark.labels
            }
        assert kept >= set(range(max(last - 3, 1), last + 1)) or kept >= set(range(max(last - 2, 1), last + 2))


@contextmanager
def saving(source: Path, target: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", SAVES, str(source), str(target)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_help_needs_no_torch() -> None:
    code = "import sys, tools.datasets.label_start; assert not {'torch', 'onnxruntime', 'uvicorn'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
