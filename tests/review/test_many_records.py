"""A review of many records through the HTTP interface; `REVIEW_RECORDS=100000 pytest -s -m slow` measures it."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from datasets.files import write_annotations
from tests.helpers.reviewing import Client, started

RECORDS = int(os.environ.get("REVIEW_RECORDS", "5000"))
CLASSES = [f"class {number}" for number in range(10)]
PAGE = list(range(100))
QUERIES = ("", "label=3", "reviewed=no", "reviewed=yes", "tag=valid", "tag=-", "net=contradicts", "net=set_aside")
ORDERS = ("order=class", "order=doubt", "order=doubt&reviewed=no", "name=99")


def made(folder: Path) -> Path:
    """Write records with two boxes and a prediction each, of images that are nowhere."""
    draw = random.Random(0)

    def record(number: int) -> dict[str, Any]:
        corners = [(draw.uniform(0, 300), draw.uniform(0, 200)) for _ in range(2)]
        label, score = draw.randrange(10), draw.random()
        decision = "set_aside" if score < 0.2 else "accept"
        return {
            **{"image_file": f"images/{number:06}.jpg", "width": 640, "height": 480, "image_label": label},
            "bboxes": [[x, y, x + draw.uniform(1, 300), y + draw.uniform(1, 200)] for x, y in corners],
            "labels": [draw.randrange(10), draw.randrange(10)],
            "predictions": {"image_label": draw.randrange(10), "score": score, "decision": decision},
        }

    return write_annotations(folder, [record(number) for number in range(RECORDS)], CLASSES)


def peak_mb(process_id: int) -> int:
    lines = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) // 1000


@pytest.mark.slow
def test_many_records(tmp_path: Path) -> None:
    source = made(tmp_path)
    times: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        before = time.perf_counter()
        found = work()
        times[name] = time.perf_counter() - before
        return found

    def first_page(client: Client) -> int:
        client.get("/")
        found = client.get("/api/list?")["records"]
        return len(found) * len(client.post("look", records=found[:100])["records"])

    before = time.perf_counter()
    with started(source, "--feedback", "--tags", "valid,blurred") as (process, client):
        times["start"] = time.perf_counter() - before
        assert timed("first page", lambda: first_page(client)) == RECORDS * 100
        assert timed("once more", lambda: first_page(client)) == RECORDS * 100
        assert timed("100 presses", lambda: client.post("change", records=PAGE, tag="valid"))["reviewed"] == 100
        found = {query: timed(query, lambda query=query: client.get(f"/api/list?{query}")) for query in QUERIES}
        ordered = {query: timed(query, lambda query=query: client.get(f"/api/list?{query}")) for query in ORDERS}
        memory = peak_mb(process.pid)
    lengths = {query: len(answer["records"]) for query, answer in {**found, **ordered}.items()}
    assert lengths["tag=valid"] == lengths["reviewed=yes"] == 100 and lengths["tag=-"] == 0
    assert lengths["reviewed=no"] == lengths["order=doubt&reviewed=no"] == RECORDS - 100
    assert lengths[""] == lengths["order=class"] == lengths["order=doubt"] == RECORDS
    size_mb = source.stat().st_size / 1e6
    print(f"\n{RECORDS:,} records, {size_mb:.0f} MB; memory at most {memory:,} MB")
    for name, seconds in times.items():
        print(f"  {name or 'the whole list':<26} {seconds:6.3f} s")
