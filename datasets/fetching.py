"""The images that records name by an address alone, fetched into a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from common.atomic_io import write_atomic
from data_loader.image_files import IMAGE_SUFFIXES
from datasets.outcome import Outcome
from datasets.packing import Row
from datasets.records import value
from datasets.web_search import Client, WebError


def fetch_images(rows: Sequence[Row], folder: Path, client: Client, outcome: Outcome) -> list[Row]:
    """Return the rows, those with image_url alone with the file that it gave; what cannot be fetched is left out.

    A file that is there already is not fetched again. Raises OSError.
    """
    made: list[Row] = []
    for record, root in rows:
        url = value(record, "image_url")
        if not url or value(record, "image_file"):
            made.append((record, root))
            continue
        ending = PurePosixPath(urlsplit(url).path).suffix.lower()
        name = hashlib.sha256(url.encode()).hexdigest()[:16] + (ending if ending in IMAGE_SUFFIXES else "")
        if not (folder / name).exists():
            try:
                content = client.get(url)
            except WebError as error:
                outcome.leave_out(url, str(error))
                continue
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, content, durable=False)
        made.append(({**record, "image_file": name}, folder))
    return made
