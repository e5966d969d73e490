"""download/copy: files and folders through fsspec, from its own file system in memory."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools import antgo

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory() -> Iterator[Any]:
    """Return fsspec's file system in memory with a folder of three files."""
    system = fsspec.filesystem("memory")
    for name, size in (("a.txt", 3), ("照/b.txt", 70_000), ("照/c/d.txt", 0)):
        system.pipe(f"/bucket/set/{name}", bytes(size))
    yield system
    system.rm("/bucket", recursive=True)


def copy(target: Path, *flags: str, src: str = "memory://bucket/set") -> int:
    return antgo.main(["download/copy", "--src", src, "--tgt", str(target), *flags])


def sizes(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


WHOLE = {"a.txt": 3, "照/b.txt": 70_000, "照/c/d.txt": 0}


def test_a_folder_and_a_file(tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert copy(tmp_path / "a") == 0
    assert sizes(tmp_path / "a") == WHOLE
    assert "3 of 3 files fetched" in capsys.readouterr().out
    assert copy(tmp_path / "b", src="memory://bucket/set/照/b.txt") == 0
    assert sizes(tmp_path / "b") == {"b.txt": 70_000}
    words = ["download/aliyun", "--src", "memory://bucket/set/照/c", "--tgt", str(tmp_path / "c")]
    assert antgo.main(words) == 0 and sizes(tmp_path / "c") == {"d.txt": 0}


def test_what_is_there_is_not_fetched_again(tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]) -> None:
    copy(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"xyz")  # of the same size
    (tmp_path / "照/b.txt").unlink()
    capsys.readouterr()
    assert copy(tmp_path) == 0
    output = capsys.readouterr()
    assert "1 of 3 files fetched" in output.out and "note: 2 files that were there already" in output.err
    assert (tmp_path / "a.txt").read_bytes() == b"xyz" and sizes(tmp_path) == WHOLE
    (tmp_path / "a.txt").write_bytes(b"other")
    assert copy(tmp_path) == 2
    assert "it is there already, with another size; add --overwrite" in capsys.readouterr().err
    assert copy(tmp_path, "--overwrite") == 0 and sizes(tmp_path) == WHOLE


def test_what_breaks_off_is_left_out(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = type(memory).get_file

    def half(self: Any, path: str, local: str, **kwargs: Any) -> None:
        if path.endswith("d.txt"):
            raise RuntimeError("the connection was lost")
        whole(self, path, local, **kwargs)
        if path.endswith("b.txt"):
            Path(local).write_bytes(bytes(35_000))

    monkeypatch.setattr(type(memory), "get_file", half)
    assert copy(tmp_path) == 1
    errors = capsys.readouterr().err
    assert "b.txt: 35000 of 70000 bytes came" in errors and "d.txt: the connection was lost" in errors
    assert sizes(tmp_path) == {"a.txt": 3}


def test_a_full_disk_ends_it(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Any, path: str, local: str, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(memory), "get_file", full)
    assert copy(tmp_path) == 2
    assert capsys.readouterr().err.count("No space left on device") == 1 and sizes(tmp_path) == {}


@pytest.mark.parametrize(
    ("src", "sentence"),
    [
        ("bucket/set", "expected an address such as s3://bucket/packs"),
        ("memory://bucket/nothing", "it is not there"),
        ("ali://drive/set", "Protocol not known"),
    ],
)
def test_mistakes(tmp_path: Path, memory: Any, src: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert copy(tmp_path / "x", src=src) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "x").exists()
