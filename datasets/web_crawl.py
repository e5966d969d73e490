"""Images by a keyword from search engines, whose pages the package icrawler addresses and reads; fetched one by one."""

from __future__ import annotations

import functools
import importlib
import logging
import queue
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit

from datasets.errors import DatasetError
from datasets.web_search import Client, Search, WebError, WebImage

INSTALL = "pip install -r requirements-crawl.txt"
LICENCE = "not known"
MOST = 1000  # images of a keyword that the engines show


def crawl(engine: str, client: Client, api: str, keyword: str) -> Iterator[WebImage]:
    """Yield what a search engine shows for a keyword, until a page has nothing. Raises WebError, DatasetError.

    `engine` is "Bing" or "Baidu"; `api` the address that stands in its place.
    """
    module = crawler(engine)
    parser = getattr(module, f"{engine}Parser")(1, None, None, name=f"icrawler.{engine}")
    parser.logger.disabled = True  # what it cannot read is said below
    for page in _pages(module, engine, api, keyword):
        response = SimpleNamespace(content=client.get(page))
        try:
            found = [str(task["file_url"]) for task in parser.parse(response)]
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise WebError(f"icrawler cannot read what {engine} answered, which may have changed: {error!r}") from error
        if not found:
            return
        for url in dict.fromkeys(found):
            yield WebImage(url, page, LICENCE, "")


def crawler(engine: str) -> Any:
    """Return icrawler's module of an engine. Raises DatasetError where the package is not installed."""
    try:
        return importlib.import_module(f"icrawler.builtin.{engine.lower()}")
    except ImportError as error:
        raise DatasetError(f"download/{engine.lower()} needs the package icrawler: {INSTALL}") from error


CRAWLED: dict[str, tuple[Search, str]] = {
    "bing": (functools.partial(crawl, "Bing"), "https://www.bing.com"),
    "baidu": (functools.partial(crawl, "Baidu"), "https://image.baidu.com"),
}


def _pages(module: Any, engine: str, api: str, keyword: str) -> list[str]:
    """Return the addresses of the pages that icrawler's feeder would have read, at `api`."""
    feeder = getattr(module, f"{engine}Feeder")(1, None, None)
    feeder.logger = logging.getLogger("icrawler")
    feeder.out_queue = queue.SimpleQueue()  # its own holds five
    feeder.feed(quote(keyword, safe=""), 0, MOST)
    addresses = [feeder.out_queue.get() for _ in range(feeder.out_queue.qsize())]
    return [api + urlsplit(each)._replace(scheme="", netloc="").geturl() for each in addresses]
