"""What download/openverse, wikimedia, bing and baidu share: their flags and their run."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.atomic_io import check_folder, write_atomic
from data_loader.decoding import decode
from data_loader.errors import ImageError
from datasets.errors import DatasetError
from datasets.files import ANNOTATION, check_target, write_annotations
from datasets.images import save_image
from datasets.outcome import Outcome
from datasets.records import Record
from datasets.web_crawl import CRAWLED, LICENCE, crawler
from datasets.web_search import OPEN, PAUSE_S, Client, WebError, WebImage
from tools.datasets.verb import Verb, add_target, finish
from tools.doctor.near_duplicates import MAX_BITS, near_duplicate_pairs
from tools.doctor.scan import SMALL_PX, difference_hash

SOURCES_FILE = "sources.jsonl"
LEAST_SIDE_PX = 64
SOURCES = OPEN | CRAWLED


def download_verb(source: str, doc: str) -> Verb:
    """Return download/openverse, wikimedia, bing or baidu."""
    flags = functools.partial(add_flags, source)
    return Verb(f"download/{source}", doc.splitlines()[0], flags, functools.partial(_run, source))


def add_flags(source: str, parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_target(parser)
    parser.add_argument("--tags", required=True, metavar="type:image,keyword:a/b", help="keywords, with / between")
    parser.add_argument("--num", type=int, default=1000, metavar="N", help="images of each keyword (default 1000)")
    parser.add_argument("--api", default=SOURCES[source][1], metavar="ADDRESS", help="another server of its kind")
    what = f"seconds between two requests (default {PAUSE_S:g})"
    parser.add_argument("--pause", type=float, default=PAUSE_S, metavar="S", help=what)


def parse_keywords(text: str) -> list[str]:
    """Return the keywords of `type:image,keyword:a/b`. Raises DatasetError."""
    parts = dict(part.partition(":")[::2] for part in text.split(","))
    keywords = list(dict.fromkeys(word.strip() for word in parts.get("keyword", "").split("/") if word.strip()))
    if parts.get("type", "image") != "image" or set(parts) - {"type", "keyword"} or not keywords:
        raise DatasetError(f'--tags must be type:image,keyword:dog/cat, got "{text}"')
    if bad := [word for word in keywords if word.startswith(".") or set(word) & set("\\\0\r\n")]:
        raise DatasetError(f'--tags: keyword "{bad[0]}" can be no folder\'s name')
    return keywords


class Seen:
    """The images so far; the doctor's rule finds those that look alike."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.hashes = np.zeros(0, np.uint64)
        self.small = np.zeros((0, SMALL_PX, SMALL_PX, 3), np.uint8)

    def add(self, image: Image.Image, name: str) -> str:
        """Note an image; return the name of an earlier one that is the same or a look-alike, "" where there is none."""
        small = np.asarray(image.convert("RGB").resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX))
        hashes = np.append(self.hashes, np.uint64(difference_hash(image)))
        every = np.concatenate([self.small, small[None]])
        for row in np.flatnonzero(np.bitwise_count(hashes[:-1] ^ hashes[-1]) <= MAX_BITS).tolist():
            is_same = (every[row] == small).all()
            if is_same or len(near_duplicate_pairs(hashes, every, np.array([row, len(hashes) - 1]))):
                return self.names[row]
        self.hashes, self.small = hashes, every
        self.names.append(name)
        return ""


class Download:
    """The images of a folder with `sources.jsonl`, which goes on where an interrupted download has stopped."""

    def __init__(self, folder: Path, outcome: Outcome) -> None:
        self.folder, self.outcome, self.seen = folder, outcome, Seen()
        self.rows: list[dict[str, Any]] = []
        self.records: list[Record] = []
        for row in _read_rows(folder / SOURCES_FILE):
            try:
                image = decode(str(folder / row["file"]))
            except ImageError:  # removed by hand, or damaged: it is fetched again
                continue
            self.seen.add(image, row["file"])
            self._note(row, image)

    def keep(self, found: WebImage, content: bytes, keyword: str, source: str) -> bool:
        """Keep an image, unless it cannot be read, is small, or looks like an earlier one; return whether it is kept.

        Raises OSError.
        """
        number = sum(row["file"].startswith(f"{keyword}/") for row in self.rows)
        try:
            image = decode(content)
        except ImageError as error:
            self.outcome.leave_out(found.url, str(error))
            return False
        is_jpeg = content.startswith(b"\xff\xd8\xff")
        name = f"{keyword}/{source}_{number}_{hashlib.sha256(content).hexdigest()[:8]}.jpg"
        if min(image.size) < LEAST_SIDE_PX:
            self.outcome.leave_out(found.url, f"{image.width}x{image.height} is under {LEAST_SIDE_PX} pixels")
            return False
        if earlier := self.seen.add(image, name):
            self.outcome.leave_out(found.url, f"it is {earlier}, or looks like it")
            return False
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_jpeg:
            write_atomic(path, content, durable=False)
        else:
            save_image(image, path, is_jpeg=True, overwrite=True)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        self._note({"file": name, **asdict(found), "time": time, "sha256": checksum}, image)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        write_atomic(self.folder / SOURCES_FILE, text, durable=False)
        return True

    def count(self, keyword: str) -> int:
        """Return how many images of a keyword are there."""
        return sum(record["image_label_name"] == keyword for record in self.records)

    def write(self, keywords: list[str]) -> Path:
        """Write annotation.json, the keywords its classes; return its path."""
        category = list(dict.fromkeys([*keywords, *(record["image_label_name"] for record in self.records)]))
        for record in self.records:
            record["image_label"] = category.index(record["image_label_name"])
        return write_annotations(self.folder, self.records, category)

    def _note(self, row: dict[str, Any], image: Image.Image) -> None:
        size = {"width": image.width, "height": image.height}
        self.rows.append(row)
        keyword = row["file"].rpartition("/")[0]
        self.records.append({"image_file": row["file"], **size, "image_label_name": keyword, "tag": row["licence"]})


def _run(source: str, args: argparse.Namespace) -> int:
    """Download the images; return the exit code. Raises UserError, OSError."""
    keywords, outcome = parse_keywords(args.tags), Outcome(args.overwrite)
    if args.num < 1 or not 0 <= args.pause <= 3600:
        raise DatasetError(f"--num must be at least 1 and --pause from 0 to 3600, got {args.num}, {args.pause:g}")
    check_folder(args.tgt)
    check_target(args.tgt, args.overwrite, ANNOTATION)
    other = ""
    if source in CRAWLED:
        crawler(source.title())
        print(f"Whose these images are is {LICENCE}: their rights are yours to clear before you use them.")
        other = ", or its pages have changed, so that icrawler finds nothing in them"
    else:
        print(f"Licences and authors are listed in {args.tgt / SOURCES_FILE}; to keep to them is up to you.")
    download, client = Download(args.tgt, outcome), Client(args.pause)
    search, api = SOURCES[source][0], args.api.rstrip("/")
    for keyword in keywords:
        known = {row["url"] for row in download.rows}
        try:
            found = search(client, api, keyword)
            while download.count(keyword) < args.num and (image := next(found, None)) is not None:
                if image.url not in known:
                    known.add(image.url)
                    _fetch(client, image, download, keyword, source)
        except WebError as error:
            raise DatasetError(f"{api}: {error}; what was fetched is kept, and the same command goes on") from error
        if not download.count(keyword):
            outcome.leave_out(keyword, f"{source} has no image of it that can be used{other}")
    if not download.records:
        finish(f"{args.tgt}: no image", outcome)
        raise DatasetError(f"no image was found; try other keywords{other}")
    counts = ", ".join(f"{keyword} {download.count(keyword):,}" for keyword in keywords)
    return finish(f"{download.write(keywords)}: {counts}", outcome)


def _fetch(client: Client, image: WebImage, download: Download, keyword: str, source: str) -> None:
    try:
        content = client.get(image.url)
    except WebError as error:
        download.outcome.leave_out(image.url, str(error))
        return
    download.keep(image, content, keyword, source)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        is_right = all({"file", "url", "licence"} <= row.keys() and ".." not in row["file"].split("/") for row in rows)
    except (ValueError, AttributeError, TypeError) as error:
        raise DatasetError(f"{path}: expected what download/* writes: {error}") from error
    if not is_right:
        raise DatasetError(f"{path}: expected what download/* writes, with file, url and licence in each line")
    return rows
