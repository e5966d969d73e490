"""What a review's server withstands: slow images and clients, links, odd annotations, files that close meanwhile."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.paths import ROOT
from data_loader import decoder_process
from datasets.files import write_annotations
from review import desk as desk_module
from review import images as images_module
from review import server as server_module
from review.desk import OpenReviews, Options
from review.review import Review
from tests.helpers import stand_in_decoder
from tests.helpers.records import picture, write_set
from tests.helpers.reviewing import Client, reviewing

BOX = {"bboxes": [[1, 1, 9, 9]], "labels": [0]}
MANY = 45  # more than the threads that work which takes long runs in


@contextmanager
def looking(source: Path, **options: Any) -> Iterator[Client]:
    with reviewing(source, "valid", **options) as (port, _):
        client = Client(port)
        client.begin()
        yield client


def test_a_head_that_does_not_end_costs_its_boxes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of an image comes from its head, which is third-party C's to read like the rest."""
    names = ["sleep.png", "1.png", "missing.png"]
    for name in names[:2]:
        picture(tmp_path / name, (64, 48))
    source = write_annotations(tmp_path, [{"image_file": name, **BOX} for name in names], ["a"])
    monkeypatch.setattr(decoder_process, "WORKER", stand_in_decoder.MODULE)
    monkeypatch.setattr(images_module, "MEASURE_S", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with looking(source) as client:
        for _ in range(2):
            found = client.post("look", records=[0, 1, 2])["records"]
            assert [(record["width"], record["height"]) for record in found] == [(0, 0), (64, 48), (0, 0)]
            assert [len(record["objects"]) for record in found] == [1, 1, 1]


def test_slow_images_and_many_logins_hold_nobody_up(tmp_path: Path) -> None:
    with reviewing(write_set(tmp_path), "valid", users={"ann": "a"}) as (port, desk):
        client, release = Client(port), threading.Event()
        client.login("ann", "a")

        def slow(*_: object) -> Any:
            release.wait(60)
            return images_module.ShownImage("image/jpeg", b"")

        desk.images.image = slow  # type: ignore[method-assign, assignment]
        desk.users.verify = slow  # type: ignore[method-assign, assignment]
        desk.attempts.wait_s = lambda *_: 0.0  # type: ignore[method-assign]
        asked = [threading.Thread(target=client.send, args=("GET", "/image/0?side=160")) for _ in range(MANY)] + [
            threading.Thread(target=Client(port).send, args=("POST", "/api/login", {})) for _ in range(MANY)
        ]
        for thread in asked:
            thread.start()
        try:
            time.sleep(0.3)
            started = time.monotonic()
            assert len(client.post("look", records=[0, 1])["records"]) == 2
            assert time.monotonic() - started < 20
        finally:
            release.set()
            for thread in asked:
                thread.join()


def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 50_000_000
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(size)
    source = write_annotations(tmp_path, [{"image_file": "a.jpg"}], [])
    monkeypatch.setattr(server_module, "LIMITS", server_module.Limits(request_timeout_s=0.5))
    with looking(source) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
            connection.sendall(f"GET /image/0 HTTP/1.1\r\nhost: localhost\r\ncookie: {client.cookie}\r\n\r\n".encode())
            time.sleep(2.5)
            received = 0
            try:
                while data := connection.recv(1 << 20):
                    received += len(data)
            except ConnectionResetError:
                pass
        assert received < size
        assert len(client.send("GET", "/image/0")[1]) == size  # who reads gets all


def test_links_to_outside_the_input_root_are_not_followed(tmp_path: Path) -> None:
    picture(tmp_path / "outside" / "secret.jpg", (64, 48))
    records = [{"image_file": name, **BOX} for name in ("link.jpg", "folder/secret.jpg", "own.jpg")]
    source = write_annotations(tmp_path / "root" / "set", records, ["a"])
    picture(source.parent / "own.jpg", (64, 48))
    (source.parent / "link.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (source.parent / "folder").symlink_to(tmp_path / "outside")
    with reviewing(None, "valid", input_root=tmp_path / "root") as (port, _):
        client = Client(port)
        client.begin()
        client.post("open", path="set/annotation.json")
        assert [client.send("GET", f"/image/{index}")[0] for index in range(3)] == [404, 404, 200]
        assert [record["width"] for record in client.post("look", records=[0, 1, 2])["records"]] == [0, 0, 64]
    with looking(source) as client:  # whoever started it named this set
        assert [client.send("GET", f"/image/{index}")[0] for index in range(3)] == [200, 200, 200]


def test_a_foreign_page_begins_no_session_and_keeps_no_decoder_busy(tmp_path: Path) -> None:
    with reviewing(write_set(tmp_path), "valid") as (port, desk):
        client = Client(port)
        for site in ("cross-site", "same-site"):
            for path in ("/api/session", "/api/list", "/image/0?side=160", "/page.js"):
                assert client.send("GET", path, headers={"sec-fetch-site": site})[0] == 403, path
            assert client.send("GET", "/", headers={"sec-fetch-site": site})[0] == 200  # a link to the page
        assert not client.cookie and not desk.sessions._of
        for site in ("same-origin", "none"):
            assert client.send("GET", "/api/session", headers={"sec-fetch-site": site})[0] == 200


def test_what_nobody_has_checked_breaks_no_page(tmp_path: Path) -> None:
    skeleton = [[0, 1], [0], "01", [0, float("nan")], [0, "length"], [True, 1], None]
    (tmp_path / "meta.json").write_text(json.dumps({"meta": {"skeleton": skeleton}}), encoding="utf-8")
    source = tmp_path / "annotation.json"
    record = {"image_file": "a.png", "width": 20, "height": 20, **BOX, "joints_vis": [[float("nan")]]}
    source.write_text(json.dumps([{**record, "predictions": record}]), encoding="utf-8")
    with looking(source) as client:
        assert client.begin()["skeleton"] == [[0, 1]]
        found = client.post("look", records=[0])["records"][0]
        assert found["objects"][0]["visible"] == [] and found["net"]["objects"][0]["visible"] == []


def test_a_skeleton_that_is_no_list_is_none(tmp_path: Path) -> None:
    source = write_set(tmp_path)
    source.with_name("meta.json").write_text('{"meta": {"skeleton": 5}}', encoding="utf-8")
    with looking(source) as client:
        assert client.begin()["skeleton"] == []


def test_a_number_that_is_none_is_no_image(tmp_path: Path) -> None:
    with looking(write_set(tmp_path)) as client:
        for number in ("9" * 5000, "9" * 20, "1e3", "-1", "0%00", "x", "%D9%A3%D9%A3", "0/..", "0%2f..%2f0"):
            assert client.send("GET", f"/image/{number}")[0] == 404, number
        assert client.send("GET", "/image/%30")[0] == 200
        for method in ("PUT", "DELETE", "TRACE", "OPTIONS", "PATCH"):
            assert client.send(method, "/image/0")[0] in (403, 405), method
        assert client.send("HEAD", "/image/0")[:2] == (200, b"")


def test_no_refusal_names_the_servers_folders(tmp_path: Path) -> None:
    for name, content in (("a.json", '[{"bboxes": 1}]'), ("b.json", "["), ("c.json", '{"a": 1}'), ("d.json", "[]")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    write_set(tmp_path / "e")
    (tmp_path / "e" / "meta.json").write_text("[", encoding="utf-8")
    (tmp_path / "e" / "annotation_browser.log.jsonl").write_text("x\n", encoding="utf-8")
    with reviewing(None, "valid", input_root=tmp_path) as (port, _):
        client = Client(port)
        client.begin()
        for path in ("a.json", "b.json", "c.json", "d.json", "e/annotation.json"):
            status, message = client.refused("open", path=path)
            assert status == 422 and str(tmp_path) not in message, message
        assert client.refused("open", path="d.json")[1] == "d.json: no record in it"


def test_after_finish_nothing_more_counts(tmp_path: Path) -> None:
    with reviewing(write_set(tmp_path), "valid") as (port, desk):
        desk.finish = lambda: None  # the server goes on, as it does for a moment
        client = Client(port)
        client.begin()
        client.post("change", records=list(range(6)), tag="valid")
        client.post("finish")
        for name in ("change", "undo", "finish"):
            assert client.refused(name, records=[0], tag="valid") == (410, "the review is finished")


def test_a_file_that_others_close_while_it_is_opened_is_opened_again(tmp_path: Path) -> None:
    write_set(tmp_path / "a")
    with reviewing(None, "valid", input_root=tmp_path) as (port, desk):
        client = Client(port)
        client.begin()
        client.post("open", path="a/annotation.json")
        really_opened, closed = desk.opened, []

        def close(source: Path) -> None:
            desk.reviews._open.pop(source)[1].close()
            closed.append(source)

        def opened(source: Path) -> Review:
            review = really_opened(source)
            if len(closed) < 2:
                close(source)
            return review

        close(desk.reviews.all()[0].annotations.path)
        desk.opened = opened  # type: ignore[method-assign]
        assert client.post("change", records=[0], tag="valid")["reviewed"] == 1
        assert len(closed) == 2


def test_a_file_is_not_opened_anew_before_its_lock_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two locks of one process are one: the end of the first would end the second."""
    monkeypatch.setattr(desk_module, "MOST_OPEN", 1)
    sources = [write_annotations(tmp_path / name, [{"image_file": "a.png"}], []) for name in "ab"]
    with OpenReviews(Options(("valid",), feedback=True)) as reviews:
        first = reviews.get(sources[0])
        reviews.get(sources[1])
        again = []
        monkeypatch.setattr(Review, "write_result", lambda review: again.append(reviews.get(sources[0])))
        reviews.close_oldest()
        assert again == [first] and reviews.find(sources[0]) is None
        monkeypatch.undo()
        assert reviews.get(sources[0]) is not first
