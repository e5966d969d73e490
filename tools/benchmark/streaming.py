"""What the sides of `tools.benchmark stream` read: the same images in the same order, in packs and in tar files."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.schema import Config
from data_loader.packs import ENDING
from data_loader.samples import read_class_folders
from datasets.outcome import Outcome
from datasets.packing import divide, write_meta, write_tfrecords
from tools.benchmark.range_server import served

PACK = "train"


@contextmanager
def served_shards(config: Config, folder: Path, *, copies: int, num: int) -> Iterator[tuple[str, list[str]]]:
    """Pack a config's training images into shards of `num`; yield the pack's address, and those of the tar files."""
    found = read_class_folders(config.train_data_root_dir)
    images = [(Path(sample.path).resolve(), sample.label) for sample in found.samples for _ in range(copies)]
    random.Random(config.seed).shuffle(images)
    rows = [({"image_file": str(path), "image_label": label}, Path("/")) for path, label in images]
    shards = divide(len(rows), num, PACK)
    folder.mkdir()
    entries = write_tfrecords(rows, folder, shards, with_heads=True)
    write_meta(folder, shards, entries, found.class_names, Outcome(False))
    names = [f"{shards.name(number)}.tar" for number in range(len(shards.sizes))]
    for name, part in zip(names, shards.ranges(), strict=True):
        with tarfile.open(folder / name, "w") as tar:
            for index in part:
                path, label = images[index]
                _add(tar, f"{index:08}.jpg", path.read_bytes())
                _add(tar, f"{index:08}.cls", str(label).encode())
    with served(folder) as address:
        yield f"{address}/{PACK}-*{ENDING}", [f"{address}/{name}" for name in names]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
