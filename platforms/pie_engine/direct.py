"""Thousands of objects of a store at once: signed GETs in a few processes.

One process with botocore gets about a thousand objects a second, whatever the network: a request takes its processor
a millisecond. Here nothing is tried again and no fault is told: what does not come is left to `storage`.
"""

from __future__ import annotations

import http.client
import multiprocessing
import os
import signal
import ssl
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic
from platforms.pie_engine.storage import Listed

PROCESSES, THREADS = 4, 8  # of each process
PART = 500  # objects
LARGEST_BYTES = 16 << 20  # read in one piece
TIMEOUT_S = 30.0
WITHOUT = (404, 412)  # of one object alone; any other refusal ends a thread's share

Wanted = tuple[Listed, Path]


@dataclass(frozen=True)
class Site:
    """Where a bucket's objects are, and what signs the requests for them; it can be handed to other processes."""

    url: str  # of an object, without its key
    region: str
    credentials: Any = field(repr=False)


def site_of(client: Any, bucket: str) -> Site | None:
    """Return the place of a client of `new_client`; None where it is reached by a proxy, or without credentials."""
    import boto3
    from botocore.utils import get_environ_proxies

    url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "x"}).partition("?")[0]
    host = urllib.parse.urlsplit(client.meta.endpoint_url).netloc  # of the region, which such URLs do not have
    url = url.replace(f"//{bucket}.s3.amazonaws.com/", f"//{bucket}.{host}/")
    credentials = boto3.session.Session().get_credentials()
    if not url.endswith("/x") or credentials is None or get_environ_proxies(url):
        return None
    return Site(url[:-1], client.meta.region_name or "us-east-1", credentials.get_frozen_credentials())


def fetch_many(site: Site, wanted: Sequence[Wanted]) -> Iterator[int]:
    """Write objects into files, each whole or not at all; yield after each part how many it wrote.

    A part of which nothing comes is the last one: the store is not there, or does not take such requests.
    """
    parts = [wanted[start : start + PART] for start in range(0, len(wanted), PART)]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(PROCESSES, context, initializer=_begin)
    try:
        for future in as_completed([pool.submit(fetch_part, site, part) for part in parts]):
            if not (count := future.result()):
                return
            yield count
    except BrokenProcessPool:  # one was killed, as where memory is short
        pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def fetch_part(site: Site, part: Sequence[Wanted]) -> int:
    """Fetch a part of the objects, by threads; return how many were written."""
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(lambda number: _fetch_share(site, part[number::THREADS]), range(THREADS)))


def _begin() -> None:
    """Let this process end with its parent, also where that was killed, and not by Ctrl+C."""

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def _fetch_share(site: Site, share: Iterable[Wanted]) -> int:
    connection, written = _connection(site.url), 0
    with suppress(OSError, http.client.HTTPException):
        for listed, target in share:
            if listed.size > LARGEST_BYTES:
                continue
            status = _fetch(connection, site, listed, target)
            if status not in (200, *WITHOUT):
                break
            written += status == 200
    connection.close()
    return written


def _fetch(connection: http.client.HTTPConnection, site: Site, listed: Listed, target: Path) -> int:
    """Write one object, if it is still what was listed; return the status, 412 where it is not."""
    url = site.url + urllib.parse.quote(listed.key, safe="/~")
    connection.request("GET", urllib.parse.urlsplit(url).path, headers=signed_headers(site, url))
    response = connection.getresponse()
    if response.status != 200:
        response.read()
        return response.status
    if response.length != listed.size or response.headers.get("ETag", "").strip('"') != listed.etag:
        connection.close()  # unread; the next request opens it again
        return 412
    write_atomic(target, response.read(), durable=False)
    return 200


def signed_headers(site: Site, url: str) -> dict[str, str]:
    """Return the headers that make a GET of an URL the user's."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    request = AWSRequest("GET", url)
    S3SigV4Auth(site.credentials, "s3", site.region).add_auth(request)
    return dict(request.headers.items())


def _connection(url: str) -> http.client.HTTPConnection:
    place = urllib.parse.urlsplit(url)
    if place.scheme == "https":
        context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or None)
        return http.client.HTTPSConnection(place.netloc, timeout=TIMEOUT_S, context=context)
    return http.client.HTTPConnection(place.netloc, timeout=TIMEOUT_S)
