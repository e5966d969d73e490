"""Repositories of users, and what stands in for the machines that jobs run on."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

WHO = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main")


def commit_all(folder: Path, files: Mapping[str, str] | None = None) -> None:
    """Write files into a folder, and commit all that git does not ignore there, in a repository of its own."""
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    git = ["git", "-C", str(folder), *WHO]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "1"]):
        subprocess.run([*git, *words], check=True)
