"""The journal: on the disk before a press is acknowledged, replayed after a kill, of one file of annotations."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.paths import ROOT
from review import journal as journal_module
from review import review as review_module
from review.errors import ReviewError
from review.marks import Mark, Marks, result_of
from review.review import open_review
from tests.helpers.records import write_set


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "annotation.json"
    path.write_text('[{"image_file": "a.png"}, {"image_file": "b.png"}, {"image_file": "c.png"}]', encoding="utf-8")
    return path


def opened(source: Path) -> Marks:
    return Marks(source.with_name("log.jsonl"), source, 3)


def test_what_was_pressed_is_there_again(source: Path) -> None:
    marks = opened(source)
    marks.change([0, 2], "ann", "valid")
    marks.change([2], "bo", "blurred")
    marks.change([1], "bo")
    marks.change([0], "ann", "valid", is_on=False)
    marks.close()
    again = opened(source)
    assert {index: (mark.tags, mark.user) for index, mark in again.of.items()} == {
        0: ((), "ann"),
        1: ((), "bo"),
        2: (("valid", "blurred"), "bo"),
    }
    assert again.of == marks.of
    again.close()


def test_undo_takes_back_press_by_press_of_one_person_also_after_a_restart(source: Path) -> None:
    marks = opened(source)
    marks.change([0, 1], "ann", "valid")
    first = dict(marks.of)
    marks.change([0, 1, 2], "ann", "blurred")
    marks.change([2], "bo", "valid")
    marks.close()
    marks = opened(source)
    assert marks.undo("ann") == first  # 2 was changed by bo since, and stays
    assert marks.of[2].tags == ("blurred", "valid")
    marks.close()
    marks = opened(source)
    assert marks.undo("ann") == {0: None, 1: None}
    assert marks.undo("ann") == {} and list(marks.of) == [2]
    assert marks.undo("bo")[2].tags == ("blurred",)
    marks.close()
    marks = opened(source)
    assert {index: mark.tags for index, mark in marks.of.items()} == {2: ("blurred",)}
    marks.close()


def test_undo_leaves_what_another_person_has(source: Path) -> None:
    marks = opened(source)
    marks.change([0, 1], "ann", "valid")
    assert marks.undo("ann", {1}) == {0: None}
    assert list(marks.of) == [1]
    marks.close()


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_dropped(source: Path, cut: int) -> None:
    marks = opened(source)
    marks.change([0], "ann", "valid")
    marks.change([1], "ann", "valid")
    marks.close()
    path = source.with_name("log.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    marks = opened(source)
    assert list(marks.of) == [0]
    marks.change([2], "ann", "valid")
    marks.close()
    assert list(opened(source).of) == [0, 2]
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]  # no torn line within


def test_of_a_press_that_cannot_be_written_nothing_is_left(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = opened(source)
    marks.change([0], "ann", "valid")
    write = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) > 10:
            return write(file, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal_module.os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        marks.change([1], "ann", "valid")
    assert caught.value.filename == str(source.with_name("log.jsonl"))
    assert list(marks.of) == [0]
    monkeypatch.setattr(journal_module.os, "write", write)
    marks.change([2], "ann", "valid")
    marks.close()
    assert list(opened(source).of) == [0, 2]


def test_a_torn_line_that_cannot_be_cut_off_at_once_is_cut_off_before_the_next(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = opened(source)
    marks.change([0], "ann", "valid")

    def fails(file: int, *_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(journal_module.os, "fsync", fails)
        patched.setattr(journal_module.os, "ftruncate", fails)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                marks.change([1], "ann", "valid")
    marks.change([2], "ann", "valid")
    marks.close()
    assert list(opened(source).of) == [0, 2]


@pytest.mark.parametrize("how", ["moved", "replaced", "cut"])
def test_of_a_journal_that_is_not_in_its_place_no_press_counts(source: Path, how: str) -> None:
    marks = opened(source)
    marks.change([0], "ann", "valid")
    path = source.with_name("log.jsonl")
    before = path.read_bytes()
    if how == "cut":
        path.write_bytes(before[:-1])
    else:
        path.rename(source.with_name("moved"))
    if how == "replaced":
        path.write_bytes(before)
    with pytest.raises(OSError, match=r"log.jsonl was moved, removed or cut while it is in use; bring it back"):
        marks.change([1], "ann", "valid")
    assert list(marks.of) == [0]
    if how == "cut":
        assert path.read_bytes() == before[:-1]
        path.write_bytes(before)
    else:
        source.with_name("moved").replace(path)
    marks.change([2], "ann", "valid")
    marks.close()
    assert list(opened(source).of) == [0, 2]


def test_after_the_end_nothing_is_written_to_another_file(source: Path) -> None:
    marks = opened(source)
    marks.close()
    others = [os.open(source.with_name(str(number)), os.O_RDWR | os.O_CREAT) for number in range(4)]
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            marks.change([0], "ann", "valid")
        assert [os.fstat(other).st_size for other in others] == [0] * 4
    finally:
        for other in others:
            os.close(other)


def test_annotations_that_change_while_they_are_read_begin_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_set(tmp_path)
    read = review_module.read_annotations

    def read_and_changed(path: Path) -> Any:
        found = read(path)
        path.write_text("[]", encoding="utf-8")
        return found

    monkeypatch.setattr(review_module, "read_annotations", read_and_changed)
    with pytest.raises(ReviewError, match="it changed while it was read"), open_review(source, ["valid"]):
        pass
    assert not source.with_name("annotation_browser.log.jsonl").exists()


def test_a_press_is_synced_before_it_counts(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = opened(source)
    seen = []
    monkeypatch.setattr(journal_module.os, "fsync", lambda file: seen.append((os.fstat(file).st_size, dict(marks.of))))
    marks.change([1], "ann", "valid")
    assert seen == [(source.with_name("log.jsonl").stat().st_size, {})]
    marks.close()


def test_the_journal_of_other_annotations_is_refused(source: Path) -> None:
    marks = opened(source)
    marks.change([0], "ann", "valid")
    marks.close()
    source.write_text('[{"image_file": "b.png"}, {"image_file": "a.png"}, {"image_file": "c.png"}]', encoding="utf-8")
    with pytest.raises(ReviewError, match=r"annotation.json: it has changed since the review that log.jsonl holds"):
        opened(source)


def test_a_journal_without_presses_begins_anew(source: Path) -> None:
    opened(source).close()
    source.write_text('[{"image_file": "b.png"}, {"image_file": "a.png"}, {"image_file": "c.png"}]', encoding="utf-8")
    opened(source).close()
    (line,) = source.with_name("log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_name_that_is_not_utf8_is_a_mistake(source: Path) -> None:
    named = source.rename(source.with_name(os.fsdecode(b"set\xff.json")))
    with pytest.raises(ReviewError, match="the name is not UTF-8; rename the file"), open_review(named, ("valid",)):
        pass


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "nonsense",
        '{"user": "ann", "time": "", "set": {"3": []}}',
        '{"user": "ann", "restore": {"0": null}}',
    ],
)
def test_a_damaged_line_is_named(source: Path, line: str) -> None:
    marks = opened(source)
    marks.change([0], "bo", "valid")
    marks.close()
    with source.with_name("log.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(ReviewError, match=r"log.jsonl:3: not"):
        opened(source)


def test_another_file_in_its_place_is_refused(source: Path) -> None:
    source.with_name("log.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    with pytest.raises(ReviewError, match=r"log.jsonl:1: not a line"):
        opened(source)


def test_a_newer_format_is_refused(source: Path) -> None:
    opened(source).close()
    path = source.with_name("log.jsonl")
    path.write_text(path.read_text(encoding="utf-8").replace('"format":1', '"format":2'), encoding="utf-8")
    with pytest.raises(ReviewError, match="format 2, expected 1"):
        opened(source)


def test_the_result_has_the_form_of_the_contract() -> None:
    marks = {
        7: Mark(("odd", "blurred", "valid"), "bo", "2026-11-29T08:15:01Z"),
        0: Mark((), "ann", "2026-11-29T08:15:00Z"),
    }
    titles = [("pond/0007.jpg", "pond/0007.jpg"), *[("", "")] * 6, ("", "http://a/b.jpg")]
    assert result_of(marks, titles, ["valid", "blurred"]) == {
        "0": [
            {"id": 0, "type": "IMAGE", "data": "pond/0007.jpg", "title": "pond/0007.jpg", "tag": [], "user": "ann"}
            | {"time": "2026-11-29T08:15:00Z"}
        ],
        "7": [
            {"id": 7, "type": "IMAGE", "data": "http://a/b.jpg", "title": "", "tag": ["valid", "blurred", "odd"]}
            | {"user": "bo", "time": "2026-11-29T08:15:01Z"}
        ],
    }


def test_two_programs_do_not_review_one_file(tmp_path: Path) -> None:
    source = write_set(tmp_path)
    code = f"""
from pathlib import Path
from review.review import open_review
with open_review(Path({str(source)!r}), ["valid"]) as review:
    print("open", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin and other.stdout and other.stdout.readline() == b"open\n"
    with pytest.raises(ReviewError, match="another program is reviewing it"), open_review(source, ["valid"]):
        pass
    other.communicate(b"\n")
    with open_review(source, ["valid"]) as review:
        assert len(review) == 6


PRESSES = """
import sys
from pathlib import Path
from review.marks import Marks
source = Path(sys.argv[1])
marks = Marks(source.with_name("log.jsonl"), source, 3)
number = 0
while True:
    tag = str(number)
    marks.change([number % 3], "ann", tag)
    print(tag, flush=True)
    number += 1
"""


@pytest.mark.parametrize("times", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_loses_nothing_that_was_acknowledged(source: Path, times: int) -> None:
    """A program that presses and acknowledges as fast as it can is killed at random times, again and again."""
    choice = random.Random(0)
    for _ in range(times):
        source.with_name("log.jsonl").unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", PRESSES, str(source)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout
        acknowledged = [process.stdout.readline() for _ in range(choice.randrange(1, 60))]
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        tags = [line.decode().strip() for line in acknowledged if line.endswith(b"\n")]
        marks = opened(source)
        kept = {tag for mark in marks.of.values() for tag in mark.tags}
        assert kept >= set(tags) and len(kept) <= len(tags) + 1
        marks.close()
