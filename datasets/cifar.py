"""CIFAR-10's archive of binary batches as class folders of PNG files: https://www.cs.toronto.edu/~kriz/cifar.html."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from common.atomic_io import move_into_place, temporary_path, writing
from data_loader.samples import current_folder
from datasets.errors import DatasetError

ENDING = ".tar.gz"
SIZE = 32
RECORD = 1 + 3 * SIZE * SIZE  # bytes: the label, then the red, green and blue values, each row by row
NAMES = "batches.meta.txt"
SPLITS = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}


def unpack_cifar10(archive: Path, folder: Path) -> None:
    """Write `folder/{train,test}/CLASS/NUMBER.png`; a folder that is there already was written whole, and stays.

    Of the archive only the files that CIFAR-10 has are read, whatever else it holds. Raises DatasetError for an archive
    that is not CIFAR-10's binary version, and ResultsError.
    """
    if not archive.is_file():
        raise DatasetError(f"{archive}: the archive is not there{current_folder(str(archive))}")
    if folder.is_dir():
        return
    temporary = temporary_path(folder)
    with writing(folder):
        try:
            _write(archive, temporary)
            move_into_place(temporary, folder, durable=False)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(archive: Path, folder: Path) -> None:
    files = _read(archive)
    names = [line.strip() for line in files[NAMES].decode("utf-8", "replace").splitlines() if line.strip()]
    if any(not name.isidentifier() for name in names) or len(set(names)) < len(names):
        raise DatasetError(f"{archive}: {NAMES} must have a class name a line, got {names[:5]}")
    for split, batches in SPLITS.items():
        for name in names:
            (folder / split / name).mkdir(parents=True)
        number = 0
        for batch in batches:
            for label, pixels in _records(archive, batch, files[batch]):
                if label >= len(names):
                    raise DatasetError(f"{archive}: {batch} has label {label}, but {NAMES} has {len(names)} classes")
                Image.fromarray(pixels).save(folder / split / names[label] / f"{number:05}.png")
                number += 1


def _read(archive: Path) -> dict[str, bytes]:
    """Return the content of the files by name. Raises DatasetError."""
    wanted = {NAMES, *(batch for batches in SPLITS.values() for batch in batches)}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in wanted and member.isfile() and (file := tar.extractfile(member)):
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DatasetError(f"{archive}: not a whole {ENDING} file: {error}") from error
    if missing := sorted(wanted - found.keys()):
        hint = "CIFAR-10 binary version is the archive that has them"
        raise DatasetError(f"{archive}: {missing[0]} and {len(missing) - 1} more are not in it; {hint}")
    return found


def _records(archive: Path, batch: str, content: bytes) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each label with its pixels, uint8 (32, 32, 3). Raises DatasetError."""
    if not content or len(content) % RECORD:
        raise DatasetError(f"{archive}: {batch} has {len(content)} bytes, which are no records of {RECORD}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, RECORD)  # (N, 3073)
    images = rows[:, 1:].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
    for label, pixels in zip(rows[:, 0].tolist(), images, strict=True):
        yield label, np.ascontiguousarray(pixels)
