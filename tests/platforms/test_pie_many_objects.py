"""Thousands of objects are fetched by plain signed GETs in processes; all else is left to the patient way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from common.paths import ROOT
from platforms.pie_engine import direct, prefetch, storage
from platforms.pie_engine.direct import Site, Wanted, fetch_many, fetch_part, site_of
from platforms.pie_engine.prefetch import cache_path, fetch, list_data
from platforms.pie_engine.storage import Listed, open_store
from tests.helpers.object_store import ObjectStore, data_set, object_store
from tests.helpers.s3 import BUCKET, SECRET, environment

boto3 = pytest.importorskip("boto3", reason="requirements-pie.txt")

OBJECTS, BYTES = int(os.environ.get("PIE_OBJECTS", "5000")), 8192  # of the measurement
ODD = "sets/d1/train/images/a b+c~d(1)%20_中文&=.jpg"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(data_set(40, 64) | {ODD: b"odd"}) as server:
        for name, value in environment(server.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "PAUSES_S", (0.0,) * 4)
        monkeypatch.chdir(tmp_path)
        yield server


def the_site() -> Site:
    store = open_store(BUCKET)
    assert isinstance(store, storage.S3Store)
    site = site_of(store.client, BUCKET)
    assert site is not None
    return site


def test_a_part_is_written_as_it_is_in_the_store(server: ObjectStore, tmp_path: Path) -> None:
    """The signature is checked by the server, which counts it by itself; the names of temporary files are gone."""
    found = list_data(open_store(BUCKET), "sets/d1/").objects
    assert len(found) == 41
    fetch_part(the_site(), [(listed, tmp_path / f"{number}") for number, listed in enumerate(found.values())])
    for number, listed in enumerate(found.values()):
        assert (tmp_path / f"{number}").read_bytes() == server.objects[listed.key]
    assert len(list(tmp_path.iterdir())) == 41 and server.counts["get 200"] == 41


def test_processes(server: ObjectStore, tmp_path: Path) -> None:
    found = list_data(open_store(BUCKET), "sets/d1/").objects.values()
    assert [*fetch_many(the_site(), [(listed, tmp_path / listed.etag) for listed in found])] == [41]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        server.etags[key]: body for key, body in server.objects.items()
    }


def test_processes_end_where_nothing_comes(
    server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "PART", 15)
    listed = [*list_data(open_store(BUCKET), "sets/d1/").objects.values()]
    server.fault = lambda key: (403, b"")
    assert [*fetch_many(the_site(), [(each, tmp_path / each.etag) for each in listed])] == []
    assert server.counts["get"] <= 3 * direct.THREADS and not [*tmp_path.iterdir()]  # one of each thread


KILLED = """
import os
from pathlib import Path
from botocore.credentials import ReadOnlyCredentials
from platforms.pie_engine.direct import Site, fetch_many
from platforms.pie_engine.storage import Listed

if __name__ == "__main__":
    site = Site(os.environ["URL"], "us-east-1", ReadOnlyCredentials("a", "b", None))
    [*fetch_many(site, [(Listed("x", 1, "e"), Path("x"))] * 1000)]
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_processes_end_with_a_killed_training(tmp_path: Path) -> None:
    """None stays behind with the user's credentials: the server sees their connections end."""
    (tmp_path / "killed.py").write_text(KILLED, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/b/"
        env = {**os.environ, "URL": url, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with subprocess.Popen([sys.executable, "killed.py"], cwd=tmp_path, env=env) as process:
            connection, _ = listening.accept()  # is never answered
            process.kill()
        with connection:
            connection.settimeout(20)
            while connection.recv(4096):
                pass


def test_what_is_gone_changed_large_or_refused_is_left_out(
    server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "LARGEST_BYTES", 64)
    monkeypatch.setattr(direct, "THREADS", 1)
    good = Listed(ODD, 3, server.etags[ODD])
    rows = [Listed("gone", 3, "e"), Listed(ODD, 4, good.etag), Listed(ODD, 3, "e"), Listed(ODD, 65, good.etag), good]
    fetch_part(the_site(), [(listed, tmp_path / f"{number}") for number, listed in enumerate(rows)])
    assert [path.name for path in tmp_path.iterdir()] == ["4"] and server.counts["get"] == 4
    for answer in ((503, b"busy"), (403, b"no"), (301, b"elsewhere")):
        server.counts.clear()
        server.fault = lambda key, answer=answer: answer
        fetch_part(the_site(), [(good, tmp_path / "more"), (good, tmp_path / "more")])
        assert not (tmp_path / "more").exists() and server.counts["get"] == 1
    server.stop()
    fetch_part(the_site(), [(good, tmp_path / "more")])
    server.start()
    assert not (tmp_path / "more").exists()


def test_the_patient_way_gets_what_is_left(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is busy for a while, and an object that is gone, beside objects that come at once."""
    monkeypatch.setattr(prefetch, "MANY", 2)
    store = open_store(BUCKET)
    found = list_data(store, "sets/d1/")
    listed = [*found.objects.values()]

    def most(site: Site, wanted: Sequence[Wanted]) -> Iterator[int]:
        fetch_part(site, wanted[:25])
        yield 25

    monkeypatch.setattr(prefetch, "fetch_many", most)
    del server.objects[listed[0].key]
    busy = [3]

    def fault(key: str) -> tuple[int, bytes] | None:
        busy[0] -= key == ODD
        return (503, b"") if key == ODD and busy[0] >= 0 else None

    server.fault = fault
    lines: list[str] = []
    folder = fetch(store, found, Path("folder"), lines.append)
    names = [listed.key.removeprefix("sets/d1/") for listed in listed]
    assert [(folder / name).read_bytes() for name in names[1:]] == [server.objects[each.key] for each in listed[1:]]
    assert (folder / names[0]).read_bytes() == b""
    assert lines[0].endswith(f"{listed[0].key} has vanished or changed since it was listed") and len(lines) == 2


def test_where_a_bucket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a store of one's own the bucket is in the path, at AWS in the name; a proxy is left to boto3."""
    for name, value in environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    assert the_site().url == f"http://127.0.0.1:9/{BUCKET}/" and the_site().region == "us-east-1"
    assert SECRET not in repr(the_site()) and "AKIA" not in repr(the_site())
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert the_site().url == f"https://{BUCKET}.s3.eu-west-1.amazonaws.com/" and the_site().region == "eu-west-1"
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:8")
    store = open_store(BUCKET)
    assert isinstance(store, storage.S3Store) and site_of(store.client, BUCKET) is None


@pytest.mark.slow
def test_many_objects_beside_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Print objects a second of both; all bytes are right, and the second time nothing is fetched."""
    command = [sys.executable, "-m", "tests.helpers.object_store", str(OBJECTS), str(BYTES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            for name, value in environment(process.stdout.readline().strip()).items():
                monkeypatch.setenv(name, value)
            monkeypatch.chdir(tmp_path)
            plain = plain_loop(tmp_path / "plain")
            started = time.perf_counter()
            store = open_store(BUCKET)
            found = list_data(store, "sets/d1/")
            listed = time.perf_counter() - started
            folder = fetch(store, found, Path("folder"), print)
            ours = time.perf_counter() - started
            rate = len(found.objects) / ours
            print(f"plain loop: {OBJECTS / plain:.0f} objects a second; ours: {rate:.0f}, {plain / ours:.2f} times")
            print(f"listing {OBJECTS / listed:.0f} a second", end="; ")
            started = time.perf_counter()
            for name, content in data_set(OBJECTS, BYTES).items():
                assert (folder / name.removeprefix("sets/d1/")).read_bytes() == content
            print(f"read again: {OBJECTS / (time.perf_counter() - started):.0f} objects a second")
            assert all(
                prefetch.is_whole(each, cache_path(Path("cache"), BUCKET, each)) for each in found.objects.values()
            )
        finally:
            process.kill()


def find_missing(found: prefetch.Found) -> Iterator[Listed]:
    """Yield what a second run would fetch."""
    for listed in found.objects.values():
        if not prefetch.is_whole(listed, cache_path(Path("cache"), BUCKET, listed)):
            yield listed


def plain_loop(folder: Path) -> float:
    """List and fetch all with boto3 as it comes, by as many threads; return the seconds."""
    started = time.perf_counter()
    client = boto3.client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="sets/d1/")
    keys = [row["Key"] for page in pages for row in page["Contents"]]
    for parent in {(folder / key).parent for key in keys}:
        parent.mkdir(parents=True)
    with ThreadPoolExecutor(prefetch.THREADS) as pool:
        [*pool.map(lambda key: (folder / key).write_bytes(_read(client, key)), keys)]
    assert len(keys) == OBJECTS
    return time.perf_counter() - started


def _read(client: Any, key: str) -> bytes:
    content: bytes = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return content
