"""The image files that records name: taken along into another folder, and copied whole or not at all."""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from common.atomic_io import atomic_path
from datasets.outcome import Outcome
from datasets.records import Record, value

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk of the target: no further file will fit either
FOLDERS = {"image_file": "images", "semantic_file": "semantic"}  # below the target, by the key that names a file


def take_along(
    records: Sequence[Record], source: Path, target: Path, outcome: Outcome, taken: dict[str, Path] | None = None
) -> list[Record]:
    """Return the records with their files linked, or copied, into the target's folders, paths changed accordingly.

    A record whose file cannot be taken is left out. Files of several records are taken once; `taken` has the files by
    their new paths, where there are several sources. Raises OSError where the disk is full.
    """
    taken = {} if taken is None else taken
    made = []
    for record in records:
        moved = dict(record)
        try:
            for key, folder in FOLDERS.items():
                if path := value(record, key):
                    moved[key] = _take(source / path, path, target / folder, taken, outcome.overwrite)
        except OSError as error:
            if error.errno in FULL:
                raise
            outcome.leave_out(value(record, "image_file"), f"{error.filename}: {error.strerror or error}")
            continue
        made.append(moved)
    return made


def place_file(source: Path, target: Path, *, may_link: bool = True, overwrite: bool = False) -> None:
    """Link a file to another place, or copy it where that is not possible; complete or not at all.

    Raises OSError, FileExistsError where another file is there.
    """
    if target.exists():
        if target.samefile(source) or filecmp.cmp(source, target, shallow=False):
            return
        refuse_other(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target, durable=False) as temporary:
        if may_link:
            try:
                os.link(source.resolve(), temporary)
                return
            except OSError:  # another disk, or one without hard links
                pass
        shutil.copyfile(source, temporary)


def refuse_other(target: Path, overwrite: bool) -> None:
    """Raise FileExistsError for a file with another content that is not to be overwritten."""
    if not overwrite:
        text = "another file of this name is there already (--overwrite replaces it)"
        raise FileExistsError(errno.EEXIST, text, str(target))


def _take(source: Path, path: str, folder: Path, taken: dict[str, Path], overwrite: bool) -> str:
    """Take one file; return its path below the target. Two files that would get one name keep their whole paths."""
    if not source.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
    resolved = source.resolve()
    name = f"{folder.name}/{path.removeprefix(folder.name + '/')}"
    while taken.setdefault(name, resolved) != resolved:
        name = f"{folder.name}/{name}"
    place_file(source, folder.parent / name, overwrite=overwrite)
    return name
