"""The page of projects: what it shows of runs and reports, its headers, and who may read it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.paths import ROOT
from projects.book import Book
from projects.comparison import MOST, charts, differences, read_report
from projects.models import Project, Run
from projects.pages import project_html, projects_html
from tools import antgo


def make_run(folder: Path, exp: str, number: int, **config: Any) -> Run:
    """Write a run's report of three epochs; return the run."""
    run = Run(exp=exp, id=str(number), state="finish", root=str(folder / f"{exp}.{number}"))
    run.metric = {"score": {"top_1": 0.5 + number / 10}}
    points = [{"epoch": n, "step": 9 * n, "loss": 1 / n, "train_loss": 2 / n, "top1": n / 4} for n in (1, 2, 3)]
    report = {
        "primary_measure": {"key": "top1", "is_share": True},
        "curves": {"val": points},
        "config": {"batch_size": 8, "save_path": run.root, **config},
    }
    metric = Path(run.root, exp, "output/metric")
    metric.mkdir(parents=True)
    (metric / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return run


@pytest.fixture
def book(tmp_path: Path) -> Book:
    runs = [make_run(tmp_path, "small", 1, learning_rate=0.1), make_run(tmp_path, "small", 2, learning_rate=0.2, ema=1)]
    project = Project(name="birds", git="<b>git</b>", product="small", exp={"small": runs})
    project.decisions = [{"time": str(n), "event": f"event {n}", "did": "trained", "because": "<i>"} for n in range(60)]
    book = Book(tmp_path / "projects")
    book.create(project)
    return book


def test_differences_name_what_differs_but_for_the_places(book: Book) -> None:
    reports = [read_report(run) for run in book.read("birds").exp["small"]]
    assert differences(reports) == [("learning_rate", ["0.1", "0.2"]), ("ema", ["–", "1"])]


def test_curves_lie_over_each_other(book: Book) -> None:
    found = charts([read_report(run) for run in book.read("birds").exp["small"]])
    assert [chart.title for chart in found] == ["validation top1", "validation loss", "training loss"]
    for chart in found:
        assert len(re.findall(r'class="line curve[01]"', chart.svg)) == 2
        assert len(re.findall(r'class="dot curve[01]"', chart.svg)) == 6
    assert "small.2 75.00% at epoch 3" in found[0].svg


@pytest.mark.parametrize("text", ["", "[]", '{"curves": {"val": [{}]}}', '{"curves": 3}', "[" * 100_000])
def test_a_report_that_is_damaged_is_none(book: Book, text: str) -> None:
    run = book.read("birds").exp["small"][0]
    Path(run.root, "small/output/metric/report.json").write_text(text, encoding="utf-8")
    assert not read_report(run).points and "small.1 (no report yet)" in project_html(book.read("birds"), ["small.1"])


def test_what_a_page_shows(book: Book) -> None:
    page = project_html(book.read("birds"), [])
    assert page.count(" checked>") == 2 and 'class="high">0.7000<' in page and ">0.6000<" in page
    assert "&lt;b&gt;git&lt;/b&gt;" in page and "<i>\n" not in page and "event 59" in page and "event 10<" in page
    assert "event 9<" not in page  # fifty decisions
    page = project_html(book.read("birds"), ["small.2", "<script>"])
    assert page.count(" checked>") == 1 and "<script" not in page and "None, or fewer than two" in page
    project = book.read("birds")
    project.exp["many"] = [Run(exp="many", id=str(number), state="finish") for number in range(9)]
    assert project_html(project, []).count(" checked>") == MOST
    (book.home / "torn.json").write_text("{", encoding="utf-8")
    page = projects_html(book)
    assert "torn.json: not JSON" in page and '<a href="/project/birds">birds</a>' in page
    assert "There is none yet: python -m tools.antgo create project" in projects_html(Book(book.home / "none"))


@pytest.fixture
def address(book: Book) -> Iterator[str]:
    """Serve the page as a user does; yield its address, and end it by SIGTERM."""
    command = [sys.executable, "-m", "tools.antgo", "server", "--page", "--port", "0", "--home", str(book.home)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    found = re.search(r"http://\S+", lines[1])
    assert found is not None
    yield found[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    process.stdout.close()


def get(address: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    request = urllib.request.Request(address, headers={key.replace("_", "-"): value for key, value in headers.items()})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read().decode(), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)


def test_the_server_only_reads_and_only_for_its_own_pages(address: str) -> None:
    status, text, headers = get(f"{address}/")
    assert status == 200 and "birds" in text
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "form-action 'self'" in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cross-origin-resource-policy"] == "same-origin"
    status, text, _ = get(f"{address}/project/birds?run=small.1&run=small.2")
    assert status == 200 and "learning_rate" in text and "<style" not in text and " style=" not in text
    assert get(f"{address}/page.css")[0] == 200
    for path in ("/project/none", "/project/..%2f..%2fx", "/other"):
        assert get(address + path)[0] == 404
    assert get(f"{address}/project/birds", Sec_Fetch_Site="cross-site")[0] == 403
    assert get(f"{address}/", Host="evil.example")[0] == 421


def test_other_machines_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert antgo.main(["server", "--page", "--host", "0.0.0.0"]) == 2
    assert (
        "--host 0.0.0.0 would let others read the projects; use ssh -L 8091:localhost:8091" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        antgo.main(["server"])
    assert "--page" in capsys.readouterr().err
