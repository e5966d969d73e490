"""Files appear complete or not at all, and what was there before stays until then."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from common.atomic_io import (
    ResultsError,
    atomic_path,
    check_folder,
    check_spares,
    move_into_place,
    temporary_path,
    write_atomic,
    writing,
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths that were synced and renamed, in turn."""
    done: list[Path] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real_sync(descriptor)

    def replace(source: Any, target: Any, **options: Any) -> None:
        done.append(Path(source))
        real_replace(source, target, **options)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    return done


def test_a_block_that_ends_replaces_the_file(target: Path) -> None:
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary != target
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError(28, "full")])
@pytest.mark.parametrize("has_written", [True, False])
def test_an_error_in_the_block_leaves_the_old_file(target: Path, error: BaseException, has_written: bool) -> None:
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        if has_written:
            temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_an_error_at_the_end_leaves_the_old_file(target: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, what, fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_atomic(target, "new")
    assert caught.value.filename == str(target)
    assert target.read_text() == "old"
    assert names(target.parent) == ["a.txt"]


def test_errors_name_the_target_not_the_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(tmp_path / "none" / "a.txt", "new")
    assert caught.value.filename == str(tmp_path / "none" / "a.txt")
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.txt"):
        (tmp_path / "source.txt").read_text()
    assert caught.value.filename == str(tmp_path / "source.txt")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")
def test_durable_syncs_the_file_before_and_the_folder_after(target: Path, synced: list[Path]) -> None:
    write_atomic(target, b"new")
    assert synced == [temporary_path(target), temporary_path(target), target.parent]
    synced.clear()
    write_atomic(target, b"newer", durable=False)
    assert synced == [temporary_path(target)]
    assert target.read_bytes() == b"newer"


def test_before_replace_sees_both_files(target: Path) -> None:
    seen = []
    with atomic_path(
        target, before_replace=lambda: seen.append((temporary.read_text(), target.read_text()))
    ) as temporary:
        temporary.write_text("new")
    assert seen == [("new", "old")]


def test_move_into_place(target: Path) -> None:
    source = target.with_name("b.txt")
    source.write_text("new")
    move_into_place(source, target)
    assert (target.read_text(), names(target.parent)) == ("new", ["a.txt"])


@pytest.mark.parametrize("name", ["n" * 255, "花" * 85])
def test_names_as_long_as_a_file_system_takes(tmp_path: Path, name: str) -> None:
    write_atomic(tmp_path / name, "text")
    assert names(tmp_path) == [name]


def test_text_is_utf8_with_its_line_ends(target: Path) -> None:
    write_atomic(target, "花\r\n\n")
    assert target.read_bytes() == b"\xe8\x8a\xb1\r\n\n"


def test_a_link_is_replaced_and_its_file_stays(target: Path) -> None:
    link = target.with_name("link")
    link.symlink_to(target)
    write_atomic(link, "new")
    assert (link.is_symlink(), link.read_text(), target.read_text()) == (False, "new", "old")


def test_writing_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(ResultsError) as caught, writing(tmp_path / "r.csv"):
        raise OSError(28, "No space left on device")
    assert str(caught.value) == f"{tmp_path}/r.csv: cannot write it: No space left on device"


def test_check_folder(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for folder, text in (("file/b", "file is a file, not a folder"), ("link/b", "link: it is a link to .*gone, which")):
        with pytest.raises(ResultsError, match=text):
            check_folder(tmp_path / folder)


def test_a_file_that_is_read_is_not_written_over(target: Path, tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(target)
    for output in (target, tmp_path / "link.txt"):
        with pytest.raises(
            ResultsError, match=r"txt: it is read here, and would be written over; choose another file$"
        ):
            check_spares(output, None, target)
    check_spares(None, target)
    check_spares(tmp_path / "new.txt", target, tmp_path / "gone.txt")
