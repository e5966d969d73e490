"""A demo as a script of antgo's starts it: over HTTP, and once in a browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.service.limits import Limits
from review.asks import Asks
from review.errors import RefusedError
from tests.helpers.browser import CHROMIUM, open_browser
from tests.helpers.reviewing import Client
from tests.helpers.scripts import running_script

SCRIPT = """
import sys, time
seen = []
config = {"support_user_upload": True, "support_user_input": True, "request_waiting_time": 5, "port": 0}
ctx.demo.start("b_exp", config=config)
for data, info in ctx.demo.running_dataset.iterator_value():
    if isinstance(data, str):
        seen.append(data)
        if data == "end":
            break
        if data == "slow":
            time.sleep(6)
        answer = {"upper": {"data": data.upper(), "type": "STRING"}, "seen": {"data": list(seen), "type": "JSON"}}
    else:
        answer = {
            "score": {"data": np.float32(0.25), "type": "SCALAR"},
            "pixel": {"data": {"first": data[0, 0], "shape": data.shape}, "type": "JSON"},
            "grey": {"data": data[..., 0], "type": "IMAGE"},
            "same": {"data": data, "type": "IMAGE"},
            "script": {"data": __file__, "type": "FILE"},
        }
    ctx.recorder.record({"id": info["id"], **answer})
ctx.demo.exit()
print("ended", sys.argv[1], flush=True)
"""


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(item: dict[str, Any]) -> np.ndarray:
    head, _, text = item["data"].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Client]]:
    with running_script(tmp_path_factory.mktemp("demo"), SCRIPT) as (process, port):
        yield process, Client(port)


def send(client: Client, content: bytes) -> tuple[int, Any]:
    headers = {"content-type": "application/octet-stream"}
    status, found, _ = client.send("POST", "/api/image", content, headers)
    return status, found


def test_an_image_reaches_the_script_in_bgr_and_its_answers_come_back(demo: tuple[Any, Client]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (7, 5, 3)).astype(np.uint8)
    status, found = send(demo[1], png(pixels))
    assert status == 200
    score, pixel, grey, same, file = found["items"]
    assert (score["title"], score["type"], score["data"]) == ("score", "SCALAR", 0.25)
    assert pixel["data"] == {"first": pixels[0, 0, ::-1].tolist(), "shape": [7, 5, 3]}
    assert (pixels_of(grey) == pixels[..., 2]).all() and (pixels_of(same) == pixels).all()
    status, content, headers = demo[1].send("GET", f"/{file['data']}")
    assert status == 200 and b"InteractContext" in content and "script.py" in headers["content-disposition"]
    assert demo[1].send("GET", "/file/x")[0] == 404


def test_text_reaches_the_script(demo: tuple[Any, Client]) -> None:
    found = demo[1].post("text", text="grüße 图")
    assert found["items"][0] == {"title": "upper", "type": "STRING", "data": "GRÜSSE 图"}


def test_what_is_no_image_is_refused_and_the_demo_goes_on(demo: tuple[Any, Client]) -> None:
    status, found = send(demo[1], b"no image")
    assert status == 422 and found["msg"].startswith("the image cannot be read: ")
    assert send(demo[1], b"")[0] == 400
    assert send(demo[1], b"0" * 16_000_001)[0] == 413
    assert demo[1].refused("text", text=3) == (400, "text must be text of at most 10000 letters")
    assert demo[1].post("text", text="a")["items"][0]["data"] == "A"


def test_pages_of_others_and_other_names_are_refused(demo: tuple[Any, Client]) -> None:
    for headers, code in (
        ({"origin": "http://localhost:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example"}, 421),
    ):
        assert demo[1].send("POST", "/api/text", {"text": "a"}, headers)[0] == code
    _, _, found = demo[1].send("GET", "/")
    assert "default-src 'none'" in found["content-security-policy"]


def test_a_script_that_does_not_answer_in_time(demo: tuple[Any, Client]) -> None:
    status, found, headers = demo[1].send("POST", "/api/text", {"text": "slow"})
    assert (status, headers["retry-after"]) == (503, "1")
    assert found["msg"] == "the script has not answered within 5 s; try again later"
    assert demo[1].post("text", text="b")["items"][0]["data"] == "B"  # and its late answer harms nothing


def test_what_a_client_asks_that_has_gone_is_not_put_before_the_script(demo: tuple[Any, Client]) -> None:
    body = {"text": "slow"}
    slow = threading.Thread(target=demo[1].send, args=("POST", "/api/text", body))
    slow.start()
    time.sleep(1)  # the script has it now
    with socket.create_connection(("127.0.0.1", demo[1].port)) as gone:
        content = json.dumps({"text": "of nobody"})
        head = f"POST /api/text HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
        gone.sendall(f"{head}content-type: application/json\r\n\r\n{content}".encode())
        time.sleep(1)
    slow.join()
    items = demo[1].post("text", text="c")["items"]
    assert items[0]["data"] == "C" and "of nobody" not in items[1]["data"] and items[1]["data"][-1] == "c"


def test_no_more_wait_than_the_limit_allows() -> None:
    async def two_more() -> list[tuple[int, str]]:
        asks = Asks(Limits(queue=2), 0.05)
        tried = (asks.answer_to(str(number), {}) for number in range(4))
        found = await asyncio.gather(*tried, return_exceptions=True)
        return [(each.status, str(each)) for each in found if isinstance(each, RefusedError)]

    waited = "the script has not answered within 0.05 s; try again later"
    refused = "2 requests wait already; try again later"
    assert asyncio.run(two_more()) == [(503, waited)] * 2 + [(503, refused)] * 2


@pytest.mark.skipif(not CHROMIUM, reason="no chromium and no google-chrome on this machine")
def test_the_page_in_a_browser(demo: tuple[Any, Client], tmp_path: Path) -> None:
    image = tmp_path / "<b>图.png"
    image.write_bytes(png(np.full((30, 40, 3), 200, np.uint8)))
    address = f"http://127.0.0.1:{demo[1].port}/"
    with open_browser(tmp_path) as browser, browser.page(address, "zh-CN", 1280, 720) as page:
        page.wait("document.querySelector('#name').textContent === 'b_exp'")
        assert page.text("#drop strong") == "选择图片"
        page.choose("#files", [image])
        page.wait("document.querySelectorAll('.item').length === 5")
        page.wait("[...document.querySelectorAll('.item img')].every((each) => each.naturalWidth === 40)")
        page.click("#language")
        assert page.text("#drop strong") == "Choose images"
        page.click("#text")
        page.write("<img src=x onerror=alert(1)>")
        page.click("#ask button")
        page.wait("document.querySelectorAll('.card').length === 2")
        page.wait("document.querySelector('.item p')?.textContent === '<IMG SRC=X ONERROR=ALERT(1)>'")
        english, chinese = page.run(
            "import('./texts.js').then(({TEXTS}) => [Object.keys(TEXTS.en), Object.keys(TEXTS.zh)])"
        )
        assert english == chinese and page.errors == []
        assert all(request["url"].startswith((address, "data:", "blob:")) for request in page.requests)


def test_exit_ends_the_script(tmp_path: Path) -> None:
    with running_script(tmp_path, SCRIPT) as (process, port):
        status, _, _ = Client(port).send("POST", "/api/text", {"text": "end"})
        assert status == 503 and process.wait(60) == 0
        assert process.stdout and process.stdout.read().splitlines()[-1] == "ended an argument"
        assert process.stderr and process.stderr.read() == ""


def test_a_signal_ends_it(tmp_path: Path) -> None:
    with running_script(tmp_path, SCRIPT) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr and "Traceback" not in process.stderr.read()


def test_the_request_waiting_for_a_script_s_bug(tmp_path: Path) -> None:
    """A script's own error keeps its traceback."""
    text = 'ctx.demo.start("b", config={"port": 0, "support_user_input": True})\nnext(iter([]))\n'
    with running_script(tmp_path, text) as (process, _):
        assert process.wait(60) == 1
        assert process.stderr and "StopIteration" in process.stderr.read()


def test_json_is_strict(demo: tuple[Any, Client]) -> None:
    status, content, _ = demo[1].send("GET", "/api/demo")
    assert status == 200 and json.loads(json.dumps(content))["takes_text"] is True
