"""The tests that SECURITY.md and docs/reliability.md name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGES = (TESTS.parent / "SECURITY.md", TESTS.parent / "docs" / "reliability.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_promise_runs_something(page: Path) -> None:
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
