"""The page of a review in a real browser: keys, grid, zoom, two people, languages, and names that are no HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.files import write_annotations
from review.answers import Judgement
from review.similarity import Similarity
from tests.helpers.browser import CHROMIUM, Browser, FakeResponse, Page, open_browser, press
from tests.helpers.records import picture, records_of
from tests.helpers.reviewing import Client, reviewing

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium and no google-chrome on this machine")

Visit = Callable[..., AbstractContextManager[Page]]
CELLS = "[...document.querySelectorAll('.cell')]"
SIDES = "[r.left, r.top, r.right, r.bottom]"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser) -> Visit:
    """Return a function that opens the page; at the end no script may have failed and no other host been asked."""

    @contextmanager
    def opened(port: int, language: str = "en-GB", width: int = 1280, height: int = 720) -> Iterator[Page]:
        address = f"http://127.0.0.1:{port}"
        with browser.page(f"{address}/", language, width, height) as page:
            page.wait(f"{CELLS}.length || !document.querySelector('#login').hidden")
            yield page
            assert page.errors == []
            assert [
                request["url"] for request in page.requests if not request["url"].startswith((address, "data:"))
            ] == []

    return opened


def made(folder: Path, count: int, size: tuple[int, int] = (40, 30), **more: Any) -> Path:
    records = [{"image_file": f"{number}.png", "width": size[0], "height": size[1], **more} for number in range(count)]
    for number, record in enumerate(records):
        picture(folder / str(record["image_file"]), size, number)
    return write_annotations(folder, records, ["tern", "heron"])


def reviewed(page: Page, text: str) -> None:
    page.wait(f"document.querySelector('#reviewed').innerText === '{text} reviewed'")


def test_hostile_names_are_text(visit: Visit, tmp_path: Path) -> None:
    name = "<b>&'\" 图.png"
    picture(tmp_path / name, (40, 30))
    record = {"image_file": name, "bboxes": [[1, 1, 9, 9]], "labels": [0], "image_label": 0, "tag": HOSTILE}
    write_annotations(tmp_path, [record], [HOSTILE])
    with reviewing(tmp_path / "annotation.json", HOSTILE) as (port, _), visit(port) as page:
        assert page.text(".caption .class") == HOSTILE
        assert page.text("#tags button") == f"1 {HOSTILE}"
        press(page, "Enter")
        page.wait("document.querySelector('#stage img')?.complete && document.querySelector('.name-tag')")
        assert page.text(".name-tag") == HOSTILE
        assert page.text("#about dd").strip() == name
        press(page, "1")
        reviewed(page, "1 of 1")
        assert page.run("document.querySelectorAll('b, [onerror], img[src=x]').length") == 0


def test_without_a_connection_nothing_is_shown_as_done(visit: Visit, tmp_path: Path) -> None:
    with reviewing(made(tmp_path, 2), "valid") as (port, desk), visit(port) as page:
        page.fake("*/api/change", [FakeResponse(0)])
        press(page, "1")
        page.wait("document.querySelector('#notice').innerText.startsWith('The server does not answer')")
        assert page.text("#reviewed") == "0 of 2 reviewed" and page.text(".caption") == ""
        assert page.run(f"{CELLS}[0].classList.contains('current')")  # back at the image that was not kept
        press(page, "1")
        reviewed(page, "1 of 2")
        assert desk.reviews.all()[0].num_reviewed == 1 and page.text(".caption") == "valid"


@pytest.mark.slow
def test_a_hundred_by_keys_alone_undo_and_finish(visit: Visit, tmp_path: Path) -> None:
    source = made(tmp_path, 101)
    with reviewing(source, "valid", "blurred") as (port, _), visit(port) as page:
        page.run("document.querySelector('#per-page').value = 100")
        page.run("document.querySelector('#per-page').dispatchEvent(new Event('change'))")
        page.wait(f"{CELLS}.length === 100")
        page.run("document.querySelector('#grid').focus()")
        press(page, "a", "1")
        reviewed(page, "100 of 101")
        press(page, "z")
        reviewed(page, "0 of 101")
        press(page, "a", "1")
        reviewed(page, "100 of 101")
        press(page, "ArrowRight", "2")  # of the one under the cursor; the next is shown
        page.wait(f"{CELLS}[1].querySelector('.caption').textContent === 'validblurred'")
        assert page.run(f"{CELLS}[2].classList.contains('current')")
        press(page, "n")  # the one that is left, on another page
        page.wait(f"{CELLS}.length === 1")
        press(page, "r")
        reviewed(page, "101 of 101")
        for _ in range(30):  # by the keyboard alone to Finish
            press(page, "Tab")
            if page.run("document.activeElement.id") == "finish":
                break
        press(page, "Enter")
        page.wait(
            "document.querySelector('#notice').innerText.startsWith('Finished: annotation_browser.json is written')"
        )
    result: Any = records_of(source.with_name("annotation_browser.json"))
    expected = {str(index): ["valid"] for index in range(100)} | {"1": ["valid", "blurred"], "100": []}
    assert {index: entries[0]["tag"] for index, entries in result.items()} == expected


@pytest.mark.slow
def test_objects_lie_where_they_belong_at_any_zoom(visit: Visit, tmp_path: Path) -> None:
    """The box's corners on the screen are the image's place plus its corners by the zoom, computed here."""
    more = {
        "bboxes": [[100, 50, 300, 250]],
        "labels": [1],
        "segments": [[[100, 50], [300, 50], [200, 250]]],
        "joints2d": [[[150, 100], [0, 0]]],
        "joints_vis": [[2, 0]],
        "predictions": {"bboxes": [[10, 10, 30, 30]], "labels": [0], "score": 0.5},
    }
    source = made(tmp_path, 1, (400, 300), **more)
    names = ["#stage img", "#stage .given .box", "#stage .proposed .box"]
    rects = f"{names}.map((name) => document.querySelector(name).getBoundingClientRect()).map((r) => {SIDES})"
    with reviewing(source, "valid") as (port, _), visit(port) as page:
        press(page, "g")
        page.wait("document.querySelector('#stage img')?.complete && document.querySelector('.given .box')")
        for keys in ("", "+++", "wd", "-"):
            press(page, *keys)
            image, box, proposed = page.run(rects)
            scale = (image[2] - image[0]) / 400
            for found, corners in ((box, [100, 50, 300, 250]), (proposed, [10, 10, 30, 30])):
                wanted = [image[number % 2] + corner * scale for number, corner in enumerate(corners)]
                # a stroke of two screen pixels lies half outside
                assert found == pytest.approx(wanted, abs=1.5), (keys, scale)
        assert scale > 2 and page.run("document.querySelectorAll('#stage .joint').length") == 1
        press(page, "b", "p")
        assert page.run("document.querySelectorAll('#stage .box').length") == 0
        press(page, "0")
        assert page.run("document.querySelector('#stage img').getBoundingClientRect().height") <= 720


@pytest.mark.slow
def test_similar_images_wrong_labels_and_doubt(visit: Visit, tmp_path: Path) -> None:
    source = made(tmp_path, 4, image_label=0, predictions={"image_label": 0, "score": 0.75})
    shown = f"{CELLS}.map((box) => Number(box.dataset.index)).join()"

    def choose(page: Page, name: str, value: str) -> None:
        page.run(f"document.querySelector('#{name}').value = '{value}'")
        page.run(f"document.querySelector('#{name}').dispatchEvent(new Event('change'))")

    with reviewing(source, "valid", order="wrong_label") as (port, desk):
        (review,) = desk.reviews.all()
        angles = np.radians([0, 60, 40, 120])
        review.add_similarity(Similarity(np.stack([np.cos(angles), np.sin(angles)], axis=1), range(4)))
        review.add_judgements({2: Judgement("heron", 0.1, 0.8, True)})
        with visit(port) as page:
            page.wait(f"{shown} === '2,0,1,3'")
            assert page.text(".contradicted .net") == "? heron"
            press(page, "ArrowRight", "ArrowRight", "m")  # record 1
            page.wait(f"{shown} === '1,2,0,3'")
            assert page.text("#notice") == "The most similar to 1.png first."
            choose(page, "order", "similarity")  # chosen anew: from the first on
            page.wait(f"{shown} === '0,2,1,3'")
            choose(page, "doubt", "0.2")
            page.wait(f"{CELLS}.length === 4")
            choose(page, "doubt", "0.3")
            page.wait("document.querySelector('#nothing').innerText === 'No image passes these filters.'")
            choose(page, "doubt", "")
            choose(page, "net", "wrong_label")
            page.wait(f"{shown} === '2'")
            press(page, "Enter")
            page.wait("document.querySelector('#about').innerText.includes('heron 0.800, its own class 0.100')")


def test_without_a_class_of_its_own_the_net_s_is_shown(visit: Visit, tmp_path: Path) -> None:
    source = made(tmp_path, 1, predictions={"image_label_name": "heron", "score": 0.4})
    with reviewing(source, "valid") as (port, _), visit(port) as page:
        assert page.text(".cell .caption") == "heron?"


@pytest.mark.slow
def test_two_people_with_leases(browser: Browser, visit: Visit, tmp_path: Path) -> None:
    source = made(tmp_path, 30)
    with reviewing(source, "valid", users={"ann": "a", "bo": "b"}) as (port, _):
        ann = Client(port)
        ann.login("ann", "a")
        ann.post("look", records=[0, 1])
        with visit(port) as page:
            page.click("#user")
            page.write("bo")
            page.click("#password")
            page.write("wrong")
            press(page, "Enter")
            page.wait("document.querySelector('#notice').innerText === 'The name or the password is wrong.'")
            page.write("b")
            press(page, "Enter")
            page.wait(f"{CELLS}.length === 24")
            assert page.text(".cell .caption") == "with ann" and page.text("#logout") == "Log out bo"
            press(page, "1")
            page.wait("document.querySelector('#notice').innerText === 'ann is working on this image.'")
            press(page, "a", "1")
            reviewed(page, "22 of 30")
            assert not any("password" in request["url"] or "=b" in request["url"] for request in page.requests)
        assert ann.refused("change", records=[5], tag="valid") == (409, "bo is working on this")


@pytest.mark.slow
def test_both_languages_and_a_small_window(visit: Visit, tmp_path: Path) -> None:
    with reviewing(made(tmp_path, 30), "清晰", "模糊") as (port, _), visit(port, "zh-CN") as page:
        assert page.text("#reviewed") == "已审核 0 / 30" and page.run("document.documentElement.lang") == "zh-CN"
        assert page.run("document.querySelector('#top').clientHeight") < 50  # the header has one line
        assert page.run("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [1280, 720]
        press(page, "?")
        assert page.text("#help h2") == "快捷键"
        page.run("document.querySelector('#help').close()")
        press(page, "l")
        assert page.text("#reviewed") == "0 of 30 reviewed"
        assert page.run("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [1280, 720]
        of_each = "map((texts) => [...Object.keys(texts), ...Object.keys(texts.helpOf)])"
        keys = f"import('./texts.js').then(({{TEXTS}}) => [TEXTS.en, TEXTS.zh].{of_each})"
        english, chinese = page.run(keys)
        assert english == chinese
        page.resize(820, 1180)  # a tablet
        page.wait("document.documentElement.scrollWidth === 820")
        page.click(".cell:nth-child(3)")
        page.click("#tags [data-tag='模糊']")
        reviewed(page, "1 of 30")
        page.click("#button-undo")
        reviewed(page, "0 of 30")
