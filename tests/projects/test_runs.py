"""Runs: how they are entered, what their folders say of them, and how they are settled."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from projects import run_state
from projects.models import Data, Project
from projects.run_state import read_state, reported
from projects.runs import begin_run, code_state, present_state, settle


def marks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".json")


@pytest.mark.parametrize(("code", "state", "mark"), [(0, "finish", "FINISH"), (143, "stop", "STOP")])
def test_a_run_leaves_its_state(tmp_path: Path, code: int, state: str, mark: str) -> None:
    with reported(tmp_path / "run") as ended:
        assert marks(tmp_path / "run") == ["RUNNING"] and read_state(tmp_path / "run")[0] == "running"
        ended(code)
    assert marks(tmp_path / "run") == [mark] and read_state(tmp_path / "run")[0] == state
    assert json.loads((tmp_path / "run/state.json").read_text(encoding="utf-8"))["exit_code"] == code


def test_an_error_stops_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError), reported(tmp_path / "run"):
        raise ValueError
    assert read_state(tmp_path / "run")[0] == "stop" and marks(tmp_path / "run") == ["STOP"]


def test_a_sign_is_renewed_and_an_old_one_means_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "RENEWED_S", 0.01)
    folder = tmp_path / "run"
    with reported(folder) as ended:
        first = read_state(folder)[1]
        while read_state(folder)[1] == first:
            pass
        ended(0)
    run_state.write_state(folder, "running")
    now = run_state.time.time()
    for age, state in ((599, "running"), (601, "lost")):
        monkeypatch.setattr(run_state.time, "time", lambda age=age: now + age)
        assert read_state(folder)[0] == state
    (folder / "state.json").write_text("{", encoding="utf-8")
    assert read_state(folder)[0] == "lost"


def test_a_run_is_entered_and_settled_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(name="birds", exp={"small": []})
    project.dataset.train.label = [
        Data(tag="a", num=1, address="packs/A-*"),
        Data(tag="b", num=1, address="packs/B-*", status=False),
    ]
    monkeypatch.setattr("projects.runs.stamp", lambda seconds=None: "2026-11-29x08-15-00")
    run = begin_run(project, "small", "supervised", tmp_path, ("main", "a1b2c3d"))
    again = begin_run(project, "small", "supervised", tmp_path, ("main", "a1b2c3d"))
    assert (run.id, again.id) == ("2026-11-29x08-15-00", "2026-11-29x08-15-00-2")
    assert run.dataset.train == ["packs/A-*"] and (run.branch, run.commit) == ("main", "a1b2c3d")
    with reported(Path(run.root)) as ended:
        settle(run)
        assert run.state == "running"
        metric = Path(run.root) / "small/output/metric"
        metric.mkdir(parents=True)
        (metric / "best.json").write_text('{"score": {"top_1": 0.5}, "current": "epoch_2"}', encoding="utf-8")
        (metric / "best.pth").touch()
        ended(0)
    settle(run)  # also where the command that trained was killed before it could
    assert (run.state, run.metric["score"], run.checkpoint) == ("finish", {"top_1": 0.5}, str(metric / "best.pth"))
    assert run.finish_time == "2026-11-29x08-15-00" and present_state(again) == "lost"


def test_branch_and_commit_are_the_folders(tmp_path: Path) -> None:
    assert code_state(tmp_path) == ("", "")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a.txt").write_text("1")
    for words in (["init", "-q", "-b", "trunk"], ["add", "a.txt"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert code_state(tmp_path) == ("trunk", head)
    (tmp_path / "a.txt").write_text("2")
    assert code_state(tmp_path) == ("trunk", f"{head}+")
