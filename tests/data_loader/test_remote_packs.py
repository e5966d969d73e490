"""Packs at addresses: fetched once, verified, gone on with after every fault, and never changed under a training."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.paths import ROOT
from data_loader import remote_files, remote_packs
from data_loader.decoding import decode
from data_loader.pack_list import read_pack
from data_loader.packs import file_of
from data_loader.remote_files import RemoteError, RemoteFolder
from data_loader.remote_packs import local_pattern
from data_loader.samples import ListError
from data_loader.targets import ClassLabel
from datasets.files import write_annotations
from tests.helpers.records import picture
from tests.helpers.s3 import BUCKET, environment, moto_server, upload
from tests.helpers.web_folder import FolderServer, folder_server
from tools import antgo

pytest.importorskip("crc32c")
fsspec = pytest.importorskip("fsspec")

NAME = "鹭 a"
FIRST = f"{NAME}-00000-of-00003-tfrecord"


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a pack of eight images in three shards; faults are tried again at once."""
    monkeypatch.setattr(remote_files, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(remote_files, "BLOCK_BYTES", 2000)
    return pack(tmp_path, 0)


def pack(folder: Path, seed: int) -> Path:
    records = []
    for number in range(8):
        picture(folder / f"set/{number}.png", (40, 30), seed + number)
        records.append({"image_file": f"{number}.png", "image_label": number % 3})
    source = write_annotations(folder / "set", records, ["a", "b", "c"])
    words = ["--src", str(source), "--tgt", str(folder / "bucket"), "--prefix", NAME, "--num", "3", "--overwrite"]
    assert antgo.main(["package/tfrecord", *words]) == 0
    return folder / "bucket"


@pytest.fixture
def server(packs: Path) -> Iterator[FolderServer]:
    pytest.importorskip("aiohttp")
    with folder_server(packs) as running:
        yield running


def fetched(server: FolderServer, folder: Path) -> str:
    """Return the local pattern, as a new process would."""
    return found_at(f"{server.url}/{NAME}-*-tfrecord", folder)


def found_at(pattern: str, folder: Path) -> str:
    remote_packs._fetched.cache_clear()
    return local_pattern(pattern, str(folder / "cache"))


def mistake(function: Callable[..., str], *arguments: Any) -> str:
    with pytest.raises(ListError) as caught:
        function(*arguments)
    return str(caught.value)


def images(pattern: str) -> list[tuple[str, int, bytes]]:
    """Return of each sample the path that its image had, its label, and its pixels."""
    samples = read_pack(pattern, ClassLabel(3)).samples
    return [(file_of(sample.path), sample.label, decode(sample.path).tobytes()) for sample in samples]


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*-tfrecord")}


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_pack_over_http(tmp_path: Path, server: FolderServer, has_ranges: bool) -> None:
    """Also from a server that gives whole files alone. A second look asks for the small files only."""
    server.has_ranges = has_ranges
    pattern = fetched(server, tmp_path)
    assert images(pattern) == images(str(server.folder / f"{NAME}-*-tfrecord"))
    assert not list(tmp_path.glob("cache/**/*.part")) and not list(tmp_path.glob("cache/**/.lock"))
    server.sent.clear()
    assert fetched(server, tmp_path) == pattern and set(server.sent) == {f"{NAME}-meta.json"}


def test_a_pack_from_memory_has_the_index_that_was_packed(tmp_path: Path, packs: Path) -> None:
    """Any file system of fsspec's; the index is made of the shard that came, and is the packer's."""
    system = fsspec.filesystem("memory")
    system.put(str(packs), "/remote/packs", recursive=True)
    try:
        pattern = found_at(f"memory://remote/packs/{NAME}-*-tfrecord", tmp_path)
        assert images(pattern) == images(str(packs / f"{NAME}-*-tfrecord"))
        for path in packs.glob("*-index"):
            assert (Path(pattern).parent / path.name).read_bytes() == path.read_bytes()
    finally:
        system.rm("/remote", recursive=True)


@pytest.mark.slow
def test_a_pack_from_s3(tmp_path: Path, packs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    for module in ("s3fs", "moto.server", "flask"):
        pytest.importorskip(module)
    with moto_server() as port:
        for name, value in environment(f"http://127.0.0.1:{port}").items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        upload(client, packs, "x/packs/")
        pattern = found_at(f"s3://{BUCKET}/x/packs/{NAME}-*-tfrecord", tmp_path)
        assert images(pattern) == images(str(packs / f"{NAME}-*-tfrecord"))
        sentence = mistake(found_at, f"s3://{BUCKET}/other/P-*-tfrecord", tmp_path)
        assert sentence == f"s3://{BUCKET}/other/P-meta.json: it is not there"


def test_what_came_is_not_fetched_again(tmp_path: Path, server: FolderServer) -> None:
    """A connection that breaks off goes on where it did; so does the next start after a server that stays away."""
    whole = shards(server.folder)
    total = sum(map(len, whole.values()))
    server.left = total // 2
    sentence = mistake(fetched, server, tmp_path)
    assert "it cannot be reached" in sentence and "came, and are kept for the next start" in sentence
    assert not list(tmp_path.glob("cache/**/*-meta.json"))  # nobody takes it for whole
    kept = sum(path.stat().st_size for path in tmp_path.glob("cache/**/*tfrecord*"))
    assert 0 < kept <= total // 2
    server.left, server.sent = 2**40, {}
    fetched(server, tmp_path)
    assert shards(tmp_path / "cache") == whole
    sent = sum(count for name, count in server.sent.items() if name.endswith("-tfrecord"))
    assert total - kept <= sent <= total - kept + 2000 * len(whole)  # one look at each, whether there are ranges


def test_a_pack_that_changes_has_another_folder(
    tmp_path: Path, server: FolderServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training that reads the earlier one keeps it to the end; a later one is told."""
    before = fetched(server, tmp_path)
    seen = images(before)
    pack(tmp_path, 100)
    capsys.readouterr()
    after = fetched(server, tmp_path)
    assert "it has been packed anew since it was fetched into" in capsys.readouterr().err
    assert after != before and images(before) == seen and images(after) != seen
    assert images(after) == images(str(server.folder / f"{NAME}-*-tfrecord"))
    fetched(server, tmp_path)
    assert "packed anew" not in capsys.readouterr().err


def test_a_server_that_is_gone(tmp_path: Path, server: FolderServer, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = fetched(server, tmp_path)
    pack(tmp_path, 100)
    newer = fetched(server, tmp_path)
    pack(tmp_path, 0)
    assert fetched(server, tmp_path) == pattern  # the packing of before
    capsys.readouterr()
    server.statuses[f"{NAME}-meta.json"] = 503
    assert fetched(server, tmp_path) == pattern != newer
    assert "it cannot be reached" in (note := capsys.readouterr().err) and "what was fetched earlier is used" in note
    assert "it cannot be reached: 503" in mistake(fetched, server, tmp_path / "other")
    server.statuses[f"{NAME}-meta.json"] = 403  # it answers: no reason to go on with what is here
    assert "it may not be read: 403" in mistake(fetched, server, tmp_path)
    server.statuses[f"{NAME}-meta.json"] = 404
    assert mistake(fetched, server, tmp_path) == f"{server.url}/{NAME}-meta.json: it is not there"


def test_a_shard_that_is_gone_or_another(tmp_path: Path, server: FolderServer) -> None:
    server.statuses[FIRST] = 404
    assert f"{server.url}/{FIRST}: it is not there" == mistake(fetched, server, tmp_path)
    server.statuses.clear()
    whole = (server.folder / FIRST).read_bytes()
    for other in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1]):
        (server.folder / FIRST).write_bytes(other)
        sentence = mistake(fetched, server, tmp_path)
        assert f"{server.url}/{FIRST}: {len(other)} bytes came, whose sha256 is not that of" in sentence
        assert not list(tmp_path.glob(f"cache/**/{FIRST}"))
    (server.folder / FIRST).write_bytes(whole)
    pattern = fetched(server, tmp_path)
    assert (Path(pattern).parent / FIRST).read_bytes() == whole
    (Path(pattern).parent / FIRST).write_bytes(whole[:100])  # a fault of this disk
    assert (Path(fetched(server, tmp_path)).parent / FIRST).read_bytes() == whole


def test_a_full_disk(tmp_path: Path, server: FolderServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        sentence = mistake(fetched, server, tmp_path)
        assert "are to be fetched into" in sentence and "data_cache_dir names a folder on another disk" in sentence
    real = Path.open

    def full(self: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "ab":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, mode, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        sentence = mistake(fetched, server, tmp_path)
    assert "No space left on device; data_cache_dir names a folder on another disk" in sentence
    (tmp_path / "file").write_text("")
    assert "Not a directory" in mistake(found_at, f"{server.url}/{NAME}-*-tfrecord", tmp_path / "file")


@pytest.mark.slow
def test_two_at_once_fetch_once(tmp_path: Path, server: FolderServer) -> None:
    code = "import sys; from data_loader.remote_packs import local_pattern; print(local_pattern(*sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, f"{server.url}/{NAME}-*-tfrecord", str(tmp_path / "cache")]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = [each.communicate(timeout=60)[0] for each in running]
    assert first == second and images(first.strip()) == images(str(server.folder / f"{NAME}-*-tfrecord"))
    for path in server.folder.glob("*-tfrecord"):
        assert path.stat().st_size <= server.sent[path.name] < 2 * path.stat().st_size


def test_class_files_come_along(tmp_path: Path, server: FolderServer) -> None:
    (server.folder / "classes.txt").write_text("x\ny\nz\n")
    folder = Path(fetched(server, tmp_path)).parent
    assert (folder / "classes.txt").read_text() == "x\ny\nz\n" and not (folder / "classes.json").exists()
    (server.folder / "classes.txt").unlink()
    fetched(server, tmp_path)
    assert not (folder / "classes.txt").exists()


def test_mistakes(tmp_path: Path, packs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    names = [f"P-{number:05}-of-00002-tfrecord" for number in range(2)]
    rows = [{"file": name, "bytes": 3, "sha256": "0" * 64} for name in names]
    for meta, sentence in (
        (b"<html>", "expected what package/tfrecord writes"),
        (b"[]", "expected what package/tfrecord writes"),
        (json.dumps({"shards": rows[:1]}).encode(), "its shards are not all there"),
        (json.dumps({"shards": [rows[0], {**rows[1], "file": "../../P-00001-of-00002-tfrecord"}]}).encode(), "not all"),
        (json.dumps({"shards": [rows[0], {**rows[1], "bytes": "3"}]}).encode(), "its shards are not all there"),
    ):
        system.pipe("/remote/P-meta.json", meta)
        found = mistake(found_at, "memory://remote/P-*-tfrecord", tmp_path)
        assert found.startswith("memory://remote/P-meta.json: expected") and sentence in found
        assert not list(tmp_path.glob("cache/**/*.part"))
    system.rm("/remote", recursive=True)
    for pattern, sentence in (
        ("memory://remote/*-tfrecord", "an address names one pack, such as s3://bucket/packs/P-*-tfrecord"),
        (f"memory://remote/{names[0]}", "an address names one pack"),
        ("s3://ann:secret@host/*-tfrecord", "s3://***@host/*-tfrecord: an address"),
        ("nosuch://remote/P-*-tfrecord", "Protocol not known: nosuch"),
        ("memory://remote/P-*-tfrecord", "memory://remote/P-meta.json: it is not there"),
    ):
        assert sentence in mistake(found_at, pattern, tmp_path)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert "pip install -r requirements-remote.txt" in mistake(found_at, "https://host/P-*-tfrecord", tmp_path)


def test_without_credentials_nothing_is_tried_again() -> None:
    """A store that cannot be asked is no store that does not answer: what was fetched earlier is not used."""
    errors = pytest.importorskip("botocore.exceptions")
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        raise errors.NoCredentialsError

    with pytest.raises(RemoteError, match="it may not be read: Unable to locate credentials") as caught:
        RemoteFolder(None, "", "s3://bucket").patiently(work)
    assert caught.value.is_missing and len(tries) == 1
