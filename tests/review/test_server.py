"""The server of a review, by its HTTP interface: what it shows, changes, refuses and withstands."""

from __future__ import annotations

import errno
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datasets.files import read_annotations, write_annotations
from datasets.filters import TagChoice, filter_by_tags
from datasets.outcome import Outcome
from review import journal as journal_module
from review import server as server_module
from review.answers import Judgement
from tests.helpers.records import picture, records_of, write_set
from tests.helpers.reviewing import Client, reviewing

USERS = {"ann": "ann's password", "bo": "bo's password"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


@pytest.fixture
def client(source: Path) -> Iterator[Client]:
    with reviewing(source, "valid", "blurred") as (port, _):
        client = Client(port)
        client.begin()
        yield client


@pytest.fixture
def people(source: Path) -> Iterator[tuple[Client, Client]]:
    with reviewing(source, "valid", "blurred", users=USERS) as (port, _):
        ann, bo = Client(port), Client(port)
        ann.login("ann", USERS["ann"])
        bo.login("bo", USERS["bo"])
        yield ann, bo


def listed(client: Client, query: str = "") -> list[int]:
    found: list[int] = client.get(f"/api/list?{query}")["records"]
    return found


# --- Looking


def test_the_session_says_what_is_reviewed(client: Client) -> None:
    found = client.begin()
    assert {key: found[key] for key in ("name", "total", "reviewed", "tags", "classes", "can_finish", "user")} == {
        **{"name": "annotation.json", "total": 6, "reviewed": 0, "tags": ["valid", "blurred"]},
        **{"classes": ["heron", "tern", "鹭"], "can_finish": True, "user": ""},
    }


def test_a_record_is_shown_with_its_objects(client: Client) -> None:
    found = client.post("look", records=[2, 3])["records"]
    assert [record["file"] for record in found] == ["b/#1&2+3?.jpg", "joints.jpg"]
    holes, second = found[0]["objects"]
    assert holes["name"] == "鹭" and holes["box"] == [0, 0, 1e-3, 48] and len(holes["rings"]) == 2
    assert second["rings"] == [] and found[0]["label"] == "鹭"
    joints = found[1]["objects"][0]
    assert joints["joints"] == [[5, 6], [0, 0], [7.5, 8]] and joints["visible"] == [2, 0, 1]
    assert found[1]["tags"] is None and found[1]["net"] is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("label=1", [0, 1, 3]),
        ("label=0", [2, 4]),  # an object of it, and an image of it
        ("label=-1", [5]),
        ("name=B/", [1, 2]),
        ("order=class", [4, 0, 1, 3, 2, 5]),
        ("label=1&name=joints", [3]),
        ("label=7", []),
    ],
)
def test_filters_and_orders(client: Client, query: str, expected: list[int]) -> None:
    assert listed(client, query) == expected


def test_filters_by_what_was_pressed(client: Client) -> None:
    client.post("change", records=[0, 1], tag="valid")
    client.post("change", records=[1], tag="blurred")
    client.post("change", records=[4], tag="")
    assert listed(client, "tag=valid") == [0, 1] and listed(client, "tag=blurred") == [1]
    assert listed(client, "tag=-") == [4]
    assert listed(client, "reviewed=yes") == [0, 1, 4] and listed(client, "reviewed=no") == [2, 3, 5]


def with_answers(tmp_path: Path) -> Path:
    answers: list[dict[str, Any]] = [
        {"image_label": 0, "image_label_name": "a", "score": 0.6},
        {"image_label": 1, "image_label_name": "b", "score": 0.9},  # the surest contradiction
        {"image_label": 1, "score": 0.7},  # a contradiction, by the index alone
        {},
        {"image_label": 0, "score": 0.9, "uncertainty": 0.8, "decision": "set_aside"},  # calibrated: not 1 - score
        {"image_label": 0, "score": "high", "bboxes": "no boxes", "decision": 3},  # not checked by anybody
        {"score": 0.95, "bboxes": [[1, 1, 9, 9]], "labels": [1], "label_names": ["b"]},
    ]
    records = [
        {"image_file": f"{number}.png", "image_label": 0, "predictions": answer}
        for number, answer in enumerate(answers)
    ]
    for record in records:
        picture(tmp_path / str(record["image_file"]), (64, 48))
    return write_annotations(tmp_path, records, ["a", "b"])


def test_doubt_and_contradictions_come_first(tmp_path: Path) -> None:
    with reviewing(with_answers(tmp_path)) as (port, _):
        client = Client(port)
        assert client.begin()["has_answers"]
        assert listed(client, "order=doubt") == [1, 2, 4, 0, 6, 5, 3]
        assert listed(client, "net=contradicts") == [1, 2] and listed(client, "net=set_aside") == [4]
        found = client.post("look", records=[1, 3, 4, 5, 6])["records"]
        nets = [record["net"] for record in found]
        assert nets[0] == {"label": "b", "score": 0.9, "doubt": pytest.approx(0.1), "decision": ""} | {
            "contradicts": True,
            "objects": [],
        }
        assert nets[1] is None and nets[2]["doubt"] == 0.8 and nets[2]["decision"] == "set_aside"
        assert nets[3]["score"] is None and nets[3]["objects"] == []
        assert nets[4]["objects"][0]["box"] == [1, 1, 9, 9] and found[4]["width"] == 64  # read from the image


def test_doubt_from_a_value_on(tmp_path: Path) -> None:
    """By the answers above the doubts are 0.4, 0.1, 0.3, none, 0.8, none and 0.05; "high" is no score."""
    with reviewing(with_answers(tmp_path)) as (port, _):
        client = Client(port)
        client.begin()
        assert listed(client, "doubt=0.3&order=doubt") == [2, 4, 0]
        assert listed(client, "doubt=0.8") == [4] and listed(client, "doubt=1") == []
        assert listed(client, "doubt=0") == [0, 1, 2, 4, 5, 6]


def test_orders_that_were_not_asked_for_are_the_file_s(client: Client) -> None:
    assert client.begin()["orders"] == ["file", "class"]
    assert listed(client, "order=similarity&near=3") == listed(client, "order=wrong_label") == list(range(6))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("order=size", "order must be one of doubt, class, similarity, wrong_label"),
        ("label=a", "label must be a whole number"),
        ("near=1.5", "near must be a whole number"),
        ("doubt=2", "doubt must be a number from 0 to 1"),
        ("doubt=nan", "doubt must be a number from 0 to 1"),
        ("doubt=much", "doubt must be a number from 0 to 1"),
    ],
)
def test_queries_that_are_mistakes(client: Client, query: str, message: str) -> None:
    status, content, _ = client.send("GET", f"/api/list?{query}")
    assert (status, content["msg"]) == (400, message)


def test_labels_that_are_probably_wrong(source: Path) -> None:
    with reviewing(source) as (port, desk):
        (review,) = desk.reviews.all()
        judged = {4: Judgement("tern", 0.2, 0.7, True), 2: Judgement("鹭", 0.9, 0.9, False)}
        review.add_judgements(judged)
        client = Client(port)
        assert client.begin()["orders"] == ["file", "class", "wrong_label"]
        assert listed(client, "order=wrong_label") == [4, 2, 0, 1, 3, 5] and listed(client, "net=wrong_label") == [4]
        found = client.post("look", records=[4, 5])["records"]
        assert found[0]["judged"] == {"predicted": "tern", "own": 0.2, "other": 0.7, "is_wrong": True}
        assert found[1]["judged"] is None


def test_images_small_and_whole(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", (900, 300))
    picture(tmp_path / "b.png", (40, 20))
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(tmp_path / "turned.png", (40, 20), exif=turned)
    picture(tmp_path / "c.tif", (40, 20))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    names = ["a.jpg", "b.png", "turned.png", "c.tif", "bad.jpg", "missing.jpg", ""]
    write_annotations(tmp_path, [{"image_file": name} for name in names], [])
    with reviewing(tmp_path / "annotation.json") as (port, _):
        client = Client(port)
        client.begin()
        for index, side, size, media_type in (
            (0, 320, (320, 107), "image/jpeg"),
            (0, 0, (900, 300), "image/jpeg"),
            (1, 160, (40, 20), "image/jpeg"),
            (1, 0, (40, 20), "image/png"),
            (2, 0, (20, 40), "image/jpeg"),  # upright
            (3, 0, (40, 20), "image/jpeg"),
        ):
            status, data, headers = client.send("GET", f"/image/{index}" + (f"?side={side}" if side else ""))
            assert (status, headers["content-type"]) == (200, media_type)
            (tmp_path / "shown").write_bytes(data)
            with Image.open(tmp_path / "shown") as shown:
                assert shown.size == size
            if size == (900, 300) or media_type == "image/png":
                assert data == (tmp_path / names[index]).read_bytes()
        again = client.send(
            "GET", "/image/0?side=320", headers={"if-none-match": client.send("GET", "/image/0?side=320")[2]["etag"]}
        )
        assert again[0] == 304 and again[1] == b""
        status, content, _ = client.send("GET", "/image/4?side=160")
        assert status == 422 and "image" in content["msg"]
        assert client.send("GET", "/image/5")[:2] == (422, {"code": 422, "msg": "no such file or directory"})
        assert client.send("GET", "/image/6")[0] == 404  # an address is not fetched
        for path in (
            "/image/7",
            "/image/-1",
            "/image/0?side=99999",
            "/image/../annotation.json",
            "/image/%2e%2e%2fmeta.json",
        ):
            assert client.send("GET", path)[0] == 404, path


# --- Changing


def test_tags_of_many_undo_and_the_result(client: Client, source: Path) -> None:
    found = client.post("change", records=[0, 1, 2, 3], tag="valid")
    assert found["reviewed"] == 4 and found["marks"]["3"]["tags"] == ["valid"]
    assert client.post("change", records=[0], tag="blurred")["marks"]["0"]["tags"] == ["valid", "blurred"]
    assert client.post("undo")["marks"]["0"]["tags"] == ["valid"]
    assert client.post("change", records=[1], tag="valid", on=False)["marks"]["1"]["tags"] == []
    assert client.post("change", records=[2], tag="", on=False)["marks"]["2"]["tags"] is None
    assert client.refused("finish") == (409, "3 images are not reviewed yet")
    client.post("change", records=[2, 4, 5], tag="")
    assert client.post("finish") == {"path": "annotation_browser.json"}
    result: Any = records_of(source.with_name("annotation_browser.json"))
    assert {index: entries[0]["tag"] for index, entries in result.items()} == {
        **{"0": ["valid"], "1": [], "2": [], "3": ["valid"], "4": [], "5": []}
    }
    assert result["2"][0]["title"] == result["2"][0]["data"] == "b/#1&2+3?.jpg" and result["2"][0]["id"] == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", result["2"][0]["time"])
    kept = filter_by_tags(
        read_annotations(source), source.with_name("annotation_browser.json"), TagChoice(("valid",)), Outcome()
    )
    assert [record["image_file"] for record in kept] == ["池塘/照 片 1.jpg", "joints.jpg"]


def test_undo_gives_back_what_was_there(client: Client) -> None:
    client.post("change", records=[0], tag="valid")
    client.post("change", records=[0, 1], tag="blurred")
    found = client.post("undo")
    assert found["marks"]["0"]["tags"] == ["valid"] and found["marks"]["1"]["tags"] is None
    assert client.post("undo")["reviewed"] == 0
    assert client.post("undo")["marks"] == {}


def test_without_feedback_and_tags_it_is_only_looked_at(source: Path) -> None:
    with reviewing(source, feedback=False) as (port, _):
        client = Client(port)
        assert not client.begin()["can_mark"]
        assert (
            client.refused("change", records=[0])[0] == client.refused("undo")[0] == client.refused("finish")[0] == 403
        )
    assert sorted(path.name for path in source.parent.glob("*.json*")) == ["annotation.json", "meta.json"]


def test_tags_without_feedback_are_kept_for_a_later_start(source: Path) -> None:
    with reviewing(source, "valid", feedback=False) as (port, _):
        client = Client(port)
        client.begin()
        client.post("change", records=[3], tag="valid")
        assert client.refused("finish") == (403, "start with --feedback to write a result")
    with reviewing(source, "valid") as (port, _):
        client = Client(port)
        assert client.begin()["reviewed"] == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"records": []}, "records must be a list of 1 to 100 records"),
        ({"records": list(range(101))}, "records must be a list of 1 to 100 records"),
        ({"records": [6]}, "a record must be a whole number from 0 to 5"),
        ({"records": [-1]}, "a record must be a whole number from 0 to 5"),
        ({"records": [True]}, "a record must be a whole number from 0 to 5"),
        ({"records": ["0"]}, "a record must be a whole number from 0 to 5"),
        ({"records": [0], "tag": "other"}, '"other" is none of the tags'),
        ({"records": [0], "tag": 1}, "tag must be text of at most 256 letters"),
        ({"records": [0], "on": 1}, "on must be true or false"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(
    client: Client, body: dict[str, Any], message: str
) -> None:
    assert client.refused("change", **body) == (400, message)
    assert client.begin()["reviewed"] == 0


@pytest.mark.parametrize("query", ["order=size", "reviewed=maybe", "net=1", "label=x", "label=99999999999"])
def test_filters_that_do_not_exist_are_refused(client: Client, query: str) -> None:
    assert client.send("GET", f"/api/list?{query}")[0] == 400


def test_a_full_disk_is_told_and_nothing_counts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    client.post("change", records=[0], tag="valid")
    with monkeypatch.context() as patched:
        patched.setattr(journal_module.os, "fsync", full)
        assert client.refused("change", records=[1], tag="valid") == (
            507,
            "it could not be written: No space left on device",
        )
    assert client.begin()["reviewed"] == 1
    assert client.post("change", records=[2], tag="valid")["reviewed"] == 2


# --- People


def test_two_people_at_once_have_each_their_own(people: tuple[Client, Client]) -> None:
    ann, bo = people
    assert [record["holder"] for record in ann.post("look", records=[0, 1])["records"]] == ["", ""]
    assert [record["holder"] for record in bo.post("look", records=[1, 2])["records"]] == ["ann", ""]
    assert bo.refused("change", records=[1, 2], tag="valid") == (409, "ann is working on this")
    assert bo.post("change", records=[2], tag="valid")["marks"]["2"]["user"] == "bo"
    assert listed(ann, "reviewed=no") == [0, 1, 3, 4, 5] and listed(bo, "reviewed=no") == [3, 4, 5]
    ann.post("look", records=[5])
    assert bo.post("change", records=[1], tag="valid")["reviewed"] == 2
    assert ann.post("undo")["marks"] == {}  # nothing of hers
    ann.post("logout")
    assert bo.post("look", records=[5])["records"][0]["holder"] == ""


def test_without_logging_in_nothing_is_shown(source: Path) -> None:
    with reviewing(source, "valid", users=USERS) as (port, _):
        client = Client(port)
        assert client.begin() == {"needs_login": True}
        assert not client.cookie
        for method, path in (("GET", "/api/list"), ("GET", "/image/0"), ("POST", "/api/look"), ("POST", "/api/change")):
            assert client.send(method, path, {"records": [0]} if method == "POST" else None)[0] == 401, path
        for path in ("/", "/page.js", "/drawing.js", "/texts.js", "/page.css"):
            status, content, _ = client.send("GET", path)
            assert status == 200 and b"heron" not in content


def test_ten_tries_a_minute_at_a_password(source: Path) -> None:
    with reviewing(source, "valid", users=USERS) as (port, desk):
        client = Client(port)
        desk.users.verify = lambda name, password: password == USERS.get(name)  # type: ignore[method-assign]
        for _ in range(10):
            assert client.refused("login", user="ann", password="a guess") == (401, "the name or the password is wrong")
        status, _, headers = client.send("POST", "/api/login", {"user": "ann", "password": USERS["ann"]})
        assert status == 429 and 50 <= int(headers["retry-after"]) <= 60
        assert not client.cookie


def test_a_session_of_another_is_not_guessed_or_mixed(people: tuple[Client, Client]) -> None:
    ann, bo = people
    assert ann.cookie != bo.cookie and ann.token != bo.token
    own, ann.token = ann.token, bo.token
    assert ann.refused("change", records=[0], tag="valid")[0] == 403  # the token of another session
    ann.token = own
    _, _, headers = ann.send("POST", "/api/login", {"user": "ann", "password": USERS["ann"]})
    for word in ("HttpOnly", "SameSite=strict", "Path=/"):
        assert word in headers["set-cookie"]
    old = ann.cookie
    ann.begin()
    ann.post("logout")
    ann.cookie = old
    assert ann.send("GET", "/api/list")[0] == 401


# --- Attacks


def test_pages_of_other_origins_change_nothing(client: Client) -> None:
    body = {"records": [0], "tag": "valid"}
    own = f"http://127.0.0.1:{client.port}"
    for headers in (
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:9", "sec-fetch-site": "same-site"},  # a page on another port: it has the cookie
        {"origin": "http://127.0.0.1:9"},
        {"origin": "null"},
    ):
        status, content, _ = client.send("POST", "/api/change", body, headers)
        assert status == 403 and content["msg"] == "a page of another origin may not send this"
    for headers in ({"x-review-token": ""}, {"x-review-token": "wrong"}):
        assert client.send("POST", "/api/change", body, {"origin": own, **headers})[0] == 403
    form = {"content-type": "text/plain"}  # what a form of any page can send
    assert client.send("POST", "/api/change", json.dumps(body).encode(), form)[0] == 415
    assert client.begin()["reviewed"] == 0
    assert client.send("POST", "/api/change", body, {"origin": own, "sec-fetch-site": "same-origin"})[0] == 200


def test_names_made_to_point_here_are_refused(client: Client) -> None:
    status, content, _ = client.send("GET", "/api/session", headers={"host": "evil.example"})
    added = "--allowed-hosts, or allowed_hosts in a script's config, adds one"
    assert status == 421 and content["msg"] == f"this page is not called by that name; {added}"


def test_every_response_has_the_security_headers(client: Client) -> None:
    for path in ("/", "/page.js", "/api/session", "/image/0?side=160", "/image/0", "/nothing", "/api/change"):
        _, _, headers = client.send("GET", path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin" and headers["cache-control"] == "no-cache"


def test_the_page_names_no_other_host(client: Client) -> None:
    for path in ("/", "/page.js", "/drawing.js", "/texts.js", "/page.css"):
        text = client.send("GET", path)[1].decode()
        assert (
            re.findall(r"(?:https?:)?//[a-z][\w.-]*\.\w+[^\s'\"]*", text.replace("http://www.w3.org/2000/svg", ""))
            == []
        ), path


def test_bodies_have_a_limit(client: Client) -> None:
    large = b'{"records": [' + b"0," * 25_000_000 + b"0]}"
    started = time.monotonic()
    try:
        status = client.send("POST", "/api/change", large)[0]
    except (BrokenPipeError, ConnectionResetError):  # it is refused before all of it is sent
        status = 413
    assert status == 413 and time.monotonic() - started < 10
    deep = b'{"records": ' + b"[" * 8000 + b"]" * 8000 + b"}"
    assert client.send("POST", "/api/change", deep)[0] == 400
    for body in (b"", b"[1]", b'{"records": [0]', b"\xff"):
        assert client.send("POST", "/api/change", body)[0] == 400
    assert client.post("change", records=[0])["reviewed"] == 1


def test_a_slow_client_holds_nobody_up(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = server_module.Limits(header_timeout_s=0.3, request_timeout_s=0.3)
    monkeypatch.setattr(server_module, "LIMITS", limits)
    with reviewing(source, "valid") as (port, _):
        client = Client(port)
        client.begin()
        slow = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2)]
        slow[0].sendall(b"GET / HT")
        slow[1].sendall(
            b"POST /api/login HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 50\r\n\r\n{"
        )
        assert client.post("change", records=[0])["reviewed"] == 1
        for connection in slow:
            while connection.recv(65536):  # until it is closed
                pass
            connection.close()


# --- Files named at the page


def test_a_file_below_the_root_is_opened(tmp_path: Path) -> None:
    root = tmp_path / "root"
    first, second = write_set(root / "a"), write_set(root / "b")
    write_set(tmp_path / "outside")
    (root / "link.json").symlink_to(tmp_path / "outside" / "annotation.json")
    (root / "not.txt").write_text("[]", encoding="utf-8")
    (root / "broken.json").write_text('[{"bboxes": 1}]', encoding="utf-8")
    with reviewing(None, "valid", input_root=root) as (port, _):
        client = Client(port)
        assert client.begin()["name"] == ""
        assert client.refused("look", records=[0]) == (409, "no file is open")
        for path in (
            "../outside/annotation.json",
            str(tmp_path / "outside" / "annotation.json"),
            "link.json",
            "not.txt",
            "a",
            "",
            "x.json",
            "a\0b.json",
        ):
            assert client.refused("open", path=path)[0] == 404, path
        assert client.refused("open", path="broken.json")[0] == 422
        assert client.post("open", path="a/annotation.json")["total"] == 6
        client.post("change", records=[0], tag="valid")
        other = Client(port)
        other.begin()
        assert other.post("open", path="b/annotation.json")["reviewed"] == 0
        assert client.begin()["reviewed"] == 1  # each session has its own file
        client.post("change", records=[1, 2, 3, 4, 5])
        assert client.post("finish") == {"path": "annotation_browser.json"}
        assert client.begin()["reviewed"] == 6  # the server goes on
    assert (
        first.with_name("annotation_browser.json").exists() and not second.with_name("annotation_browser.json").exists()
    )


def test_of_many_files_the_one_longest_unused_is_closed_and_nothing_is_lost(tmp_path: Path) -> None:
    for name in "abcdef":
        write_annotations(tmp_path / name, [{"image_file": f"{name}.png"}], [])
    with reviewing(None, "valid", input_root=tmp_path) as (port, desk):
        client = Client(port)
        client.begin()
        for name in "abcdef":
            client.post("open", path=f"{name}/annotation.json")
            client.post("change", records=[0], tag="valid")
        assert [review.annotations.folder.name for review in desk.reviews.all()] == ["c", "d", "e", "f"]
        assert (tmp_path / "a" / "annotation_browser.json").exists()
        assert client.post("open", path="a/annotation.json")["reviewed"] == 1
        assert [review.annotations.folder.name for review in desk.reviews.all()] == ["d", "e", "f", "a"]
        assert client.post("undo")["marks"]["0"]["tags"] is None


def test_without_user_input_no_file_is_opened(client: Client) -> None:
    assert client.refused("open", path="annotation.json")[0] == 403
