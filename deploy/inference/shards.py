"""One of several parts of a folder's images, for a machine or process each: which images it has."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_loader.image_files import folder_prefix

Entry = list[str | int]  # the image's path below the image folder and its bytes, of a pair those of both images
ENDING = ".shard"
MOST_SHARDS = 1000  # the merge has all their files open at once


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `count`, from 1: of the images in their order it has each `count`-th."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def path(self, output: Path) -> Path:
        """Return the shard's own file, beside the results file that the merge will write."""
        return output.with_name(f"{output.name}.{self.number}-of-{self.count}{ENDING}")


def shard_of(text: str) -> Shard:
    """Return the shard that a flag names. Raises ArgumentTypeError."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count <= MOST_SHARDS:
        raise argparse.ArgumentTypeError(
            f'must be I/N with I from 1 to N and N at most {MOST_SHARDS}, as 1/4, 2/4, 3/4 and 4/4, got "{text}"'
        )
    return Shard(number, count)


def shard_files(output: Path) -> dict[Shard, Path]:
    """Return the files of shards that lie beside a results file. Raises OSError where its folder cannot be read."""
    pattern = re.compile(rf"{re.escape(output.name)}\.([1-9][0-9]*)-of-([1-9][0-9]*){re.escape(ENDING)}")
    found = {}
    for name in os.listdir(output.parent):  # noqa: PTH208
        if match := pattern.fullmatch(name):
            found[Shard(int(match[1]), int(match[2]))] = output.with_name(name)
    return dict(sorted(found.items(), key=lambda item: (item[0].count, item[0].number)))


@dataclass(frozen=True)
class ShardImages:
    """A shard's own images, and what is known of all: how many, and the sha256 of their entries in order."""

    own: list[Entry]
    total: int
    sha256: str


def shard_images(images: Iterable[str | tuple[str, str]], root: Path, shard: Shard) -> ShardImages:
    """Return the images of a shard, from those of a folder in their order; holds the names of its own alone.

    Raises OSError where the folder cannot be read.
    """
    own, total, digest = [], 0, hashlib.sha256()
    start = len(folder_prefix(root.as_posix()))
    for source in images:
        entry: Entry = []
        for file in (source,) if isinstance(source, str) else source:
            entry += [file[start:], _size(file)]
        add_entry(digest, entry)
        if total % shard.count == shard.number - 1:
            own.append(entry)
        total += 1
    return ShardImages(own, total, digest.hexdigest())


def add_entry(digest: hashlib._Hash, entry: Entry) -> None:
    """Add the next image to the sha256 of all."""
    digest.update(json.dumps(entry).encode() + b"\n")


def source_of(entry: Entry, root: Path) -> str | tuple[str, str]:
    """Return the path of an entry's image, of a pair both, below the image folder."""
    names = [(root / str(name)).as_posix() for name in entry[::2]]
    return names[0] if len(names) == 1 else (names[0], names[1])


def _size(file: str) -> int:
    """Return a file's bytes; -1 for a broken link, whose prediction is an error."""
    try:
        return os.stat(file).st_size  # noqa: PTH116
    except OSError:
        return -1
