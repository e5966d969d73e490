"""Images by a keyword from the open collections of the web, with their licences: Openverse, Wikimedia Commons."""

from __future__ import annotations

import html
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlencode

from datasets.errors import DatasetError

AGENT = "classic-trainer-datasets/1.0 (https://meta.wikimedia.org/wiki/User-Agent_policy)"
TIMEOUT_S = 30.0
PAUSE_S = 1.0  # between two requests
TRIES = 4
MOST_WAIT_S = 60.0  # that a server may ask for
MOST_BYTES = 50_000_000  # of an answer or an image
BUSY = (429, 500, 502, 503, 504)
PAST_THE_END = (400, 401, 403, 404)  # of a page after the first: Openverse shows people without an account so many
OPENVERSE_PAGE, WIKIMEDIA_PAGE, WIKIMEDIA_WIDTH_PX = 20, 50, 1920


@dataclass(frozen=True)
class WebImage:
    """Where an image is, the page that shows it, and whose it is under which licence."""

    url: str
    page: str
    licence: str
    author: str


class WebError(Exception):
    """An address that gives nothing; `status` is HTTP's, 0 where there was no answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Client:
    """Asks one address after the other, `pause_s` apart; of a server that is busy again, as late as it says."""

    def __init__(self, pause_s: float, sleep: Callable[[float], None] | None = None) -> None:
        self.pause_s, self.sleep, self.last_s = pause_s, sleep or time.sleep, float("-inf")

    def get(self, url: str) -> bytes:
        """Return an address's whole content. Raises WebError."""
        if not url.startswith(("http://", "https://")):
            raise WebError(f"{url}: only http and https are fetched")
        for attempt in range(TRIES):
            self.sleep(max(0.0, self.last_s + self.pause_s - time.monotonic()))
            try:
                return self._get(url)
            except urllib.error.HTTPError as error:
                if error.code not in BUSY or attempt == TRIES - 1:
                    raise WebError(f"HTTP {error.code} {error.reason}", error.code) from error
                asked = error.headers.get("Retry-After", "")
                wait_s = float(asked) if asked.isdecimal() else 2.0**attempt
                if wait_s > MOST_WAIT_S:
                    raise WebError(f"the server asks to come back in {wait_s:g} s", error.code) from error
                self.sleep(wait_s)
            except (OSError, HTTPException, ValueError) as error:
                if attempt == TRIES - 1:
                    raise WebError(str(getattr(error, "reason", error))) from error
                self.sleep(2.0**attempt)
            finally:
                self.last_s = time.monotonic()
        raise AssertionError("unreachable")

    def _get(self, url: str) -> bytes:
        request = urllib.request.Request(url, headers={"User-Agent": AGENT})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read(MOST_BYTES + 1)
            said = answer.headers.get("Content-Length") or len(content)
        if len(content) > MOST_BYTES:
            raise WebError(f"it is larger than {MOST_BYTES:,} bytes")
        if len(content) < int(said):
            raise OSError(f"{len(content)} of {said} bytes came")
        return content

    def json(self, url: str) -> dict[str, Any]:
        """Return the JSON object of an address. Raises WebError."""
        try:
            found = json.loads(self.get(url))
        except ValueError as error:
            raise WebError(f"{url}: its answer is not JSON") from error
        if not isinstance(found, dict):
            raise WebError(f"{url}: its answer is no JSON object")
        return found


def openverse(client: Client, api: str, keyword: str) -> Iterator[WebImage]:
    """Yield Openverse's images of a keyword, page by page. Raises WebError, DatasetError."""
    page, pages = 1, 1
    while page <= pages:
        query = urlencode({"q": keyword, "page": page, "page_size": OPENVERSE_PAGE})
        try:
            found = client.json(f"{api}/images/?{query}")
        except WebError as error:
            if page > 1 and error.status in PAST_THE_END:
                return
            raise
        for each in _list(found, "results", api):
            licence = " ".join(str(each.get(key) or "") for key in ("license", "license_version", "license_url"))
            url, shown = (str(each.get(key) or "") for key in ("url", "foreign_landing_url"))
            yield WebImage(url, shown, licence.strip(), str(each.get("creator") or ""))
        pages, page = int(found.get("page_count") or 1), page + 1


def wikimedia(client: Client, api: str, keyword: str) -> Iterator[WebImage]:
    """Yield Wikimedia Commons' images of a keyword, page by page. Raises WebError, DatasetError."""
    asked: dict[str, Any] = {
        **{"action": "query", "format": "json", "formatversion": 2, "generator": "search", "gsrnamespace": 6},
        **{"gsrsearch": f"filetype:bitmap {keyword}", "gsrlimit": WIKIMEDIA_PAGE, "prop": "imageinfo"},
        **{"iiprop": "url|extmetadata", "iiextmetadatafilter": "LicenseShortName|LicenseUrl|Artist"},
        "iiurlwidth": WIKIMEDIA_WIDTH_PX,
    }
    further: dict[str, Any] = {}
    while True:
        found = client.json(f"{api}?{urlencode(asked | further)}")
        if "error" in found:
            raise WebError(f"{api}: {found['error'].get('info', found['error'])}")
        pages = _list(found.get("query", {"pages": []}), "pages", api)
        for page in sorted(pages, key=lambda page: page.get("index", 0)):
            for info in page.get("imageinfo", [])[:1]:
                says = {key: _plain(item.get("value", "")) for key, item in info.get("extmetadata", {}).items()}
                licence = f"{says.get('LicenseShortName', '')} {says.get('LicenseUrl', '')}".strip()
                url = info.get("thumburl") or info.get("url", "")
                yield WebImage(url, info.get("descriptionurl", ""), licence, says.get("Artist", ""))
        if not (further := found.get("continue", {})):
            return


Search = Callable[[Client, str, str], Iterator[WebImage]]
OPEN: dict[str, tuple[Search, str]] = {  # with the address of the interface
    "openverse": (openverse, "https://api.openverse.org/v1"),
    "wikimedia": (wikimedia, "https://commons.wikimedia.org/w/api.php"),
}


def _list(found: dict[str, Any], key: str, api: str) -> list[dict[str, Any]]:
    entries = found.get(key)
    if not isinstance(entries, list):
        raise DatasetError(f"{api}: its answer has no {key}; is it the interface's address?")
    return [each for each in entries if isinstance(each, dict)]


def _plain(text: Any) -> str:
    """Return a text without HTML's tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", str(text))).split())
