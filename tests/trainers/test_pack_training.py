"""Training from packs: the same weights as from files, to the bit, and every mistake of a pack as a sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from artifacts.checkpoint import load_checkpoint
from artifacts.sample_sources import config_samples, has_data
from configs.loading import process_config
from data_loader import remote_files, remote_packs
from data_loader.box_target import BoxTarget
from data_loader.cache import Fitting
from data_loader.pack_list import read_pack
from data_loader.preprocess import Preprocess
from data_loader.targets import ClassLabel
from datasets.files import write_annotations
from tests.conftest import CLASSES
from tests.helpers import boxes, masks
from tests.helpers.breaking import dying_after_save
from tests.helpers.packed import pack, packed_dataset, trained, without_roots
from tools import antgo
from tools.doctor.__main__ import main as doctor

pytest.importorskip("crc32c")

ConfigMaker = Callable[..., Path]


@pytest.mark.parametrize(
    "changes", [{"data_cache": "disk"}, pytest.param({}, marks=pytest.mark.slow)], ids=["cached", "decoded"]
)
def test_labels_from_packs_are_those_of_files(
    dataset: Path, make_config: ConfigMaker, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = {"data_cache_dir": str(dataset / "cache"), **changes} if changes else {}
    from_files = trained(make_config(save_path=str(dataset / "files"), num_epochs=1, **cache))
    keys = packed_dataset(dataset)
    (dataset / "images").rename(dataset / "gone")
    (dataset / "classes.txt").unlink()
    config = without_roots(make_config(save_path=str(dataset / "packed"), num_epochs=1, **cache, **keys))
    assert trained(config) == from_files
    loaded = load_checkpoint(dataset / "packed/net.pth")
    assert tuple(loaded.metadata.class_names) == tuple(CLASSES)  # of P-meta.json
    worst = json.loads((dataset / "packed/report.json").read_text())
    assert "val-00000-of-00002-tfrecord#" in json.dumps(worst)


class InterruptedError_(Exception):
    """What stands in for a kill."""


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_bit(
    dataset: Path, make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its packs lie at an address, which answers no more when it goes on; the other's on the disk."""
    fsspec = pytest.importorskip("fsspec")
    keys = packed_dataset(dataset)
    whole = trained(make_config(save_path=str(dataset / "whole"), **keys))
    system = fsspec.filesystem("memory")
    system.put(str(dataset / "packs"), "/remote/packs", recursive=True)
    (dataset / "packs").rename(dataset / "gone")
    keys = {key: pattern.replace(f"{dataset}/", "memory://remote/") for key, pattern in keys.items()}
    changes = {
        "save_path": str(dataset / "stopped"),
        "data_cache_dir": str(dataset / "cache"),
        "save_interval_steps": 1,
    }
    config = without_roots(make_config(**changes, **keys))
    try:
        with pytest.raises(InterruptedError_), dying_after_save(4, InterruptedError_):
            train.main(["--config", str(config)])
    finally:
        system.rm("/remote", recursive=True)
    monkeypatch.setattr(remote_files, "PAUSES_S", ())
    monkeypatch.setattr(type(system), "cat_file", unreachable)
    remote_packs._fetched.cache_clear()
    assert trained(config, "--resume") == whole
    assert "what was fetched earlier is used" in capsys.readouterr().err


def unreachable(self: Any, path: str, **options: Any) -> bytes:
    raise ConnectionError("no route to host")


@pytest.mark.slow
def test_a_damaged_record_is_named(dataset: Path, make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]) -> None:
    keys = packed_dataset(dataset)
    shard = dataset / "packs/train-00001-of-00005-tfrecord"
    offset, length = (int(text) for text in shard.with_name("train-00001-of-00005-index").read_text().split()[2:4])
    data = bytearray(shard.read_bytes())
    data[offset + length // 2] ^= 1
    shard.write_bytes(data)
    assert train.main(["--config", str(make_config(**keys))]) == 2
    assert f"record 1 at byte {offset} of {shard} is damaged: its checksum" in capsys.readouterr().err
    assert train.main(["--config", str(make_config(**keys, bad_images="skip", max_bad_share=0.1, num_epochs=1))]) == 0
    assert "1 of 21 images cannot be read and are skipped" in capsys.readouterr().out


def test_mistakes(dataset: Path, make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]) -> None:
    keys = packed_dataset(dataset)
    records = [{"image_file": "train/00.png"}, {"image_file": "train/01.png", "image_label": 1}]
    source = write_annotations(dataset / "images", records, CLASSES, name="x.json")
    other = write_annotations(
        dataset / "images/other", [records[1] | {"image_file": "1.png", "image_label_name": ""}], ["gull", "square"]
    )
    (dataset / "images/other/1.png").write_bytes((dataset / "images/train/01.png").read_bytes())
    unlabelled = pack(source, dataset / "packs", "unlabelled")
    gulls = pack(other, dataset / "packs", "gulls")
    for changes, sentence in (
        ({"train_data_file": unlabelled}, "unlabelled-00000-of-00001-tfrecord#0: it has no image_label"),
        ({"val_data_file": gulls}, 'its class "square" is none of circle'),
        ({"train_data_file": str(dataset / "none-*-tfrecord")}, "fits no shard; in "),
        ({"num_classes": 4}, "3 classes, but num_classes is 4"),
    ):
        (dataset / "classes.txt").unlink(missing_ok=True)
        assert train.main(["--config", str(make_config(**{**keys, **changes}))]) == 2
        assert sentence in capsys.readouterr().err
    assert [sample.label for sample in read_pack(unlabelled, ClassLabel(3), needs_target=False).samples] == [-1, 1]


@pytest.mark.slow
def test_the_doctor_and_exports_read_packs(
    dataset: Path, make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = packed_dataset(dataset)
    config = without_roots(make_config(**keys))
    assert doctor(["--config", str(config), "--output", str(dataset / "doctor"), "--workers", "0", "--skip_step"]) == 0
    report = json.loads((dataset / "doctor/doctor.json").read_text())
    assert "another format than its ending" not in json.dumps(report)
    assert doctor(["--config", str(config), "--output", str(dataset / "fixed"), "--fix", str(dataset / "fix")]) == 2
    assert "these images lie in packs" in capsys.readouterr().err
    read = process_config(config)
    assert has_data(read.val_data_file, read.val_data_root_dir)
    assert not has_data(str(dataset / "none-*-tfrecord"), ".")
    trained(config)
    metadata = load_checkpoint(dataset / "weights/net.pth").metadata
    found = config_samples(read.val_data_file, read.val_data_root_dir, read, metadata)
    assert [sample.label for sample in found.samples] == [0, 1, 2] * 3


def test_masks_from_packs_are_those_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with masks.mask_nets(tmp_path, monkeypatch):
        masks.write_scenes(tmp_path, train=6, valid=3)
        names = [entry["name"] for entry in json.loads((tmp_path / "classes.json").read_text())]
        from_files = trained(masks.write_config(tmp_path, save_path=str(tmp_path / "files")))
        keys = {}
        for split, key in (("train", "train"), ("valid", "val")):
            paths = sorted(path.name for path in (tmp_path / split / "images").iterdir())
            records = [{"image_file": f"images/{name}", "semantic_file": f"labels/{name}"} for name in paths]
            source = write_annotations(tmp_path / split, records, names)
            keys[f"{key}_data_file"] = pack(source, tmp_path / "packs", split)
        (tmp_path / "packs/classes.json").write_bytes((tmp_path / "classes.json").read_bytes())  # values and colours
        config = without_roots(masks.write_config(tmp_path, save_path=str(tmp_path / "packed"), **keys))
        assert trained(config) == from_files


def test_boxes_from_packs_are_those_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with boxes.box_nets(tmp_path, monkeypatch):
        boxes.write_boxes(tmp_path, train=6, valid=3)
        from_files = trained(boxes.write_config(tmp_path, save_path=str(tmp_path / "files")))
        keys = {}
        for split, key in (("train", "train"), ("valid", "val")):
            words = ["--src", str(tmp_path / split), "--tgt", str(tmp_path / "set" / split), "--tags", "blue,red"]
            assert antgo.main(["extract/voc", *words]) == 0
            keys[f"{key}_data_file"] = pack(tmp_path / "set" / split / "annotation.json", tmp_path / "packs", split)
        config = without_roots(boxes.write_config(tmp_path, save_path=str(tmp_path / "packed"), **keys))
        assert trained(config) == from_files
        read = BoxTarget(2)
        samples = read.completed(read_pack(keys["val_data_file"], read))
        assert samples.class_names == ("blue", "red")
        np.testing.assert_allclose(samples.samples[0].target.boxes, [box for _, *box in boxes.scene(100)[1]])


def test_a_rewritten_pack_has_another_cache(dataset: Path) -> None:
    keys = packed_dataset(dataset)
    fitting = Fitting(Preprocess(32, 32))
    samples = read_pack(keys["train_data_file"], ClassLabel(3))
    before = fitting.file_name(samples)
    assert fitting.file_name(samples) == before
    os.utime(dataset / "packs/train-00002-of-00005-tfrecord", ns=(1, 1))
    assert fitting.file_name(samples) != before
