"""The labelling page in a real browser: drawn to the pixel at any zoom, by mouse, fingers and keys, with undo."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from datasets.files import write_annotations
from review.label_task import LabelTask
from tests.helpers.browser import CHROMIUM, Browser, FakeResponse, Page, open_browser, press
from tests.helpers.records import picture, records_of
from tests.helpers.reviewing import Client, reviewing

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium and no google-chrome on this machine")

Point = tuple[float, float]
CLASSES = ("heron", "tern", "gull")
SIZE = (400, 300)
SHIFT = 8  # DevTools' bit of the key
HOSTILE = "<img src=x onerror=alert(1)>"
ORIGIN = "document.querySelector('#stage img').getBoundingClientRect()"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


class Labelling:
    """A page on which a set is labelled, and what its server has kept."""

    def __init__(self, page: Page, review: Any, target: Path) -> None:
        self.page, self.review, self.target = page, review, target

    def at(self, x: float, y: float) -> Point:
        """Return where a point of the image is on the screen."""
        left, top, scale = self.page.run(f"(({{left, top, width}}) => [left, top, width / {SIZE[0]}])({ORIGIN})")
        return left + x * scale, top + y * scale

    def drag(self, start: Point, *ways: Point, **more: Any) -> None:
        """Press the mouse at a point of the image, move it on, and release it."""
        places = [self.at(*point) for point in (start, *ways)]
        self.page.mouse("mousePressed", *places[0], **more)
        for place in places[1:]:
            self.page.mouse("mouseMoved", *place, **more)
        self.page.mouse("mouseReleased", *places[-1], **more)

    def click(self, *points: Point, **more: Any) -> None:
        for point in points:
            self.drag(point, **more)

    def shown(self, index: int) -> None:
        """Wait until an image is shown."""
        is_there = f"document.querySelector('#stage img')?.src.endsWith('image/{index}')"
        self.page.wait(f"document.querySelector('#single').ariaBusy === 'false' && {is_there}")

    def labelled(self, count: int) -> None:
        """Wait until as many images are labelled."""
        self.page.wait(f"document.querySelector('#reviewed').innerText.startsWith('{count} of ')")

    def kept(self, index: int) -> Any:
        """Return what is kept of an image."""
        labels = self.review.marks.of[index].labels
        return labels.get("objects", labels.get("label"))


Visit = Callable[..., AbstractContextManager[Labelling]]


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Visit:
    """Return a function that opens the page on three images; no script may fail, and no other host be asked."""

    @contextmanager
    def opened(
        kind: str = "RECT", records: Sequence[dict[str, Any]] = ({}, {}, {}), *, skeleton: Any = (), **more: Any
    ) -> Iterator[Labelling]:
        target = tmp_path / "out"
        task = LabelTask(kind, more.pop("classes", CLASSES), target)
        source = made(tmp_path / "set", records, task.category, skeleton)
        with reviewing(source, task=task) as (port, desk):
            address = f"http://127.0.0.1:{port}"
            with browser.page(f"{address}/", more.get("language", "en-GB"), 1280, 720) as page:
                found = Labelling(page, desk.reviews.all()[0], target)
                found.shown(0)
                yield found
                assert page.errors == []
                urls = [request["url"] for request in page.requests]
                assert [url for url in urls if not url.startswith((address, "data:"))] == []

    return opened


def made(folder: Path, records: Sequence[dict[str, Any]], classes: Sequence[str], skeleton: Any) -> Path:
    written = []
    for number, record in enumerate(records):
        picture(folder / f"{number}.png", SIZE, number)
        written.append({"image_file": f"{number}.png", "width": SIZE[0], "height": SIZE[1], **record})
    return write_annotations(folder, written, classes, {"meta": {"skeleton": [list(pair) for pair in skeleton]}})


def boxes(found: Any) -> list[tuple[int, list[float]]]:
    return [(each["label"], each["box"]) for each in found]


def test_boxes_are_drawn_and_edited_to_the_pixel_at_any_zoom(visit: Visit) -> None:
    with visit() as labelling:
        page = labelling.page
        labelling.drag((50, 40), (90, 60), (150, 140))
        press(page, "2")  # the class of what is selected
        press(page, "+", "+", "+")  # four screen pixels for one of the image
        labelling.drag((180, 130), (230, 170))  # of the class that was last chosen
        labelling.drag((230, 170), (240, 180))  # its corner
        labelling.drag((180, 155), (170, 155))  # its left side
        press(page, "0")
        labelling.drag((100, 140), (110, 160))  # the first by its border: all of it
        press(page, "Enter")
        labelling.labelled(1)
        assert boxes(labelling.kept(0)) == [(1, [60, 60, 160, 160]), (1, [170, 130, 240, 180])]
        labelling.shown(1)
        labelling.drag((380, 280), (500, 500))  # ends at the image's border
        labelling.drag((20, 20), (21, 20))  # a click draws nothing
        press(page, "Enter")
        labelling.labelled(2)
        assert boxes(labelling.kept(1)) == [(1, [380, 280, 400, 300])]


def test_polygons_are_drawn_and_edited_to_the_pixel(visit: Visit) -> None:
    with visit("POLYGON") as labelling:
        page = labelling.page
        labelling.click((50, 50), (150, 50), (150, 150))
        press(page, "Backspace")  # the last corner
        labelling.click((160, 140), (60, 130), (50, 50))  # the first closes it
        labelling.drag((160, 140), (170, 150))  # a corner
        labelling.drag((100, 50), (100, 30))  # the middle of a side is a new one
        press(page, "3")
        labelling.click((250, 50), (350, 50))
        press(page, "Enter")
        assert page.text("#notice") == "A polygon has at least three corners."
        labelling.click((300, 90))
        press(page, "Enter", "Enter")  # closed, and kept
        labelling.labelled(1)
        first, second = labelling.kept(0)
        assert first["rings"] == [[[50, 50], [100, 30], [150, 50], [170, 150], [60, 130]]] and first["label"] == 2
        assert first["box"] == [50, 30, 170, 150]
        assert second["rings"] == [[[250, 50], [350, 50], [300, 90]]] and second["label"] == 2


@pytest.mark.slow
def test_corners_are_inserted_and_taken_away_by_keys(visit: Visit) -> None:
    ring = [[50, 50], [150, 50], [150, 150], [50, 150]]
    record = {"bboxes": [[50, 50, 150, 150]], "labels": [0], "segments": [ring], "has_segments": [1]}
    with visit("POLYGON", [record]) as labelling:
        page = labelling.page
        press(page, "Tab", "e", "e", "m")  # after the second corner, in the middle of the side
        press(page, "ArrowRight", "ArrowRight")
        press(page, "ArrowDown", modifiers=SHIFT)
        press(page, "e", "Delete")  # the next one
        press(page, "Enter")
        labelling.labelled(1)
        assert labelling.kept(0)[0]["rings"] == [[[50, 50], [150, 50], [152, 110], [50, 150]]]


@pytest.mark.slow
def test_a_skeleton_joint_by_joint(visit: Visit) -> None:
    with visit("POINT", skeleton=[(0, 1), (1, 2)]) as labelling:
        page = labelling.page
        labelling.click((50, 40))
        press(page, "Escape")  # the joint, and not the object
        press(page, "v")  # the second is not in the image
        labelling.click((90, 60))
        press(page, "v")  # the third is hidden
        labelling.drag((50, 40), (55, 45))
        labelling.drag((200, 200), modifiers=SHIFT)  # another object
        press(page, "Enter")
        labelling.labelled(1)
        first, second = labelling.kept(0)
        assert first["joints"] == [[55, 45], [0, 0], [90, 60]] and first["visible"] == [2, 0, 1]
        assert first["box"] == [55, 45, 90, 60]
        assert second["joints"][0] == [200, 200] and second["visible"] == [2, 0, 0]


@pytest.mark.slow
def test_points_without_a_skeleton_are_objects_of_their_own(visit: Visit) -> None:
    with visit("POINT") as labelling:
        labelling.click((50, 40), (90, 60))
        press(labelling.page, "2", "Enter")
        labelling.labelled(1)
        assert [(each["label"], each["joints"]) for each in labelling.kept(0)] == [(0, [[50, 40]]), (1, [[90, 60]])]


def test_undo_redo_and_what_was_kept_before(visit: Visit) -> None:
    with visit() as labelling:
        page = labelling.page
        labelling.drag((50, 50), (150, 150))
        labelling.drag((200, 50), (300, 150))
        press(page, "Delete", "z", "z")
        press(page, "y")
        press(page, "z", modifiers=SHIFT)  # once more: it takes the second away again
        press(page, "z", "Enter")
        labelling.labelled(1)
        assert boxes(labelling.kept(0)) == [(0, [50, 50, 150, 150]), (0, [200, 50, 300, 150])]
        labelling.shown(1)
        press(page, "z")  # nothing here: what was kept last
        labelling.labelled(0)
        labelling.shown(0)


@pytest.mark.slow
def test_by_keys_alone(visit: Visit) -> None:
    with visit() as labelling:
        page = labelling.page
        press(page, "2", "a")
        press(page, "ArrowLeft", "ArrowUp", modifiers=SHIFT)
        press(page, "e", "e", "e", "e", "e", "ArrowRight")  # the lower right corner
        press(page, "Enter")
        labelling.labelled(1)
        ((label, box),) = boxes(labelling.kept(0))
        assert label == 1
        x0, y0, x1, y1 = box  # a fifth of the frame about the middle, ten pixels to the upper left
        assert (x0 + x1 - 1) / 2 == pytest.approx(190, abs=1) and (y0 + y1) / 2 == pytest.approx(140, abs=1)
        labelling.shown(1)
        press(page, "ArrowRight")  # nothing is selected: another image
        labelling.shown(2)
        press(page, "PageUp")
        labelling.shown(1)
        press(page, "Enter", "Enter")
        labelling.shown(2)
        press(page, "Enter")
        labelling.labelled(3)
        for _ in range(30):
            press(page, "Tab")
            if page.run("document.activeElement.id") == "finish":
                break
        press(page, "Enter")
        page.wait(
            "document.querySelector('#notice').innerText.startsWith('Finished: annotation_label.json is written')"
        )
    assert [len(record["bboxes"]) for record in records_of(labelling.target / "annotation_label.json")] == [1, 0, 0]


def test_going_on_keeps_what_was_drawn_and_a_lost_connection_brings_it_back(visit: Visit) -> None:
    with visit() as labelling:
        page = labelling.page
        labelling.drag((50, 50), (150, 150))
        press(page, "PageDown")
        labelling.labelled(1)
        labelling.shown(1)
        page.fake("*/api/label", [FakeResponse(0)])
        labelling.drag((60, 60), (160, 160))
        press(page, "Enter")
        page.wait("document.querySelector('#notice').innerText.startsWith('The server does not answer')")
        labelling.shown(1)
        press(page, "Enter")  # it is still there
        labelling.labelled(2)
        assert boxes(labelling.kept(0)) == [(0, [50, 50, 150, 150])]
        assert boxes(labelling.kept(1)) == [(0, [60, 60, 160, 160])]


def test_hostile_class_names_are_text(visit: Visit) -> None:
    record = {"bboxes": [[5, 5, 90, 90]], "labels": [0], "image_label": 0}
    with visit(records=[record], classes=(HOSTILE, *map(str, range(12)))) as labelling:
        page = labelling.page
        assert page.run("document.querySelector('#classes .entry').textContent") == f"1 {HOSTILE}"
        assert page.run("document.querySelectorAll('[onerror], img[src=x]').length") == 0
        press(page, "Tab", "c")  # more than nine classes are found by name
        page.write("11")
        press(page, "Enter", "Enter")
        labelling.labelled(1)
        assert labelling.kept(0)[0]["label"] == 12


@pytest.mark.slow
def test_keys_wait_for_the_end_of_a_drag_and_escape_ends_it(visit: Visit) -> None:
    with visit() as labelling:
        page = labelling.page
        labelling.drag((50, 50), (150, 150))
        for keys in (["Delete", "z", "Enter"], ["Escape"]):
            page.mouse("mousePressed", *labelling.at(100, 100))
            page.mouse("mouseMoved", *labelling.at(105, 105))
            press(page, *keys)
            page.mouse("mouseMoved", *labelling.at(110, 110))
            page.mouse("mouseReleased", *labelling.at(110, 110))
        press(page, "Enter")
        labelling.labelled(1)
        assert boxes(labelling.kept(0)) == [(0, [60, 60, 160, 160])]


@pytest.mark.slow
def test_fingers_draw_and_two_of_them_zoom(visit: Visit) -> None:
    with visit() as labelling:
        page = labelling.page
        page.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
        start, end = labelling.at(50, 50), labelling.at(150, 150)
        page.touch("touchStart", start)
        page.touch("touchMove", ((start[0] + end[0]) / 2, end[1]))
        page.touch("touchMove", end)
        page.touch("touchEnd")
        width = page.run(f"{ORIGIN}.width")
        first, second = labelling.at(200, 100), labelling.at(240, 100)
        page.touch("touchStart", first)
        page.touch("touchStart", first, second)
        page.touch("touchMove", (first[0] - 100, first[1]), (second[0] + 100, second[1]))
        page.touch("touchEnd")
        assert page.run(f"{ORIGIN}.width") > width * 1.5
        press(page, "Enter")
        labelling.labelled(1)
        assert boxes(labelling.kept(0)) == [(0, [50, 50, 150, 150])]


@pytest.mark.slow
def test_two_people_do_not_get_the_same_image(visit: Visit, tmp_path: Path, browser: Browser) -> None:
    source = made(tmp_path / "set", [{"image_label": 0}] * 4, CLASSES, ())
    task = LabelTask("CLASS", CLASSES, tmp_path / "out")
    with reviewing(source, task=task, users={"ann": "a", "bo": "b"}) as (port, desk):
        ann = Client(port)
        ann.login("ann", "a")
        ann.post("look", records=[0])
        with browser.page(f"http://127.0.0.1:{port}/", "en-GB", 1280, 720) as page:
            page.wait("!document.querySelector('#login').hidden")
            page.click("#user")
            page.write("bo")
            page.click("#password")
            page.write("b")
            press(page, "Enter")
            labelling = Labelling(page, desk.reviews.all()[0], tmp_path / "out")
            labelling.shown(1)  # the first is ann's
            ann.post("look", records=[2])
            press(page, "Enter")
            labelling.shown(3)  # and so is the third
            press(page, "Enter")
            page.wait("document.querySelector('#notice').innerText === ''")
            labelling.shown(0)  # which she has given up
            ann.post("label", records=[2], labels={"label": 1})
            press(page, "2")
            page.wait("document.querySelector('#notice').innerText === 'Every image is labelled: press Finish.'")
            assert {index: mark.user for index, mark in labelling.review.marks.of.items()} == {
                **{0: "bo", 1: "bo", 2: "ann", 3: "bo"}
            }
            assert page.errors == []


@pytest.mark.parametrize("count", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_at_most_one_press_and_a_fifth_an_image_where_a_net_is_right_in_nine_of_ten(visit: Visit, count: int) -> None:
    """One key keeps a class that is right or wrong alike; of boxes a wrong one takes three."""
    truth = [number % len(CLASSES) for number in range(count)]
    said = [(label + 1) % len(CLASSES) if number % 10 == 3 else label for number, label in enumerate(truth)]
    records = [{"predictions": {"image_label": label, "score": 0.9}} for label in said]
    with visit("CLASS", records) as labelling:
        presses = 0
        for number, (right, laid) in enumerate(zip(truth, said, strict=True)):
            labelling.shown(number)
            press(labelling.page, "Enter" if laid == right else str(right + 1))
            presses += 1
        labelling.labelled(count)
        assert [labelling.kept(number) for number in range(count)] == truth
        assert presses <= 1.2 * count
    # of boxes: Tab to the wrong one, its class, Enter
    assert sum(1 if laid == right else 3 for right, laid in zip(truth, said, strict=True)) <= 1.2 * count


@pytest.mark.slow
def test_boxes_of_a_net_are_confirmed_or_corrected(visit: Visit) -> None:
    truth = [number % 2 for number in range(10)]
    records = [
        {"predictions": {"bboxes": [[50, 50, 150, 150]], "labels": [label if number != 4 else 1 - label]}}
        for number, label in enumerate(truth)
    ]
    with visit(records=records) as labelling:
        presses: list[str] = []
        for number, label in enumerate(truth):
            labelling.shown(number)
            keys = ["Enter"] if number != 4 else ["Tab", str(label + 1), "Enter"]
            press(labelling.page, *keys)
            presses += keys
        labelling.labelled(10)
        assert [labelling.kept(number)[0]["label"] for number in range(10)] == truth
        assert len(presses) <= 1.2 * 10


@pytest.mark.slow
def test_the_grid_labels_many_at_once(visit: Visit) -> None:
    with visit("CLASS", [{"image_label": 1}] * 12) as labelling:
        page = labelling.page
        press(page, "g")
        page.wait("document.querySelectorAll('.cell').length === 12")
        press(page, "ArrowRight", " ", "3")
        labelling.labelled(1)
        page.wait("document.querySelectorAll('.cell')[1].querySelector('.class').textContent === 'gull'")
        press(page, "a", "r")  # the others as they are
        labelling.labelled(12)
        assert [labelling.kept(number) for number in range(12)] == [1, 2, *[1] * 10]


@pytest.mark.slow
def test_both_languages_have_the_same_texts_and_the_header_one_line(visit: Visit) -> None:
    with visit(records=[{"predictions": {"image_label": 1, "score": 0.5}}], language="zh-CN") as labelling:
        page = labelling.page
        assert page.text("#reviewed") == "已标注 0 / 1"
        for _ in range(2):
            assert page.run("document.querySelector('#top').clientHeight") < 50
            assert page.run("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
                1280,
                720,
            ]
            press(page, "l")
        of_each = "map((texts) => Object.keys(texts.helpOfLabels))"
        english, chinese = page.run(f"import('./texts.js').then(({{TEXTS}}) => [TEXTS.en, TEXTS.zh].{of_each})")
        assert english == chinese
        press(page, "?")
        assert page.text("#help h2") == "快捷键" and page.run("document.querySelector('#help').scrollHeight") < 720


@pytest.mark.slow
def test_who_draws_for_long_keeps_the_image(visit: Visit) -> None:
    with visit() as labelling:
        page, leases = labelling.page, labelling.review.leases
        labelling.drag((50, 50), (150, 150))
        page.run("{ const now = Date.now; Date.now = () => now() + 61_000; }")
        leases.look([], "")  # as after ten minutes
        labelling.drag((200, 50), (300, 150))
        until = time.monotonic() + 20
        while not leases.others([0], "bo") and time.monotonic() < until:
            time.sleep(0.02)
        assert leases.others([0, 1], "bo") == {0: ""}


@pytest.mark.slow
def test_nothing_is_laid_out_anew_while_one_draws_or_moves(visit: Visit) -> None:
    with visit() as labelling:
        page = labelling.page
        page.call("Performance.enable")

        def layouts() -> int:
            metrics = page.call("Performance.getMetrics")["metrics"]
            return int(next(metric["value"] for metric in metrics if metric["name"] == "LayoutCount"))

        press(page, "+")
        ways = [(100 + step, 100 + step) for step in range(50)]
        for more in ({}, {"button": "middle", "buttons": 4}):
            page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            before = layouts()
            places = [labelling.at(*point) for point in ways]
            page.mouse("mousePressed", *places[0], **more)
            for place in places:
                page.mouse("mouseMoved", *place, **more)
            assert layouts() == before
            page.mouse("mouseReleased", *places[-1], **more)


OUTLINES = """import("./brush.js").then(({outlines}) =>
    outlines((x, y) => PIXELS[y]?.[x] === "#", [PIXELS[0].length, PIXELS.length]))"""


@pytest.mark.slow
def test_what_is_painted_has_the_outlines_of_its_pixels(visit: Visit) -> None:
    """By the even-odd rule, crossings to the left counted here, the rings hold the same pixels again."""
    rows = ["..##....", ".####.#.", ".#..#..#", ".#.##.#.", "..##...#", "#......."]

    def is_within(x: int, y: int, rings: list[list[list[int]]]) -> bool:
        sides = [(ring[number - 1], ring[number]) for ring in rings for number in range(len(ring))]
        upright = [(a, b) for a, b in sides if a[0] == b[0] and a[0] <= x and min(a[1], b[1]) <= y < max(a[1], b[1])]
        return len(upright) % 2 == 1

    with visit("POLYGON") as labelling:
        page = labelling.page
        rings = page.run(OUTLINES.replace("PIXELS", str(rows)))
        found = ["".join("#" if is_within(x, y, rings) else "." for x in range(8)) for y in range(6)]
        assert found == rows
        assert all(
            a[0] == b[0] or a[1] == b[1] for ring in rings for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)
        )
        press(page, "k")
        labelling.drag((100, 100), (150, 100))  # 50 pixels long, 20 wide, with round ends
        labelling.click((125, 100), modifiers=SHIFT)  # wipes a hole of its width: two parts are left
        press(page, "z")
        press(page, "[", "[", "[")
        labelling.click((125, 100), modifiers=SHIFT)
        press(page, "Enter")
        labelling.labelled(1)
        (found,) = labelling.kept(0)
        assert len(found["rings"]) == 2 and found["box"] == [90, 90, 160, 110]
        area = sum(is_within(x, y, found["rings"]) for x in range(80, 170) for y in range(80, 120))
        ends, hole = 3.14159 * 10**2, 3.14159 * (10 / 1.25**3) ** 2
        assert area == pytest.approx(50 * 20 + ends - hole, rel=0.02)
