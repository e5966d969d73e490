"""Packs unpacked into images under their checksums, and several packs as one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from data_loader.pack_list import read_pack
from data_loader.packed_images import content_of
from data_loader.packs import find_pack
from data_loader.samples import NO_LABEL
from data_loader.targets import ClassLabel
from datasets.errors import DatasetError
from datasets.files import write_annotations
from datasets.unpacking import join_packs, pack_key, unpack
from tests.conftest import write_image
from tools import antgo

NAMES = ("a", "花")


def write_pack(folder: Path, name: str, count: int, seed: int, names: tuple[str, ...] = NAMES, num: int = 100) -> str:
    records = []
    for number in range(count):
        write_image(folder / name / f"{number}.png", number % 2, seed + number)
        label = {} if name == "pond" else {"image_label": number % 2, "image_label_name": names[number % 2]}
        records.append({"image_file": f"{number}.png", **label})
    write_annotations(folder / name, records, names)
    words = ["--src", str(folder / name), "--tgt", str(folder), "--prefix", name, "--num", str(num)]
    assert antgo.main(["package/tfrecord", *words]) == 0
    return f"{folder}/{name}-*-tfrecord"


def test_images_are_called_by_their_checksums(tmp_path: Path) -> None:
    pattern = write_pack(tmp_path, "spring", 4, 0)
    sums = [hashlib.sha256((tmp_path / f"spring/{n}.png").read_bytes()).hexdigest() for n in range(4)]
    found = unpack(pattern, tmp_path / "out", needs_label=True, known={sums[1]})
    assert found.category == NAMES and found.known == 1 and not found.unreadable
    assert found.labels == {f"{sums[0]}.png": 0, f"{sums[2]}.png": 0, f"{sums[3]}.png": 1}
    for name in found.labels:
        content = (tmp_path / "out" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == name.removesuffix(".png")
    pond = unpack(write_pack(tmp_path, "pond", 2, 0), tmp_path / "pool", needs_label=False)
    assert list(pond.labels.values()) == [NO_LABEL, NO_LABEL]


def test_a_damaged_image_is_told(tmp_path: Path) -> None:
    pattern = write_pack(tmp_path, "spring", 3, 0)
    (shard,) = find_pack(pattern).shards
    content = bytearray(Path(shard).read_bytes())
    content[-40] ^= 1
    Path(shard).write_bytes(content)
    found = unpack(pattern, tmp_path / "out", needs_label=True)
    assert len(found.labels) == 2 and "record 2 at byte" in found.unreadable[0]


def test_several_packs_are_one(tmp_path: Path) -> None:
    patterns = [write_pack(tmp_path, "spring", 5, 0, num=2), write_pack(tmp_path, "summer", 3, 50)]
    before = pack_key(*map(find_pack, patterns))
    joined = join_packs(patterns, tmp_path / "joined", "all")
    assert joined == f"{tmp_path}/joined/all-*-tfrecord"
    parts, whole = [read_pack(each, ClassLabel(2, NAMES)).samples for each in patterns], find_pack(joined)
    samples = read_pack(joined, ClassLabel(2, NAMES)).samples
    assert [(content_of(each.path), each.target) for each in samples] == [
        (content_of(each.path), each.target) for part in parts for each in part
    ]
    meta = json.loads((tmp_path / "joined/all-meta.json").read_text(encoding="utf-8"))
    assert meta["total"] == 8 and len(whole.shards) == 4 and whole.category == NAMES
    sums = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in whole.shards]
    assert [entry["sha256"] for entry in meta["shards"]] == sums
    assert join_packs(patterns, tmp_path / "joined", "all") == joined
    assert pack_key(*map(find_pack, patterns)) == before
    write_pack(tmp_path / "other", "summer", 3, 50)
    assert pack_key(find_pack(f"{tmp_path}/other/summer-*-tfrecord")) != pack_key(find_pack(patterns[1]))


def test_packs_of_other_classes_are_refused(tmp_path: Path) -> None:
    patterns = [write_pack(tmp_path, "spring", 2, 0), write_pack(tmp_path, "summer", 2, 9, names=("花", "a"))]
    with pytest.raises(DatasetError, match=r"its classes are not those of .*spring.*; pack them with the same classes"):
        join_packs(patterns, tmp_path / "joined", "all")
    assert not (tmp_path / "joined").exists()
