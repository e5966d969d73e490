"""Torch's archives, rewritten: torch reads exactly the records that were checked."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

MOST_UNPACKED_BYTES = 2**28  # of the records that are packed: torch packs code alone


def rewrite_archive(path: Path) -> io.BytesIO:
    """Copy the records that Python's reader finds in an archive into a new one, in memory.

    An archive may be made so that torch's reader finds other records in it; in the copy both find the same. Raises
    OSError, and what `zipfile` raises where the archive is damaged, or made to be read in two ways.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        entries = source.infolist()
        if len({entry.filename.lower() for entry in entries}) < len(entries):  # torch knows no case
            raise zipfile.BadZipFile("it holds a record twice")
        if len({entry.filename.partition("/")[0] for entry in entries}) > 1:
            raise zipfile.BadZipFile("its records lie in several folders")
        if sum(entry.file_size for entry in entries if entry.compress_type) > MOST_UNPACKED_BYTES:
            raise zipfile.BadZipFile("it unpacks to too much")
        for entry in entries:
            target.writestr(entry.filename, source.read(entry))
    copy.seek(0)
    return copy
