"""Files and folders from any address that fsspec reads (s3://, oss://, sftp://, http://, ...), whole or not there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from common.atomic_io import atomic_path
from common.formatting import first_line
from datasets.errors import DatasetError
from datasets.outcome import Outcome
from datasets.pictures import FULL

SAME = "files that were there already, of the same size"


def open_address(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it. Raises DatasetError."""
    if "://" not in address:
        raise DatasetError(f'--src "{address}": expected an address such as s3://bucket/packs or sftp://host/folder')
    try:
        system, path = importlib.import_module("fsspec").url_to_fs(address)
        is_there = system.exists(path)
    except (ImportError, ValueError) as error:  # no driver, or no such protocol
        raise DatasetError(f'--src "{address}": {first_line(error)}') from error
    except Exception as error:  # each driver has errors of its own
        raise DatasetError(f'--src "{address}": cannot be reached: {first_line(error)}') from error
    if not is_there:
        raise DatasetError(f'--src "{address}": it is not there')
    return system, path


def remote_files(system: Any, path: str) -> dict[str, str]:
    """Return the paths of a file, or of all files below a folder, by their paths below it, in order."""
    if system.isfile(path):
        return {PurePosixPath(path).name: path}
    root = path.rstrip("/") + "/"
    return {found.removeprefix(root): found for found in sorted(system.find(path))}


def fetch(system: Any, files: dict[str, str], target: Path, outcome: Outcome, *, overwrite: bool) -> Iterator[int]:
    """Fetch files into a folder, and yield the bytes of each; one that is there with the same size is not fetched.

    What cannot be fetched is left out. Raises OSError for a full disk; DatasetError, before anything is fetched, for a
    file of another size that is there, and for a path that leaves the folder.
    """
    sizes = {name: system.info(path).get("size") for name, path in files.items()}
    for name in files:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise DatasetError(f'"{name}" leaves the folder {target}')
        local = target / name
        if local.exists() and not overwrite and local.stat().st_size != sizes[name]:
            raise DatasetError(f"{local}: it is there already, with another size; add --overwrite")
    for name, path in files.items():
        local = target / name
        if local.exists() and local.stat().st_size == sizes[name]:
            outcome.counts[SAME] += 1
            continue
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(local, durable=False) as temporary:
                system.get_file(path, str(temporary))
                size = temporary.stat().st_size
                if sizes[name] is not None and size != sizes[name]:
                    raise DatasetError(f"{size} of {sizes[name]} bytes came")
        except Exception as error:  # each driver has errors of its own
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            outcome.leave_out(path, getattr(error, "strerror", None) or first_line(error))
            continue
        yield size
