"""Projects' files: one writer, a history, kills between any two writes; settings that are read and never run."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from common import atomic_io
from common.atomic_io import ResultsError
from projects import book as book_module
from projects.book import Book
from projects.errors import ProjectError
from projects.literals import read_settings
from projects.models import Project

CONTRACT = {
    "name": "birds", "git": "git@host:team/birds.git", "image": "", "type": "", "auto": True, "product": "small",
    "baseline": "small.2026-11-29x08-15-00", "expert": ["large.2026-11-28x22-01-09"],
    "submitter": {"method": "ssh", "gpu_num": 1, "cpu_num": 10, "memory": 10000},
    "tool": {
        "label": {"type": "CLASS", "category": ["heron", "tern"], "meta": {"skeleton": []}},
        "semi": {"method": "mpl", "config": {}}, "distillation": {"method": "", "config": {}},
        "activelearning": {"method": "ac", "config": {}}, "ensemble": {"method": "", "config": {}},
    },
    "dataset": {
        "train": {
            "label": [{"tag": "spring", "num": 41200, "status": True, "address": "packs/P-00000-of-00003"}],
            "pseudo-label": [], "unlabel": [],
        },
        "test": {}, "val": {},
    },
    "exp": {"small": [{
        "exp": "small", "id": "2026-11-29x08-15-00", "branch": "main", "commit": "a1b2c3d",
        "metric": {"score": {"top_1": 0.9}}, "dataset": {"test": "", "train": []}, "checkpoint": "",
        "create_time": "2026-11-29x08-15-00", "finish_time": "", "state": "finish", "stage": "supervised",
        "root": "", "cause": "",
    }]},
    "best": {}, "decisions": [],
}  # fmt: skip


def test_the_documented_file_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    values = {**CONTRACT, "note": {"of": "another tool"}}
    (tmp_path / "birds.json").write_text(json.dumps(values), encoding="utf-8")
    with Book(tmp_path).changing("birds") as project:
        project.auto = False
    assert json.loads((tmp_path / "birds.json").read_text(encoding="utf-8")) == {**values, "auto": False}
    assert Book(tmp_path).history("birds") == [values]


def test_each_state_stays_in_the_history_and_a_mistake_writes_nothing(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.create(Project(name="birds"))
    for image in ("a", "b", "b"):
        with book.changing("birds") as project:
            project.image = image
    with pytest.raises(ProjectError), book.changing("birds") as project:
        project.image = "lost"
        raise ProjectError("a mistake")
    assert [state["image"] for state in book.history("birds")] == ["", "a"] and book.read("birds").image == "b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds.history.jsonl", "birds.json"]


@pytest.mark.parametrize("call", range(1, 5))
def test_a_kill_between_any_two_writes_loses_nothing(tmp_path: Path, call: int) -> None:
    """The calls: opening the history, its line, syncing it, and the new state's name; then the command goes on."""
    book = Book(tmp_path)
    book.create(Project(name="birds", image="0"))
    with book.changing("birds") as project:
        project.image = "1"
    child = os.fork()
    if child == 0:
        kill_at(call)
        with book.changing("birds") as project:
            project.image = "2"
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert book.read("birds").image == "1" and book.history("birds")[0]["image"] == "0"
    with book.changing("birds") as project:
        project.image = "2"
    assert book.read("birds").image == "2" and [state["image"] for state in book.history("birds")] == ["0", "1"]


def kill_at(call: int) -> None:
    """Let this process kill itself in `append_state` or `write_atomic`, at a point between two of their writes."""

    def killed(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def torn(path: Path, text: str) -> None:
        path.open("ab").write(json.dumps(json.loads(text)).encode()[:20])
        killed()

    real = book_module.append_state

    def then_killed(path: Path, text: str) -> None:
        real(path, text)
        killed()

    book_module.append_state = (killed, torn, then_killed, real)[call - 1]
    if call == 4:
        atomic_io.move_into_place = killed


def test_changes_at_once_are_all_kept(tmp_path: Path) -> None:
    """Locks exclude processes: two of them add twenty data each."""
    book = Book(tmp_path)
    book.create(Project(name="birds"))
    children = []
    for name in "ab":
        child = os.fork()
        if child == 0:
            for number in range(20):
                with book.changing("birds") as project:
                    project.expert.append(f"{name}.{number}")
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert sorted(book.read("birds").expert) == sorted(f"{name}.{n}" for name in "ab" for n in range(20))
    assert len(book.history("birds")) == 40


def test_a_full_disk_leaves_the_state_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Book(tmp_path)
    book.create(Project(name="birds"))

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(book_module, "append_state", full)
    with pytest.raises(ResultsError, match="No space left on device"), book.changing("birds") as project:
        project.image = "x"
    assert book.read("birds").image == ""


def test_a_command_waits_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Book(tmp_path)
    book.create(Project(name="birds"))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with book.changing("birds"):
            os.write(writer, b"x")
            threading.Event().wait(60)
        os._exit(0)
    os.read(reader, 1)
    monkeypatch.setattr(book_module, "WAIT_S", 0.1)
    with pytest.raises(ProjectError, match="another command is writing it; try again"), book.changing("birds"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with book.changing("birds") as project:  # the dead process's lock is gone with it
        project.image = "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "birds.json: not JSON"),
        (
            '{"name": "birds", "auto": 1, "exp": {"a": [{"id": 3}]}}',
            "birds.json: auto: input should be a valid boolean",
        ),
        ("[]", "birds.json: : input should be a valid dictionary"),
        ("[" * 100_000, "birds.json: not JSON"),
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "birds.json").write_text(text, encoding="utf-8")
    with pytest.raises(ProjectError) as caught:
        Book(tmp_path).read("birds")
    assert message in str(caught.value) and "the state before" not in str(caught.value)
    history = tmp_path / "birds.history.jsonl"
    history.write_text('{"name": "birds"}\n', encoding="utf-8")
    with pytest.raises(ProjectError) as caught, Book(tmp_path).changing("birds"):
        pass
    assert str(caught.value).endswith(f"\nthe last line of {history} is the state before")


def test_a_python_config_is_read_as_literals(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_text("'''semi'''\nsemi = dict(temperature=-0.7, names=['a', ('b', None)])\nnum = 3\nx = {'a': dict()}\n")
    assert read_settings(file) == {"semi": {"temperature": -0.7, "names": ["a", ["b", None]]}, "num": 3, "x": {"a": {}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os", "config.py:1: only assignments of literals are read, NAME = VALUE"),
        ("a = 1\nb = open('x')", "config.py:2: a value must be a number, text, list or dict(...) of them"),
        ("a = dict(b=print(1))", "config.py:1: a value must be"),
        ("a = dict(**{'b': 1})", "config.py:1: a value must be"),
        ("a = [1, __import__('os')]", "config.py:1: a value must be"),
        ("a = {1: 2}", "config.py:1: a value must be"),
        ("a.b = 1", "config.py:1: only assignments"),
        ("a = (", "config.py:1: '(' was never closed"),
    ],
)
def test_python_that_does_more_is_a_mistake_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.py").write_text(text, encoding="utf-8")
    with pytest.raises(ProjectError) as caught:
        read_settings(tmp_path / "config.py")
    assert message in str(caught.value)
