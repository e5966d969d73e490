"""Results, and the decisions that they hold, a line each and none twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from projects import round_folder
from projects.errors import ProjectError
from projects.round_folder import DECISIONS, RoundFolder
from projects.rounds import Step


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / DECISIONS).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> RoundFolder:
    folder = RoundFolder(tmp_path)
    folder.write_settings({"version": 1})
    folder.finish(0, Step.TAKE_IN, "the loop begins", "took in 3", "a 猫", counts=[3])
    folder.finish(0, Step.TRAIN, "training", "trained", "there is no net")
    return folder


def test_a_decision_is_a_line(folder: RoundFolder) -> None:
    first, second = lines(folder.root)
    assert first.keys() == {"round", "step", "time", "event", "did", "because"}
    assert (first["did"], first["because"], second["step"]) == ("took in 3", "a 猫", "training")
    assert folder.results(0)[Step.TAKE_IN]["counts"] == [3]
    folder.complete_decisions()
    assert len(lines(folder.root)) == 2


def test_a_torn_line_is_written_again(folder: RoundFolder) -> None:
    file, whole = folder.root / DECISIONS, lines(folder.root)
    for cut in range(0, len(file.read_bytes()), 7):
        content = file.read_bytes()
        file.write_bytes(content[:cut])
        folder.complete_decisions()
        assert lines(folder.root) == whole


def test_a_decision_that_was_killed_before_its_line(folder: RoundFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RoundFolder, "complete_decisions", kill)
        folder.finish(1, Step.TAKE_IN, "images came in", "took in 1", "a new round begins")
    assert len(lines(folder.root)) == 2
    assert folder.last_round() == 1
    folder.complete_decisions()
    assert [line["did"] for line in lines(folder.root)] == ["took in 3", "trained", "took in 1"]


def test_a_damaged_result_is_a_mistake(folder: RoundFolder) -> None:
    (folder.round(0) / "training.json").write_text("{", encoding="utf-8")
    with pytest.raises(ProjectError, match=r"training.json: it cannot be read .*; bring back what the loop wrote"):
        folder.results(0)
    (folder.round(0) / "training.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ProjectError, match=r"training.json: expected a JSON object"):
        folder.results(0)
    (folder.round(0) / "training.json").write_text('{"time": "now"}', encoding="utf-8")
    with pytest.raises(ProjectError, match=r"training.json: it has no event; bring back what the loop wrote"):
        folder.results(0)


def test_lists_are_whole(tmp_path: Path) -> None:
    round_folder.write_list(tmp_path / "lists/a.txt", {"x.png": "dog", "y.png": "猫"}, ("猫", "dog"))
    assert (tmp_path / "lists/a.txt").read_text(encoding="utf-8") == "x.png----1\ny.png----0\n"
