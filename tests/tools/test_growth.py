"""The table of growing work: its columns by hand, each kind on a small size, and a point that fails."""

import json
from pathlib import Path

import pytest

from common.errors import BenchmarkError
from tools import growth
from tools.growth import KINDS, Kind, Point, in_own_process, main, measure, table


def test_the_table_shows_by_what_work_time_and_memory_grow() -> None:
    kind = Kind("lines of a list", "lines", (), lambda size, folder: lambda: None)
    assert table(kind, [Point(1000, 0.5, 0.0), Point(10_000, 6.0, 20.0), Point(40_000, 12.0, 50.0)]).splitlines() == [
        "| lines of a list | processor seconds | a thousand lines | peak MB | work | time | memory |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 1,000 | 0.50 | 0.5 s | 0 |  |  |  |",
        "| 10,000 | 6.00 | 0.6 s | 20 | 10.0 | 12.0 |  |",
        "| 40,000 | 12.00 | 0.3 s | 50 | 4.0 | 2.0 | 2.5 |",
    ]


@pytest.mark.parametrize(("name", "size"), [("lists", 30), ("folders", 30), ("classes", 1200), ("sides", 300)])
def test_each_kind_works(name: str, size: int) -> None:
    point = measure(KINDS[name], size)
    assert point.size == size and point.seconds > 0 and point.peak_mb >= 0


def test_a_table_of_points_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "in_own_process", lambda name, size: Point(size, size / 1e4, 5.0))
    assert main(["--only", "lists", "--most", "10000", "--json", str(tmp_path / "growth.json")]) == 0
    assert "| 10,000 | 1.00 | 0.1 s | 5 | 10.0 | 10.0 | 1.0 |" in capsys.readouterr().out
    read = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    assert read["points"] == {"lists": [[1000, 0.1, 5.0], [10_000, 1.0, 5.0]]}


def test_figures_that_cannot_be_written_are_told_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["--json", str(file / "growth.json")]) == 2
    assert capsys.readouterr().err == f"python -m tools.growth: {file}: {file} is a file, not a folder\n"


@pytest.mark.slow
def test_a_point_is_measured_in_a_process_of_its_own() -> None:
    assert in_own_process("inference", 20).seconds > 0
    with pytest.raises(BenchmarkError, match="sides of 0: "):
        in_own_process("sides", 0)
