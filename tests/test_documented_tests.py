"""What the docs name is there: the tests of SECURITY.md and docs/reliability.md, and the files of the map."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PAGES = (ROOT / "SECURITY.md", ROOT / "docs" / "reliability.md")
MAPS = (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md", ROOT / "docs" / "decisions.md")
PACKAGES = (
    "artifacts|common|configs|data_loader|datasets|deploy|nets|platforms|projects|pytorch2json|review|tools|trainers|"
    "visualization"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_guarantee_runs_something(page: Path) -> None:
    commands = re.findall(r"`([^`]*\btest_\w+\.py[^`]*)`", page.read_text(encoding="utf-8"))
    assert len(commands) > 10
    for command in commands:
        files = [
            (TESTS / file).read_text(encoding="utf-8")
            for file in re.findall(r"(?:tests/)?([\w/]*test_\w+\.py)", command)
        ]
        names = [name for text in files for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)]
        assert names, command
        chosen = re.search(r'-k "?([\w ]+)"?', command)
        for word in chosen[1].split(" or ") if chosen else ():
            assert any(word.strip() in name for name in names), f"{page.name}: no test *{word}* for {command}"


@pytest.mark.parametrize("page", MAPS, ids=lambda page: page.name)
def test_every_file_that_a_map_names_is_there(page: Path) -> None:
    names = re.findall(rf"(?<![\w/.])(?:{PACKAGES})/[\w/]+\.\w+", page.read_text(encoding="utf-8"))
    assert [name for name in names if "NAME" not in name and not (ROOT / name).is_file()] == []


def test_the_layout_names_files_of_its_folders() -> None:
    """Each indented line of the layout begins with files or folders of the package above it."""
    layout = re.search(r"## Layout\n\n```\n(.*?)```", MAPS[1].read_text(encoding="utf-8"), re.DOTALL)
    assert layout is not None
    folder = ROOT
    for line in layout[1].splitlines():
        if found := re.match(r"(\w+)/", line):
            folder = ROOT / found[1]
        names = re.split(r" {3,}", line.strip())[0].split() if line.startswith("  ") else []
        for name in names:
            assert not name.endswith((".py", "/")) or (folder / name).exists(), f"{folder.name}: {name}"
