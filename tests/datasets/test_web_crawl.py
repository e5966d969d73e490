"""download/bing and download/baidu against a server of the test that answers as the engines' pages do."""

from __future__ import annotations

import html
import io
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.helpers.local_server import serving
from tests.helpers.records import records_of
from tools import antgo

pytest.importorskip("icrawler")

NAMES = ["0.jpg", "1.jpg", "gone.jpg", "2.jpg", "small.jpg"]
BAIDU = {  # objURL's letters, as Baidu writes them; the other way round in icrawler
    **dict(zip("abcdefghijklmnopqrstuvw", "wkv1ju2it3hs4g5rq6fp7eo", strict=True)),
    **dict(zip("1234567890", "8dn9cm0bla", strict=True)),
    **{":": "_z2C$q", ".": "_z&e3B", "/": "AzdH3F"},
}


def image(name: str) -> bytes:
    made, seed = io.BytesIO(), ord(name[0])
    cells = np.random.default_rng(seed).integers(0, 255, (8, 9, 3)).astype(np.uint8)
    Image.fromarray(cells).resize((63 if name == "small.jpg" else 80, 70)).save(made, "JPEG")
    return made.getvalue()


class Engine(BaseHTTPRequestHandler):
    """Bing's page of 20 and Baidu's of 30 images, of which three are there."""

    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.server.requests.append(self.path)
        status, content = 200, b""
        if self.server.answer is not None and not parts.path.startswith("/i/"):
            content = self.server.answer
        elif parts.path == "/images/async":
            content = self._bing(self._shown(query["q"], int(query["first"]) // 20))
        elif parts.path == "/search/acjson":
            content = self._baidu(self._shown(query["word"], int(query["pn"]) // 30))
        elif (name := parts.path.removeprefix("/i/")) in NAMES and name != "gone.jpg":
            content = image(name)
        else:
            status = 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _shown(self, keyword: str, page: int) -> list[str]:
        names = NAMES[3 * page : 3 * page + 3] if keyword == "雪 goose" else []
        return [f"{self.server.url}/i/{name}" for name in names]

    def _bing(self, urls: list[str]) -> bytes:
        rows = [html.escape(json.dumps({"cid": "x", "murl": url, "turl": "t"}, separators=(",", ":"))) for url in urls]
        return "".join(f'<div class="imgpt"><a class="iusc" m="{row}"></a></div>' for row in rows).encode()

    def _baidu(self, urls: list[str]) -> bytes:
        rows = [{"objURL": "".join(BAIDU.get(letter, letter) for letter in url)} for url in urls]
        return json.dumps({"data": [*rows, {}]}).encode()  # an empty one is the last


class Server(ThreadingHTTPServer):
    """`answer` takes the place of every page."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Engine)
        self.requests: list[str] = []
        self.answer: bytes | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Server()) as running:
        yield running


def words(server: Server, source: str, target: Path, keyword: str = "雪 goose") -> list[str]:
    flags = ["--api", server.url, "--tgt", str(target), "--tags", f"keyword:{keyword}", "--pause", "0", "--num", "3"]
    return [f"download/{source}", *flags]


@pytest.mark.parametrize("source", ["bing", "baidu"])
def test_images_of_an_engine(server: Server, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert antgo.main(words(server, source, tmp_path)) == 1
    said = capsys.readouterr()
    assert "their rights are yours to clear" in said.out
    assert f"left out: {server.url}/i/gone.jpg: HTTP 404" in said.err
    assert [record["image_label_name"] for record in records_of(tmp_path)] == ["雪 goose"] * 3
    rows = [json.loads(line) for line in (tmp_path / "sources.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["url"] for row in rows] == [f"{server.url}/i/{number}.jpg" for number in range(3)]
    assert {row["licence"] for row in rows} == {"not known"} and rows[0]["page"].startswith(f"{server.url}/")
    for number, row in enumerate(rows):
        assert (tmp_path / row["file"]).read_bytes() == image(f"{number}.jpg")
    pages = [each for each in server.requests if not each.startswith("/i/")]
    assert len(pages) == 2  # enough was found on them
    assert not [each for each in server.requests if each == "/i/small.jpg"]


@pytest.mark.parametrize(
    ("source", "answer", "sentence"),
    [
        ("bing", b"<html>please prove that you are human</html>", "its pages have changed, so that icrawler finds"),
        ("baidu", b"<html>", "its pages have changed, so that icrawler finds"),
        ("bing", b'<div class="imgpt">empty</div>', "icrawler cannot read what Bing answered, which may have changed"),
        ("baidu", b'{"antiFlag": 1}', "icrawler cannot read what Baidu answered, which may have changed"),
        ("baidu", b"[]", "icrawler cannot read what Baidu answered"),
        ("baidu", b'{"data": [{"objURL": 5}]}', "icrawler cannot read what Baidu answered"),
        ("bing", None, "no image was found; try other keywords"),
    ],
)
def test_pages_that_give_nothing(
    server: Server,
    tmp_path: Path,
    source: str,
    answer: bytes | None,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.answer = answer
    assert antgo.main(words(server, source, tmp_path, "nothing")) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "annotation.json").exists()


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "icrawler.builtin.bing", None)
    assert antgo.main(["download/bing", "--tgt", str(tmp_path), "--tags", "keyword:dog"]) == 2
    assert "download/bing needs the package icrawler: pip install -r requirements-crawl.txt" in capsys.readouterr().err
