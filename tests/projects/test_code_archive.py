"""What a job is sent: which files, in an archive of the same bytes, and what is refused."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from common.paths import ROOT
from projects import code_archive
from projects.code_archive import archive, check_code, read_code, trainer_code
from projects.errors import ProjectError
from tests.helpers.jobs import commit_all


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Make a repository with two committed files, one ignored, in a folder with a space and a Chinese letter."""
    folder = tmp_path / "my 码"
    (folder / "small").mkdir(parents=True)
    (folder / "small/main.py").write_text("print()\n", encoding="utf-8")
    (folder / "run.sh").write_text("true\n", encoding="utf-8")
    (folder / "run.sh").chmod(0o775)
    (folder / ".gitignore").write_text("*.pth\n", encoding="utf-8")
    (folder / "big.pth").write_bytes(b"0" * 10)
    commit_all(folder)
    return folder


def entries(content: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {entry.name: entry for entry in tar}


def test_what_git_tracks_is_sent_in_the_same_bytes(code: Path) -> None:
    found = read_code(code / "small")
    assert (found.folder, found.files) == (code, (".gitignore", "run.sh", "small/main.py"))
    assert not found.changed and not found.changes and found.size() == 6 + 5 + 8
    check_code(found, dirty=False)
    first = archive({"code": found}, {"job.json": b"{}"})
    listed = entries(first)
    assert list(listed) == ["code/.gitignore", "code/run.sh", "code/small/main.py", "job.json"]
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in listed.values()} == {(0, 0, 0, "")}
    assert oct(listed["code/run.sh"].mode) == "0o755" and oct(listed["job.json"].mode) == "0o644"
    for path in code.rglob("*.*"):
        os.utime(path, (1, 1))
    (code / "run.sh").chmod(0o700)
    again = archive({"code": read_code(code)}, {"job.json": b"{}"})
    assert hashlib.sha256(again).hexdigest() == hashlib.sha256(first).hexdigest()


def test_a_dirty_repository_is_refused_unless_asked_and_recorded(code: Path) -> None:
    (code / "small/main.py").write_text("print(2)\n", encoding="utf-8")
    (code / "run.sh").unlink()
    (code / "新.py").write_text("", encoding="utf-8")
    (code / "output").mkdir()
    (code / "output/log.txt").write_text("", encoding="utf-8")
    found = read_code(code, [code / "output", code.parent])
    assert found.files == (".gitignore", "small/main.py", "新.py")
    assert found.changed == ("run.sh", "small/main.py", "新.py") and b"+print(2)" in found.changes
    with pytest.raises(ProjectError) as error:
        check_code(found, dirty=False)
    message = (
        "3 files not as committed (run.sh, small/main.py, 新.py); commit them, or send and record them with --dirty"
    )
    assert str(error.value) == f"{code}: {message}"
    check_code(found, dirty=True)
    subprocess.run(["git", "-C", str(code), "checkout", "-q", "."], check=True)
    subprocess.run(["git", "-C", str(code), "apply"], input=found.changes, check=True)
    assert (code / "small/main.py").read_text(encoding="utf-8") == "print(2)\n" and not (code / "run.sh").exists()


def test_links_stay_links_and_lead_nowhere_else(code: Path) -> None:
    (code / "link").symlink_to("small/main.py")
    commit_all(code)
    entry = entries(archive({"code": read_code(code)}, {}))["code/link"]
    assert entry.issym() and entry.linkname == "small/main.py"
    (code / "secret").symlink_to("/etc/passwd")
    with pytest.raises(ProjectError, match="secret: it is a link to /etc/passwd, out of the repository, and cannot"):
        check_code(read_code(code), dirty=True)


def test_what_cannot_be_sent(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProjectError, match=r"git: fatal: not a git repository.*git init, git add and git commit first"):
        read_code(tmp_path)
    monkeypatch.setattr(code_archive, "MOST_BYTES", 18)
    with pytest.raises(ProjectError, match=r"of code, at most .* are sent; the largest file is small/main.py: name"):
        check_code(read_code(code), dirty=False)
    commit_all(code / "inner", {"a.txt": "1"})
    with pytest.raises(ProjectError, match="inner: it is a submodule or repository of its own and cannot be sent"):
        check_code(read_code(code), dirty=True)


def test_the_trainer_is_sent_without_its_tests_and_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = trainer_code()
    assert found.folder == ROOT and {"train.py", "projects/code_archive.py"} <= set(found.files)
    assert not [name for name in found.files if name.startswith(("tests/", "docs/")) or name.endswith(".pyc")]
    assert found.size() < code_archive.MOST_BYTES / 10
    for name in ("train.py", "a/__pycache__/b.pyc"):  # as installed
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(code_archive, "ROOT", tmp_path)
    assert trainer_code().files == ("train.py",)
