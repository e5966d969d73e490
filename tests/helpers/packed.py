"""The tests' small images in packs, and trainings of them."""

from __future__ import annotations

import json
from pathlib import Path

import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from datasets.files import write_annotations
from tests.conftest import CLASSES
from tools import antgo


def pack(source: Path, target: Path, prefix: str, num: int = 5) -> str:
    """Pack annotations; return the pattern of the shards."""
    words = ["--src", str(source), "--tgt", str(target), "--prefix", prefix, "--num", str(num)]
    assert antgo.main(["package/tfrecord", *words]) == 0
    return str(target / f"{prefix}-*-tfrecord")


def packed_dataset(dataset: Path, num: int = 5) -> dict[str, str]:
    """Pack both lists of the fixture; return the config's keys that name them."""
    keys = {}
    for split in ("train", "val"):
        rows = [line.split("----") for line in (dataset / f"{split}.txt").read_text().splitlines()]
        records = [{"image_file": path, "image_label": int(label)} for path, label in rows]
        source = write_annotations(dataset / "images", records, CLASSES, name=f"{split}.json")
        keys[f"{split}_data_file"] = pack(source, dataset / "packs", split, num)
    return keys


def without_roots(config: Path) -> Path:
    """Take the root folders out of a config, which packs do not need."""
    values = json.loads(config.read_text())
    del values["train_data_root_dir"], values["val_data_root_dir"]
    config.write_text(json.dumps(values))
    return config


def trained(config: Path, *flags: str) -> str:
    """Train a config; return the sha256 of its last weights."""
    assert train.main(["--config", str(config), *flags]) == 0
    folder = Path(json.loads(config.read_text())["save_path"])
    return weights_sha256(load_checkpoint(folder / "net_last.pth").net)
