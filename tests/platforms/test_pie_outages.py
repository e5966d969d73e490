"""Whole trainings from a store that goes away, is busy or slow, or loses an object: `output/` and the exit code."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from platforms.pie_engine import cli, hooks, storage
from platforms.pie_engine.nets import SEGMENTATION
from platforms.pie_engine.storage import PAUSES_S
from tests.helpers import object_store as object_store_module
from tests.helpers.object_store import Answer, ObjectStore, object_store
from tests.helpers.pie import request, small_nets, training_log, write_data
from tests.helpers.s3 import BUCKET, SECRET, environment

pytest.importorskip("boto3", reason="requirements-pie.txt")

OUTAGE_S = float(os.environ.get("PIE_OUTAGE_S", "1"))  # 20: as long as the pauses between the tries are made for
URL = f"s3://{BUCKET}/sets/d1/"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with small_nets(tmp_path, monkeypatch):
        yield write_data(tmp_path / "data", SEGMENTATION)


@pytest.fixture
def server(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Run a store with the data; the pauses between tries are as much shorter as the outage is."""
    monkeypatch.setattr(storage, "PAUSES_S", tuple(pause * OUTAGE_S / 20 for pause in PAUSES_S))
    files = [path for path in data.rglob("*") if path.is_file()]
    with object_store({f"sets/d1/{path.relative_to(data).as_posix()}": path.read_bytes() for path in files}) as server:
        for name, value in environment(server.url).items():
            monkeypatch.setenv(name, value)
        yield server


def trained(place: Path | str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Train two epochs; return the figures."""
    request(SEGMENTATION, place)
    assert cli.main([]) == 0
    out, err = capsys.readouterr()
    assert out == "[Process: 1/2]\n[Process: 2/2]\n" and ".pie_engine" not in err
    log = training_log()
    return {"epochs": log["epochs"], "best": log["best"]}


def refused(capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """Train from the store, which ends with a sentence before the training; return it."""
    request(SEGMENTATION, URL, **changes)
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and SECRET not in err and "Traceback" not in err and ".pie_engine" not in err
    log = training_log()
    assert (log["epochs"], log["best"]) == ([], "")
    assert not [*Path("output/files").glob("*.th"), *Path("output/picture").iterdir(), *Path().rglob("*.tmp")]
    return err


def test_an_outage_while_the_data_are_fetched(
    server: ObjectStore, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server drops all connections at its tenth object, and listens again after a while."""
    back: list[float] = []
    asked: list[float] = []

    def away() -> None:
        server.stop()
        time.sleep(OUTAGE_S)
        back.append(time.monotonic())
        server.start()

    outage = threading.Thread(target=away)

    def fault(key: str) -> Answer | None:
        asked.append(time.monotonic())
        if server.counts["get"] == 10 and outage.ident is None:
            outage.start()
        is_away = outage.ident is not None and not back  # also while it is still about to stop
        return (503, b"") if is_away else None

    expected = trained(data, capsys)
    server.fault = fault
    assert trained(URL, capsys) == expected
    assert back and min(asked) < back[0] < max(asked)  # the others were fetched once it was there again


def test_an_outage_during_an_epoch(
    server: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All data are on the disk by then; the next training lists them again, and needs the store."""
    ready = hooks.PlatformHooks.training_ready

    def away(self: hooks.PlatformHooks, trainer: Any) -> None:
        server.stop()
        ready(self, trainer)

    monkeypatch.setattr(hooks.PlatformHooks, "training_ready", away)
    trained(URL, capsys)
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,) * 4)
    assert f"s3://{BUCKET}/sets/d1/train/: Could not connect to the endpoint URL" in refused(capsys)
    server.start()


def test_a_store_that_stays_away(
    server: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone for good among the objects: a sentence, exit code 2; what came before is in the cache, each whole."""
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,) * 4)
    left = iter(range(10))
    server.fault = lambda key: (503, b"") if key.endswith(".png") and next(left, None) is None else None
    assert f"s3://{BUCKET}/sets/d1/" in refused(capsys)
    kept = [path.read_bytes() for path in Path("cache").rglob("*") if path.is_file()]
    assert kept and set(kept) <= set(server.objects.values())


def test_a_busy_and_slow_store(server: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    """Every object is refused at first, and comes late."""
    seen: set[str] = set()

    def fault(key: str) -> Answer | None:
        time.sleep(0.02)
        first = key not in seen
        seen.add(key)
        return (503, b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>") if first else None

    server.fault = fault
    trained(URL, capsys)
    assert server.counts["get 503"] == 30


def test_connections_that_are_reset(
    server: ObjectStore, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every third request, before its answer or within it."""
    received, count = object_store_module._Connection.data_received, [0]

    def resetting(self: object_store_module._Connection, request: bytes) -> None:
        count[0] += 1
        if count[0] % 3 or count[0] % 2:
            received(self, request)
        if count[0] % 3 == 0:
            reset = struct.pack("ii", 1, 0)  # a RST in place of what is not sent yet
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            self.transport.abort()

    expected = trained(data, capsys)
    monkeypatch.setattr(object_store_module._Connection, "data_received", resetting)
    assert trained(URL, capsys) == expected
    assert count[0] > 32


def test_start_weights_of_another_kind(server: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong with them is told of their address, not of their copy."""
    address = f"s3://{BUCKET}/runs/1/LinkNet34.th"
    server.objects["runs/1/LinkNet34.th"] = b"PK damaged"
    server.etags["runs/1/LinkNet34.th"] = "1"
    assert address in refused(capsys, resume_path=address)


def test_an_object_that_vanishes(server: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    """After it was listed: one of ten is a mistake, one of a hundred a bad sample that the report names."""
    key = "sets/d1/train/images/03.png"
    image = server.objects[key]

    def fault(asked: str) -> Answer | None:
        if asked == key:
            server.objects.pop(key, None)
        return None

    server.fault = fault
    err = refused(capsys)
    assert err.count(f"{URL}train/images/03.png") == 2  # in a warning, and in the mistake
    assert f"warning: {URL}train/images/03.png has vanished or changed since it was listed" in err
    shutil.rmtree("cache")
    server.objects[key] = image
    for number in range(10, 100):
        for kind in ("images", "labels"):
            name = f"sets/d1/train/{kind}/{number}.png"
            server.objects[name] = server.objects[f"sets/d1/train/{kind}/04.png"]
            server.etags[name] = server.etags[f"sets/d1/train/{kind}/04.png"]
    trained(URL, capsys)
    report = json.loads(Path("output/files/report.json").read_text(encoding="utf-8"))
    assert report["num_train"] == 99 and [Path(row["path"]).name for row in report["skipped_images"]] == ["03.png"]
