"""The service and its page with nets that give masks, the strongest colour of a pixel, and boxes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.inference.predictor import Predictor
from tests.helpers.browser import CHROMIUM, open_browser
from tests.helpers.masks_served import CLASSES, METADATA, PAIRS, BoxBackend, ChangeBackend, ColourBackend
from tests.helpers.serving import GatedBackend, RunningService, base64_of, flags, running


def scene(width: int = 48, height: int = 32) -> tuple[bytes, np.ndarray]:
    """Return a PNG, green with a red half and a blue quarter, and its classes (H, W)."""
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    labels[height // 2 :, width // 2 :] = 2
    file = io.BytesIO()
    Image.fromarray(np.array([[20, 220, 20], [220, 20, 20], [20, 20, 220]], np.uint8)[labels]).save(file, "PNG")
    return file.getvalue(), labels


@pytest.fixture(scope="module")
def address() -> Iterator[int]:
    with running(Predictor(ColourBackend(), METADATA), flags("--workers", 1), "") as port:
        yield port


def test_a_mask_is_answered_as_png(address: int) -> None:
    content, labels = scene()
    status, body, _ = RunningService(address, GatedBackend()).send(body={"content": base64_of(content)})
    assert status == 200
    (entry,) = body["data"]
    assert (entry["width"], entry["height"]) == (48, 32) and 0.9 < entry["score"] <= 1
    assert list(entry["shares"].values()) == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    assert [(found["value"], found["color"], found["title"]) for found in entry["classes"]] == [
        (found.value, list(found.color), found.title) for found in CLASSES
    ]
    with Image.open(io.BytesIO(base64.b64decode(entry["mask"].removeprefix("data:image/png;base64,")))) as mask:
        values = np.asarray(mask)
    assert (values == np.array([0, 3, 7])[labels]).mean() > 0.98


@pytest.fixture(scope="module")
def pairs_address() -> Iterator[int]:
    with running(Predictor(ChangeBackend(), PAIRS), flags("--workers", 1), "") as port:
        yield port


def plain(width: int = 48, height: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (20, 20, 20)).save(file, "PNG")
    return file.getvalue()


def test_a_pair_has_one_prediction(pairs_address: int) -> None:
    service = RunningService(pairs_address, GatedBackend())
    after, labels = scene()
    before = plain()
    pairs = [before, after, after, before]  # the second pair lost its red, which is no change here
    status, body, _ = service.send(body={"content": [base64_of(image) for image in pairs]})
    assert status == 200 and len(body["data"]) == 2
    shares = [entry["shares"]["changed"] for entry in body["data"]]
    assert shares == pytest.approx([(labels == 1).mean(), 0], abs=0.02)
    with Image.open(io.BytesIO(base64.b64decode(body["data"][0]["mask"].split(",")[1]))) as mask:
        assert (np.asarray(mask) == np.where(labels == 1, 255, 0)).mean() > 0.98
    for images, code, text in (
        ([before], 400, 'this net takes pairs: "content" holds two images each, the earlier first; got 1'),
        ([before, plain(40)], 422, "content[0]: it is 48x32, but the second image is 40x32"),
        ([before, after, before, b"x"], 422, "content[2]: its second image: it is not an image of a known format"),
        ([before, after, b"", b"x"], 422, "content[2]: it is empty"),
    ):
        status, body, _ = service.send(body={"content": [base64_of(image) for image in images]})
        assert status == code and body["msg"].startswith(text)
    assert service.send("/info", method="GET")[1]["images"] == 2


@pytest.mark.skipif(not CHROMIUM, reason="no chromium and no google-chrome on this machine")
def test_the_page_takes_two_images_for_a_pair(pairs_address: int, tmp_path: Path) -> None:
    for name, content in (("a.png", plain()), ("b.png", scene()[0])):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "profile").mkdir()
    with (
        open_browser(tmp_path / "profile") as browser,
        browser.page(f"http://127.0.0.1:{pairs_address}/", "en-GB", 1200) as page,
    ):
        page.wait("document.querySelector('#class-count').innerText")
        assert page.text("h1") == "Change detection"
        page.choose("#files", [tmp_path / "a.png"])
        page.wait("document.querySelector('#notice').innerText")
        assert page.text("#notice") == "a.png is the earlier image; now choose the later one."
        page.choose("#files", [tmp_path / "b.png"])
        page.wait("document.querySelector('.card canvas')")
        assert page.text(".file") == "a.png → b.png" and page.text("#summary") == "1 of 1 done"
        assert page.run("document.querySelector('#notice').hidden")
        pixel = "[...document.querySelector('.card canvas').getContext('2d').getImageData(36, 8, 1, 1).data]"
        assert page.run(pixel)[0] > 150  # the right upper quarter, which became red
        assert page.errors == []


@pytest.mark.skipif(not CHROMIUM, reason="no chromium and no google-chrome on this machine")
def test_the_page_draws_the_mask_over_the_image(address: int, tmp_path: Path) -> None:
    content, _ = scene()
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "profile").mkdir()
    with (
        open_browser(tmp_path / "profile") as browser,
        browser.page(f"http://127.0.0.1:{address}/", "en-GB", 1200) as page,
    ):
        page.wait("document.querySelector('#class-count').innerText")
        page.choose("#files", [tmp_path / "a.png"])
        page.wait("document.querySelector('.card canvas')")
        assert page.text("h1") == "Image segmentation" and page.text("#summary") == "1 of 1 done"
        assert page.text("#views label:nth-of-type(2)") == "mask"
        rows = page.run("[...document.querySelectorAll('.scores li')].map((row) => row.innerText.split('\\n'))")
        assert rows[0][0] == "地面" and sorted(name for name, _ in rows) == ["地面", "水体", "道路"]
        colours = page.run(
            """[[4, 4], [40, 4], [40, 28]].map(([x, y]) =>
            [...document.querySelector('.card canvas').getContext('2d').getImageData(x, y, 1, 1).data])"""
        )
        share = 140 / 255  # of a class's colour; a black class covers nothing
        red = [220 + (200 - 220) * share, 20 - 20 * share, 20 - 20 * share]
        blue = [20 - 20 * share, 20 - 20 * share, 220 + (200 - 220) * share]
        assert np.abs(np.array(colours)[:, :3] - [[20, 220, 20], red, blue]).max() <= 2
        page.click("#views label:nth-of-type(3)")
        assert page.run("document.querySelectorAll('.card canvas').length") == 0
        page.click("#views label:nth-of-type(2)")
        assert page.run("document.querySelector('.images').children.length") == 1
        page.click("#language")
        assert page.text("h1") == "图像分割"
        assert page.errors == []


@pytest.mark.skipif(not CHROMIUM, reason="no chromium and no google-chrome on this machine")
def test_boxes_are_answered_and_drawn(tmp_path: Path) -> None:
    content, _ = scene()
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "profile").mkdir()
    metadata = replace(METADATA, output="boxes", task="detection", thresholds={"score": 0.5})
    with (
        running(Predictor(BoxBackend(), metadata), flags("--workers", 1), "") as port,
        open_browser(tmp_path / "profile") as browser,
        browser.page(f"http://127.0.0.1:{port}/", "en-GB", 1200) as page,
    ):
        status, body, _ = RunningService(port, GatedBackend()).send(body={"content": base64_of(content)})
        assert status == 200
        boxes = [found["box"] for found in body["data"][0]["objects"]]
        assert boxes == [[12, 8, 36, 16], [6, 20, 42, 30]]  # three times and twice the input's pixels
        page.wait("document.querySelector('#class-count').innerText")
        page.choose("#files", [tmp_path / "a.png"])
        page.wait("document.querySelector('.card canvas')")
        assert page.text("h1") == "Object detection"
        assert page.text(".prediction strong") == "1 × 道路, 1 × 水体"
        pixel = "[...document.querySelector('.card canvas').getContext('2d').getImageData(36, 12, 1, 1).data]"
        assert page.run(pixel)[:3] == pytest.approx([200, 0, 0], abs=60)  # the first one's right side
        assert page.errors == []
