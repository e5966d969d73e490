"""Shards that come and go: never more of them than allowed, whoever reads, and nothing else of the folder changes."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.file_lock import exclusive
from common.paths import ROOT
from data_loader import remote_files, remote_packs, streamed_packs
from data_loader.cache import Fitting
from data_loader.decoding import decode
from data_loader.pack_list import read_pack
from data_loader.packed_images import content_of
from data_loader.packs import find_pack
from data_loader.preprocess import Preprocess
from data_loader.remote_packs import local_pattern
from data_loader.samples import ListError
from data_loader.streamed_packs import StreamError, begin_stream, stream_in
from data_loader.targets import ClassLabel
from datasets.files import write_annotations
from tests.helpers.records import picture
from tests.helpers.s3 import BUCKET, environment, moto_server, upload
from tests.helpers.web_folder import FolderServer, folder_server
from tools import antgo

pytest.importorskip("crc32c")
pytest.importorskip("aiohttp")

RECORDS = 20  # of two in each of ten shards
MOST = 3

READER = """
import random, sys
from data_loader.cache import Fitting
from data_loader.decoding import decode
from data_loader.pack_list import read_pack
from data_loader.packed_images import content_of
from data_loader.packs import find_pack, packed_name
pattern, seed = sys.argv[1:]
names = [packed_name(shard, index, "") for shard in find_pack(pattern).shards for index in range(2)]
random.Random(int(seed)).shuffle(names)
for name in names:
    content_of(name)
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FolderServer]:
    monkeypatch.setattr(remote_files, "PAUSES_S", (0.0, 0.0))
    records = []
    for number in range(RECORDS):
        picture(tmp_path / f"set/{number}.png", (40, 30), number)
        records.append({"image_file": f"{number}.png", "image_label": number % 3})
    write_annotations(tmp_path / "set", records, ["a", "b", "c"])
    pack(tmp_path)
    with folder_server(tmp_path / "bucket") as running:
        yield running


@pytest.fixture
def pattern(tmp_path: Path, server: FolderServer) -> str:
    remote_packs._fetched.cache_clear()
    return local_pattern(f"{server.url}/P-*-tfrecord", str(tmp_path / "cache"), MOST)


def pack(folder: Path, *flags: str) -> None:
    words = ["--src", str(folder / "set/annotation.json"), "--tgt", str(folder / "bucket"), "--prefix", "P"]
    assert antgo.main(["package/tfrecord", *words, "--num", "2", *flags]) == 0


def names(pattern: str) -> list[str]:
    return [f"{shard}#{index}" for shard in find_pack(pattern).shards for index in range(2)]


def there(pattern: str) -> set[str]:
    found = {path.name for path in Path(pattern).parent.iterdir()}
    return {name.removesuffix(".part") for name in found if name.endswith(("-tfrecord", "-tfrecord.part"))}


def test_images_are_those_that_were_packed(tmp_path: Path, pattern: str) -> None:
    chosen = list(enumerate(names(pattern)))
    random.Random(1).shuffle(chosen)
    for number, name in chosen:
        assert content_of(name) == (tmp_path / f"set/{number}.png").read_bytes()
        assert len(there(pattern)) <= MOST
    assert not list(Path(pattern).parent.glob("*.part"))


def test_labels_are_read_once(pattern: str, server: FolderServer, tmp_path: Path) -> None:
    """The heads stay: the next start fetches no shard."""
    shard = (server.folder / "P-00000-of-00010-tfrecord").stat().st_size
    heads = Path(pattern).with_name("P-00000-of-00010-heads").stat().st_size
    assert heads < shard - 2 * 40 * 30
    server.sent.clear()
    remote_packs._fetched.cache_clear()
    assert local_pattern(f"{server.url}/P-*-tfrecord", str(tmp_path / "cache"), MOST) == pattern
    assert set(server.sent) == {"P-meta.json"}


def test_heads_that_were_packed_are_those_that_would_be_made(
    tmp_path: Path, server: FolderServer, pattern: str
) -> None:
    """No shard is fetched for the labels. A pack on the disk is read as before, with its heads beside it."""
    made = {path.name: path.read_bytes() for path in Path(pattern).parent.glob("*-heads")}
    samples = read_pack(pattern, ClassLabel(3)).samples
    pack(tmp_path, "--overwrite", "--heads")
    local = str(server.folder / "P-*-tfrecord")
    assert {path.name: path.read_bytes() for path in server.folder.glob("*-heads")} == made and len(made) == 10
    assert [sample.label for sample in read_pack(local, ClassLabel(3)).samples] == [sample.label for sample in samples]
    server.sent.clear()
    remote_packs._fetched.cache_clear()
    packed = local_pattern(f"{server.url}/P-*-tfrecord", str(tmp_path / "cache"), MOST)
    assert packed != pattern and set(server.sent) == {"P-meta.json", *made}
    assert {path.name: path.read_bytes() for path in Path(packed).parent.glob("*-heads")} == made
    assert content_of(names(packed)[7]) == content_of(names(local)[7])


def test_heads_of_an_earlier_packing_are_removed(tmp_path: Path, server: FolderServer) -> None:
    pack(tmp_path, "--overwrite", "--heads")
    pack(tmp_path, "--overwrite")
    assert not list(server.folder.glob("*-heads")) and len(list(server.folder.glob("*-index"))) == 10
    pack(tmp_path, "--overwrite", "--heads")
    pack(tmp_path, "--overwrite", "--heads", "--num", "4")
    assert len(list(server.folder.glob("*-heads"))) == 5


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"file": "../P-00000-of-00010-heads"}, {"bytes": "1"}, None])
def test_heads_that_are_not_right(tmp_path: Path, server: FolderServer, change: dict[str, object] | None) -> None:
    pack(tmp_path, "--overwrite", "--heads")
    meta = server.folder / "P-meta.json"
    content = json.loads(meta.read_text())
    content["shards"][0]["heads"] = change and content["shards"][0]["heads"] | change
    meta.write_text(json.dumps(content))
    remote_packs._fetched.cache_clear()
    sentence = (
        "whose sha256 is not that of" if change and "sha256" in change else "expected what package/tfrecord writes"
    )
    with pytest.raises(ListError, match=sentence):
        local_pattern(f"{server.url}/P-*-tfrecord", str(tmp_path / "cache"), MOST)


@pytest.mark.slow
def test_a_pack_in_s3_is_streamed_by_a_process_and_its_forks(
    tmp_path: Path, server: FolderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3 = pytest.importorskip("boto3")
    for module in ("moto.server", "flask"):
        pytest.importorskip(module)
    system = pytest.importorskip("s3fs").S3FileSystem
    system.clear_instance_cache()  # which keep the endpoint of their time
    with moto_server() as port:
        for name, value in environment(f"http://127.0.0.1:{port}").items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        upload(client, server.folder, "packs/")
        pattern = local_pattern(f"s3://{BUCKET}/packs/P-*-tfrecord", str(tmp_path / "cache"), MOST)
        assert content_of(names(pattern)[0]) == (tmp_path / "set/0.png").read_bytes()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map(content_of, names(pattern), chunksize=1)
        system.clear_instance_cache()
    assert found == [(tmp_path / f"set/{number}.png").read_bytes() for number in range(RECORDS)]
    assert len(there(pattern)) <= MOST


def test_fitted_images_are_found_again_though_shards_come_and_go(pattern: str) -> None:
    fitting = Fitting(Preprocess(32, 32))
    before = fitting.file_name(read_pack(pattern, ClassLabel(3)))
    for name in reversed(names(pattern)):
        content_of(name)
    assert fitting.file_name(read_pack(pattern, ClassLabel(3))) == before
    os.utime(Path(pattern).with_name("P-00003-of-00010-heads"), ns=(1, 1))
    assert fitting.file_name(read_pack(pattern, ClassLabel(3))) != before


def test_the_shard_that_was_read_longest_ago_goes(pattern: str) -> None:
    files = find_pack(pattern).shards
    for number in (0, 1, 2, 0, 3):
        content_of(f"{files[number]}#0")
    assert there(pattern) == {Path(files[number]).name for number in (0, 2, 3)}


def test_a_lower_limit_counts_from_the_start(tmp_path: Path, server: FolderServer, pattern: str) -> None:
    for name in names(pattern):
        content_of(name)
    assert len(there(pattern)) == MOST
    assert local_pattern(f"{server.url}/P-*-tfrecord", str(tmp_path / "cache"), 2) == pattern
    assert len(there(pattern)) == 2


def test_a_shard_that_a_power_cut_left_short_is_fetched_again(
    tmp_path: Path, server: FolderServer, pattern: str
) -> None:
    name = names(pattern)[0]
    content = content_of(name)
    shard = Path(find_pack(pattern).shards[0])
    shard.write_bytes(shard.read_bytes()[:50])
    remote_packs._fetched.cache_clear()
    local_pattern(f"{server.url}/P-*-tfrecord", str(tmp_path / "cache"), MOST)
    assert content_of(name) == content


def test_a_shard_that_is_being_fetched_is_left_alone(pattern: str) -> None:
    """Of what lies there unfinished, only what nobody fetches any more goes."""
    folder, files = Path(pattern).parent, [Path(shard) for shard in find_pack(pattern).shards]
    for path in folder.glob("*-tfrecord"):
        path.unlink()
    for path in files[:MOST]:
        path.with_name(f"{path.name}.part").touch()
    kept = [folder / f"{files[number].name}.lock" for number in (0, 1)]
    with exclusive(kept[0]), exclusive(kept[1]):
        content_of(f"{files[5]}#0")
        assert there(pattern) == {files[number].name for number in (0, 1, 5)}
        content_of(f"{files[6]}#0")
        assert there(pattern) == {files[number].name for number in (0, 1, 6)}


def test_without_a_place_a_reader_waits(pattern: str) -> None:
    folder, files = Path(pattern).parent, [Path(shard) for shard in find_pack(pattern).shards]
    for path in folder.glob("*-tfrecord"):
        path.unlink()
    for path in files[:MOST]:
        path.with_name(f"{path.name}.part").touch()
    done = threading.Event()

    def read() -> None:
        content_of(f"{files[5]}#0")
        done.set()

    reading = threading.Thread(target=read)
    with exclusive(folder / f"{files[0].name}.lock"), exclusive(folder / f"{files[1].name}.lock"):
        with exclusive(folder / f"{files[2].name}.lock"):
            reading.start()
            assert not done.wait(0.3) and len(there(pattern)) == MOST
        reading.join(60)
    assert done.is_set() and there(pattern) == {files[number].name for number in (0, 1, 5)}


@pytest.mark.slow
def test_processes_that_read_in_other_orders_share_the_places(pattern: str) -> None:
    """More readers than places: each of them reads all, and there are never more shards than allowed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", READER, pattern]
    readers = [subprocess.Popen([*command, str(seed)], env=environment) for seed in range(5)]
    most = 0
    while any(reader.poll() is None for reader in readers):
        most = max(most, len(there(pattern)))
    assert [reader.returncode for reader in readers] == [0] * 5
    assert 2 <= most <= MOST


def test_a_shard_that_cannot_be_fetched(pattern: str, server: FolderServer) -> None:
    """It is asked for once; the others can be read."""
    files = [Path(shard) for shard in find_pack(pattern).shards]
    content_of(f"{files[1]}#0")
    for path in files:
        path.unlink(missing_ok=True)
    server.statuses[files[0].name] = 503
    for _ in range(2):
        with pytest.raises(StreamError, match=f"{files[0].name}: it cannot be reached: 503"):
            content_of(f"{files[0]}#0")
    assert content_of(f"{files[1]}#0")
    server.statuses.clear()
    streamed_packs._stream_in.cache_clear()  # as a new process would
    assert content_of(f"{files[0]}#0")


def test_a_disk_without_room_is_no_damaged_image(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a lock file: `bad_images` would leave the image out."""
    name = names(pattern)[0]
    Path(name.partition("#")[0]).unlink(missing_ok=True)

    def full(self: Path, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(StreamError, match="No space left on device; data_cache_dir names a folder on another disk"):
        decode(name)


def test_a_damaged_record_is_named_before_the_training(tmp_path: Path, server: FolderServer) -> None:
    """Its shard is the one that was packed; the record was damaged then."""
    file = server.folder / "P-00003-of-00010-tfrecord"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    meta = server.folder / "P-meta.json"
    content = json.loads(meta.read_text())
    content["shards"][3]["sha256"] = hashlib.sha256(data).hexdigest()
    meta.write_text(json.dumps(content))
    remote_packs._fetched.cache_clear()
    with pytest.raises(ListError, match=rf"{file.name}: record 1: record 1 at byte \d+ of .* is damaged"):
        local_pattern(f"{server.url}/P-*-tfrecord", str(tmp_path / "cache"), MOST)


def test_a_folder_of_a_pack_on_the_disk_is_none_that_is_streamed(tmp_path: Path, server: FolderServer) -> None:
    assert stream_in(str(server.folder)) is None
    stream = begin_stream(tmp_path, server.url, [], MOST)
    assert stream.most == MOST and stream_in(str(tmp_path)) is not None
