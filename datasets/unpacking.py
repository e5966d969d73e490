"""Packs -> images under their checksums with a list, and several packs -> one, whose shards are theirs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic
from common.checksums import file_sha256
from data_loader.decoding import decode
from data_loader.errors import ImageError
from data_loader.image_files import IMAGE_SUFFIXES
from data_loader.pack_list import read_pack
from data_loader.packed_images import content_of
from data_loader.packs import ENDING, INDEX_ENDING, META_ENDING, Pack, file_of, find_pack, open_shard
from data_loader.samples import NO_LABEL
from data_loader.targets import ClassLabel
from datasets.errors import DatasetError
from datasets.outcome import Outcome
from datasets.packing import Shards, write_meta
from datasets.pictures import place_file

USUAL_SUFFIX = ".png"  # of an image whose file has a name without one


@dataclass
class Unpacked:
    """The images of a pack by their names in the folder, in its order, each with its label, NO_LABEL for none."""

    labels: dict[str, int] = field(default_factory=dict)
    category: tuple[str, ...] = ()
    unreadable: list[str] = field(default_factory=list)
    known: int = 0  # left out


def pack_key(*packs: Pack) -> str:
    """Return a name for the content of packs: it changes where their shards do. Raises OSError."""
    shards = [Path(path).absolute() for pack in packs for path in pack.shards]
    text = "\n".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in shards)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def unpack(pattern: str, folder: Path, *, needs_label: bool, known: Container[str] = ()) -> Unpacked:
    """Write the images of a pack into a folder, each called by the sha256 of its bytes, and return them.

    An image whose checksum is in `known` is left out. Raises ListError, and OSError.
    """
    category = find_pack(pattern).category
    samples = read_pack(pattern, ClassLabel(len(category), category), needs_target=needs_label).samples
    found = Unpacked(category=category)
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        try:
            content = content_of(sample.path)
            assert isinstance(content, bytes)
            decode(content, 3)
        except ImageError as error:
            found.unreadable.append(f"{sample.path}: {error}")
            continue
        checksum, suffix = hashlib.sha256(content).hexdigest(), Path(file_of(sample.path)).suffix.lower()
        name = checksum + (suffix if suffix in IMAGE_SUFFIXES else USUAL_SUFFIX)
        if checksum in known:
            found.known += 1
            continue
        if not (folder / name).exists():
            write_atomic(folder / name, content, durable=False)
        found.labels[name] = sample.target if isinstance(sample.target, int) else NO_LABEL
    return found


def join_packs(patterns: Sequence[str], target: Path, prefix: str) -> str:
    """Make one pack of several, whose shards are theirs by new names, linked or copied; return its pattern.

    Its meta.json is written last: with it all is there. Raises DatasetError for packs of different classes, ListError,
    and OSError.
    """
    packs = [find_pack(pattern) for pattern in patterns]
    pattern = f"{target.as_posix()}/{prefix}-*{ENDING}"
    for other, name in zip(packs, patterns, strict=True):
        if other.category != packs[0].category:
            hint = "pack them with the same classes in the same order"
            raise DatasetError(f"{name}: its classes are not those of {patterns[0]}; {hint}")
    if (target / (prefix + META_ENDING)).is_file():
        return pattern
    sources = [Path(path) for pack in packs for path in pack.shards]
    sums = {name: text for pattern in patterns for name, text in _checksums(pattern).items()}
    shards = Shards(tuple(len(open_shard(str(path))) for path in sources), prefix)
    entries: list[dict[str, Any]] = []
    for number, source in enumerate(sources):
        name = shards.name(number)
        index = Path(str(source).removesuffix(ENDING) + INDEX_ENDING)
        place_file(source, target / (name + ENDING), overwrite=True)
        if index.is_file():
            place_file(index, target / (name + INDEX_ENDING), overwrite=True)
        entry = {"file": name + ENDING, "records": shards.sizes[number], "bytes": source.stat().st_size}
        entries.append(entry | {"sha256": sums.get(str(source)) or file_sha256(source)})
    write_meta(target, shards, entries, packs[0].category, Outcome())
    return pattern


def _checksums(pattern: str) -> dict[str, str]:
    """Return the sha256 of each shard of a pack, as its meta.json has it."""
    meta = Path(pattern.removesuffix(f"-*{ENDING}") + META_ENDING)
    if not meta.is_file():
        return {}
    content = json.loads(meta.read_text(encoding="utf-8"))
    return {str(meta.parent / entry["file"]): str(entry.get("sha256", "")) for entry in content["shards"]}
