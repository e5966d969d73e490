"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ResultsError(ValueError):
    """Results that cannot be written; the message is one sentence for the user."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a ResultsError that names the path."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{path}: cannot write it: {error.strerror or error}") from error


def check_folder(folder: Path) -> None:
    """Raise ResultsError unless the folder is there, or can be made, and may be written to."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists() or parent.is_symlink())
    if not there.exists():
        raise ResultsError(f"{there}: it is a link to {there.readlink()}, which is not there")
    if not there.is_dir():
        raise ResultsError(f"{folder}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise ResultsError(f"{folder}: no permission to write there")


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Give a temporary path that becomes the target when all is written, and is gone otherwise."""
    temporary = target.with_name(f".{os.getpid()}.tmp")  # short: the target's own name may be as long as allowed
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
