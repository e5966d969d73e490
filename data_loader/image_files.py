"""The image files below a folder, and what a walk leaves out; needs neither torch nor numpy."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from natsort import natsort_keygen

from common.errors import UserError

# fmt: off
PLAIN_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k",
)
# fmt: on
EXTRAS = {"pillow_heif": (".heic", ".heif", ".hif"), "pillow_jxl": (".jxl",)}  # endings by the package that reads them
INSTALL_EXTRAS = "pip install -r requirements-heic.txt"
IMAGE_SUFFIXES: tuple[str, ...] = PLAIN_SUFFIXES + tuple(
    suffix for package, suffixes in EXTRAS.items() if importlib.util.find_spec(package) for suffix in suffixes
)
# Thumbnails and waste baskets of Synology, QNAP, Windows and macOS; names that begin with a dot are left out anyway.
SYSTEM_FOLDERS = frozenset({"@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"})
SHOWN = 6  # kinds of left-out files in a note
_natural_key = natsort_keygen()

StrPath = str | os.PathLike[str]


class NoImagesError(UserError):
    """A folder without images; the message is one sentence for the user."""


class LeftOut:
    """The files that a walk leaves out, counted by ending, and the system folders, by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Count a file or a system folder."""
        suffix = Path(name).suffix.lower()
        is_system, is_image = name in SYSTEM_FOLDERS, suffix in IMAGE_SUFFIXES
        kind = "pipe, socket or device" if is_image else suffix or "without an ending"
        self.counts[f"folder {name}" if is_system else kind] += 1

    def __str__(self) -> str:
        """Return what was left out, as "6 .heic, 2 without an ending", with how it could be read; "" for nothing."""
        kinds = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
        text = ", ".join(f"{count} {kind}" for kind, count in kinds)
        others = sum(self.counts.values()) - sum(count for _, count in kinds)
        text += f", {others} others" if others else ""
        readable = [suffix for suffixes in EXTRAS.values() for suffix in suffixes if self.counts[suffix]]
        return f"{text} ({INSTALL_EXTRAS} for {' '.join(readable)})" if readable else text

    def print_note(self, root: StrPath) -> None:
        """Print what was left out to the standard error, if there is anything."""
        if self.counts:
            print(f"note: {os.fspath(root)}: left out, as no images: {self}", file=sys.stderr)


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Return names sorted, img2 before img10; names that differ only in leading zeros keep a fixed order too."""
    return sorted(names, key=lambda name: (_natural_key(name), name))


def iter_images(root: StrPath, *, recursive: bool = True, left_out: LeftOut | None = None) -> Iterator[str]:
    """Yield the paths of the images below a folder: its own in natural order, then folder by folder.

    Only one folder's names are held at a time. Names that begin with a dot and SYSTEM_FOLDERS are left out. Linked
    folders are followed, except back into a folder that is being walked. A broken link is yielded, so that whoever
    opens it reports it; a pipe, socket or device is not. Other files are counted in `left_out`. Raises OSError where a
    folder cannot be read.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(Path(root).as_posix(), frozenset())]
    left_out = LeftOut() if left_out is None else left_out
    while waiting:
        folder, above = waiting.pop()
        status = Path(folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        images, folders = _scan_folder(folder, left_out)
        prefix = folder_prefix(folder)
        for name in images:
            yield prefix + name
        if recursive:
            waiting += [(prefix + name, above | {identity}) for name in reversed(folders)]


def walk_images(root: StrPath) -> Iterator[str]:
    """Yield as `iter_images` does, and print at the end what was left out. Raises NoImagesError where there is none."""
    left_out, is_empty = LeftOut(), True
    for path in iter_images(root, left_out=left_out):
        is_empty = False
        yield path
    if is_empty:
        raise NoImagesError(no_images(root, left_out))
    left_out.print_note(root)


def no_images(root: StrPath, left_out: LeftOut, what: str = "no images in it or below it") -> str:
    """Return the sentence about a folder without images."""
    others = f"; left out: {left_out}" if left_out.counts else ""
    return f"{os.fspath(root)}: {what}{others}; endings known: {' '.join(IMAGE_SUFFIXES)}"


def folder_prefix(folder: str) -> str:
    """Return the text before a name in this folder."""
    if folder == ".":
        return ""
    return folder if folder.endswith("/") else folder + "/"


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _scan_folder(folder: str, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Return the image names and the folder names of one folder, each in natural order."""
    images: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if name in SYSTEM_FOLDERS:
                left_out.add(name)
            elif is_folder(entry):
                folders.append(name)
            elif name.lower().endswith(IMAGE_SUFFIXES) and is_file_or_broken_link(entry):
                images.append(name)
            else:
                left_out.add(name)
    return natural_sorted(images), natural_sorted(folders)


def is_file_or_broken_link(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file, or a link whose reader will tell that it leads to none."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110
    except OSError:  # a link to itself
        return True
