"""download/openverse and download/wikimedia against a server of the test that answers as theirs do."""

import hashlib
import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from data_loader.packs import open_shard
from datasets.files import write_annotations
from datasets.web_search import Client, WebError
from tests.helpers.killed import killed_at
from tests.helpers.local_server import serving
from tests.helpers.records import records_of
from tools import antgo


def noise(seed: int, size: tuple[int, int] = (80, 64), kind: str = "JPEG", quality: int = 90) -> bytes:
    """Return an image of coarse noise, so that its copies of other quality look alike."""
    cells = np.random.default_rng(seed).integers(0, 255, (8, 9, 3)).astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(cells).resize(size, Image.Resampling.BILINEAR).save(made, kind, quality=quality)
    return made.getvalue()


IMAGES = {
    "0.jpg": noise(0),
    "0-again.jpg": noise(0, quality=60),  # a look-alike
    "small.jpg": noise(1, (63, 200)),
    "broken.jpg": b"<html>not found</html>",
    "1.png": noise(2, kind="PNG"),
    "2.jpg": noise(3),
    "cat.jpg": noise(4),
}
DOGS = [*("0.jpg", "0-again.jpg", "gone.jpg", "small.jpg"), *("broken.jpg", "1.png", "2.jpg", "cut.jpg")]


class Handler(BaseHTTPRequestHandler):
    server: "Web"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.agents.add(self.headers["User-Agent"])
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        name = parts.path.rpartition("/")[2]
        if self.server.busy:
            self.server.busy -= 1
            self._answer(429, b"", {"Retry-After": "7"})
        elif parts.path == "/v1/images/":
            self._answer(200, json.dumps(self._openverse(query)).encode())
        elif parts.path == "/w/api.php":
            self._answer(200, json.dumps(self._wikimedia(query)).encode())
        elif name == "cut.jpg":
            self._answer(200, IMAGES["2.jpg"][:-9], {"Content-Length": str(len(IMAGES["2.jpg"]))})
        else:
            self._answer(200 if name in IMAGES else 404, IMAGES.get(name, b""))

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def _names(self, keyword: str) -> list[str]:
        return {"dog": DOGS, "猫": ["cat.jpg"]}.get(keyword, [])

    def _openverse(self, query: dict[str, str]) -> dict[str, Any]:
        names, page = self._names(query["q"]), int(query["page"])
        results = [
            {
                **{"url": f"{self.server.url}/i/{name}", "foreign_landing_url": f"http://page/{name}"},
                **{"license": "by-sa", "license_version": "4.0", "license_url": "http://cc/", "creator": "安 Ann"},
            }
            for name in names[3 * page - 3 : 3 * page]
        ]
        return {"result_count": len(names), "page_count": -(-len(names) // 3), "results": results}

    def _wikimedia(self, query: dict[str, str]) -> dict[str, Any]:
        names = self._names(query["gsrsearch"].removeprefix("filetype:bitmap "))
        first = int(query.get("gsroffset", 0))
        says = {"LicenseShortName": {"value": "CC BY 4.0"}, "Artist": {"value": '<a href="x">Ann &amp; Bo</a>'}}
        pages = [
            {
                "index": first + number,
                "imageinfo": [
                    {"url": f"{self.server.url}/i/{name}", "descriptionurl": f"http://page/{name}", "extmetadata": says}
                ],
            }
            for number, name in enumerate(names[first : first + 3])
        ]
        further = {"continue": {"gsroffset": first + 3, "continue": "-"}} if first + 3 < len(names) else {}
        return {"query": {"pages": pages[::-1]}, **further} if pages else {"batchcomplete": True}


class Web(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.agents: set[str | None] = set()
        self.busy = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("datasets.web_search.time.sleep", lambda seconds: None)
    monkeypatch.setattr("datasets.web_search.TRIES", 2)
    with serving(Web()) as server:
        yield server


def words(web: Web, target: Path, *flags: str, source: str = "openverse", tags: str = "keyword:dog/猫") -> list[str]:
    api = f"{web.url}/v1" if source == "openverse" else f"{web.url}/w/api.php"
    own = ["--api", api, "--tgt", str(target), "--tags", tags, "--pause", "0"]
    return [f"download/{source}", *own, *flags]


@pytest.mark.parametrize("source", ["openverse", "wikimedia"])
def test_images_with_their_licences(web: Web, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert antgo.main(words(web, tmp_path, source=source, tags="type:image,keyword:dog/猫")) == 1
    records = records_of(tmp_path)
    names = ["0.jpg", "1.png", "2.jpg", "cat.jpg"]
    sums = [hashlib.sha256(IMAGES[name]).hexdigest() for name in names]
    assert [record["image_file"] for record in records] == [
        *(f"dog/{source}_{number}_{sums[number][:8]}.jpg" for number in range(3)),
        f"猫/{source}_0_{sums[3][:8]}.jpg",
    ]
    assert [(r["image_label"], r["image_label_name"], r["width"], r["height"]) for r in records] == [
        *[(0, "dog", 80, 64)] * 3,
        (1, "猫", 80, 64),
    ]
    rows = [json.loads(line) for line in (tmp_path / "sources.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["url"] for row in rows] == [f"{web.url}/i/{name}" for name in names]
    assert [row["page"] for row in rows] == [f"http://page/{name}" for name in names]
    author, licence = ("安 Ann", "by-sa 4.0 http://cc/") if source == "openverse" else ("Ann & Bo", "CC BY 4.0")
    assert {(row["author"], row["licence"]) for row in rows} == {(author, licence)}
    for row, name in zip(rows, names, strict=True):
        content = (tmp_path / row["file"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert (content == IMAGES[name]) is name.endswith(".jpg") and content[:3] == b"\xff\xd8\xff"
    errors = capsys.readouterr().err
    for line in (
        f"0-again.jpg: it is {rows[0]['file']}, or looks like it",
        "gone.jpg: HTTP 404",
        "small.jpg: 63x200 is under 64 pixels",
        "broken.jpg: it is not an image",
        "cut.jpg: ",
    ):
        assert f"left out: {web.url}/i/{line}" in errors
    assert all(agent and agent.startswith("classic-trainer") for agent in web.agents)


def test_num_counts_what_is_kept_and_a_kill_is_gone_on_from(web: Web, tmp_path: Path) -> None:
    """Killed at the second image's entry: the image is there without it, is fetched again, and the first is not."""
    flags = words(web, tmp_path, "--num", "2", tags="keyword:dog")
    killed_at("tools.datasets.downloads.write_atomic", 3, *flags)
    assert len((tmp_path / "sources.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "annotation.json").exists()
    web.requests.clear()
    assert antgo.main(flags) == 1
    assert [record["image_label"] for record in records_of(tmp_path)] == [0, 0]
    assert "/i/0.jpg" not in web.requests and "/i/2.jpg" not in web.requests and "/i/1.png" in web.requests
    assert not list(tmp_path.rglob("*.tmp"))
    assert antgo.main(flags) == 2  # annotation.json is there


def test_a_busy_server_is_asked_later(web: Web) -> None:
    waits: list[float] = []
    web.busy = 1
    client = Client(5.0, waits.append)
    assert client.get(f"{web.url}/i/0.jpg") == IMAGES["0.jpg"] and 7.0 in waits
    client.get(f"{web.url}/i/2.jpg")
    assert 4 < waits[-1] <= 5  # after the request before
    web.busy = 9
    with pytest.raises(WebError, match="HTTP 429"):
        client.get(f"{web.url}/i/0.jpg")
    with pytest.raises(WebError, match="only http and https"):
        client.get("file:///etc/hostname")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--tags", "dog"], "--tags must be type:image,keyword:dog/cat"),
        (["--tags", "type:video,keyword:dog"], "--tags must be type:image"),
        (["--tags", "keyword:../dog"], 'keyword ".." can be no folder'),
        (["--num", "0"], "--num must be at least 1"),
        (["--tags", "keyword:bird"], "no image was found; try other keywords"),
        (["--api", "http://127.0.0.1:9/v1"], "what was fetched is kept, and the same command goes on"),
        (["--api", "{url}/w/api.php?", "--tags", "keyword:dog"], "HTTP 404"),
    ],
)
def test_mistakes(
    web: Web, tmp_path: Path, flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [flag.replace("{url}", f"{web.url}/nothing") for flag in flags]
    assert antgo.main(words(web, tmp_path, *flags)) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "annotation.json").exists()


def test_paid_pictures_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert antgo.main(["download/vcg", "--tags", "keyword:dog"]) == 2
    assert "VCG's pictures are paid for" in capsys.readouterr().err


def test_fetch_packs_images_by_address(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("crc32c")
    records = [{"image_url": f"{web.url}/i/{name}", "image_label": 0} for name in ("0.jpg", "gone.jpg", "1.png")]
    source = write_annotations(tmp_path / "set", records, ["dog"])
    flags = ["package/tfrecord", "--src", str(source), "--tgt", str(tmp_path / "packs"), "--prefix", "P"]
    assert antgo.main(flags) == 2
    assert f"it has image_url alone ({web.url}/i/0.jpg): --fetch downloads it" in capsys.readouterr().err
    assert antgo.main([*flags, "--fetch"]) == 1
    assert f"left out: {web.url}/i/gone.jpg: HTTP 404" in capsys.readouterr().err
    shard = open_shard(str(tmp_path / "packs/P-00000-of-00001-tfrecord"))
    found = [shard.features(index, ("image", "image_url")) for index in range(len(shard))]
    assert [each["image"] for each in found] == [[IMAGES["0.jpg"]], [IMAGES["1.png"]]]
    assert found[1]["image_url"] == [f"{web.url}/i/1.png".encode()]
    web.requests.clear()
    assert antgo.main([*flags, "--fetch", "--overwrite"]) == 1 and web.requests == ["/i/gone.jpg"]
