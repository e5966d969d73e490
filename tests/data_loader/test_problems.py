"""Many and strange mistakes in a list: the first in order, all counted, in a message that a terminal can show."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from common.cli import run_program
from data_loader import list_reader
from data_loader.list_reader import read_list
from data_loader.problems import KEPT, Problems
from data_loader.samples import ListError, shorten_path


def test_the_first_are_kept_in_the_order_of_the_lines_and_all_counted() -> None:
    problems = Problems()
    for line in [*range(5000, 1000, -1), *range(1, 1001)]:
        problems.add(line, f"wrong {line}".__str__)
    problems.extend([(0, "the whole"), (1, "again"), (9999, "late")])
    with pytest.raises(ListError) as caught:
        problems.raise_any("a.txt")
    assert caught.value.problems[:4] == ["a.txt: the whole", "a.txt:1: wrong 1", "a.txt:1: again", "a.txt:2: wrong 2"]
    assert len(caught.value.problems) == KEPT and caught.value.more == 5003 - KEPT
    assert str(caught.value).splitlines()[-1] == f"... and {5003 - 20} more"
    Problems().raise_any("a.txt")


def test_missing_images_take_little_memory_and_stop_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30,000 sentences of 400 bytes would take 12 MB; the search ends with the second block of lines."""
    monkeypatch.setattr(list_reader, "BLOCK", 10_000)
    folder = "g" * 300
    (tmp_path / "a.txt").write_text("".join(f"{folder}/{number}.png----0\n" for number in range(30_000)))
    tracemalloc.start()
    with pytest.raises(ListError) as caught:
        read_list(tmp_path / "a.txt", tmp_path, "----", 2)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 40e6 and len(caught.value.problems) == KEPT
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        f"{tmp_path}/a.txt: 20000 problems in the first 20000 of its 30000 lines: the others were not looked for"
    )
    assert lines[1] == f"{tmp_path}/a.txt:1: image not found: {shorten_path(f'{tmp_path}/{folder}/0.png')}"
    assert lines[-1] == "... and 19981 more"


def test_long_paths_are_shortened_and_escapes_not_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "a.txt"
    listed.write_text(
        f"{'x' * 2_000_000}.png----0\n\x1b[2Jcleared\x07.png----1\nbell\x07----9{'9' * 9999}\n../\x1b]0;t.png----1\n"
    )

    def read() -> int:
        read_list(listed, tmp_path, "----", 2)
        return 0

    assert run_program("train.py", read) == 2
    text = capsys.readouterr().err
    assert len(text) < 3000 and "\x1b" not in text and "\x07" not in text
    assert f"image not found: {tmp_path}/\\x1b[2Jcleared\\x07.png" in text
    assert 'path "../\\x1b]0;t.png" leaves the root folder' in text
    assert ".png" in text.splitlines()[0] and "x...x" in text.splitlines()[0]
