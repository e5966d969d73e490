"""CIFAR-10's archive: its pixels as class folders, and archives that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.cifar import unpack_cifar10
from datasets.errors import DatasetError
from tests.helpers.cifar import CIFAR_NAMES, write_cifar10


def test_pixels_and_labels_come_out_as_they_went_in(tmp_path: Path) -> None:
    images = write_cifar10(tmp_path / "a.tar.gz")
    unpack_cifar10(tmp_path / "a.tar.gz", tmp_path / "a")
    for number, image in enumerate(images):
        with Image.open(tmp_path / "a/test" / CIFAR_NAMES[number % 10] / f"{number:05}.png") as file:
            assert np.array_equal(np.asarray(file), np.moveaxis(image, 0, 2))
    assert len(list(tmp_path.rglob("train/*/*.png"))) == 50 and sorted(CIFAR_NAMES) == sorted(
        path.name for path in (tmp_path / "a/train").iterdir()
    )
    unpack_cifar10(tmp_path / "a.tar.gz", tmp_path / "a")  # it stays
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.tar.gz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_batch": b"\0" * 100}, "test_batch.bin has 100 bytes, which are no records of 3073"),
        ({"test_batch": b"\x0c" + b"\0" * 3072}, "test_batch.bin has label 12, but batches.meta.txt has 10 classes"),
        ({"batches.meta": b"../cat\ndog\n"}, "batches.meta.txt must have a class name a line, got ['../cat', 'dog']"),
    ],
)
def test_a_damaged_archive_is_a_sentence(tmp_path: Path, changes: dict[str, bytes], message: str) -> None:
    write_cifar10(tmp_path / "a.tar.gz", **changes)
    with pytest.raises(DatasetError) as caught:
        unpack_cifar10(tmp_path / "a.tar.gz", tmp_path / "a")
    assert str(caught.value) == f"{tmp_path / 'a.tar.gz'}: {message}"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_what_is_no_archive_is_a_sentence(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    write_cifar10(archive)
    content = archive.read_bytes()
    for cut, message in ((content[: len(content) // 2], "not a whole .tar.gz file"), (b"text", "not a whole .tar.gz")):
        archive.write_bytes(cut)
        with pytest.raises(DatasetError, match=message):
            unpack_cifar10(archive, tmp_path / "a")
    with pytest.raises(DatasetError, match=r"b\.tar\.gz: the archive is not there"):
        unpack_cifar10(tmp_path / "b.tar.gz", tmp_path / "b")
