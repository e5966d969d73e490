"""Standard annotations with odd records, and their images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.files import write_annotations

CATEGORY = ["heron", "tern", "鹭"]
RING = [[31.5, 40.0], [60.25, 40.0], [45.0, 47.125]]
HOLES = [RING, [[33.0, 41.0], [40.0, 41.0], [40.0, 44.0], [33.0, 44.5]]]


def picture(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0, **kwargs: Any) -> Path:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **kwargs)
    return path


def records_of(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, or of annotation.json in a folder, every key."""
    path = path / "annotation.json" if path.is_dir() else path
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def odd_records() -> list[dict[str, Any]]:
    """Return records with boxes, rings, joints, labels, and Chinese names and spaces in their paths."""
    size = {"width": 64, "height": 48}
    box = {"bboxes": [[31.5, 40.0, 60.25, 47.125]], "labels": [1], "label_names": ["tern"]}
    joints = {"joints2d": [[[5, 6], [0, 0], [7.5, 8]]], "has_joints2d": [1], "joints_vis": [[2, 0, 1]]}
    two = {
        "bboxes": [[0, 0, 1e-3, 48], [1 / 3, 2 / 3, 10.1, 20.7]],
        "labels": [2, 0],
        "label_names": ["鹭", "heron"],
        "segments": [HOLES, []],
        "has_segments": [1, 0],
    }
    return [
        {"image_file": "池塘/照 片 1.jpg", **size, **box, "tag": "pond", "clip_tag": "a", "timestamp": "0.5"},
        {"image_file": "b/100%.jpg", **size, **box, "segments": [RING], "has_segments": [1], "cam_name": "c"},
        {"image_file": "b/#1&2+3?.jpg", **size, **two, "image_label": 2, "image_label_name": "鹭"},
        {"image_file": "joints.jpg", **size, **box, **joints},
        {"image_file": "label.jpg", **size, "image_label": 0, "image_label_name": "heron", "own_key": {"a": [1]}},
        {"image_file": "empty.jpg", **size},
    ]


def write_set(folder: Path, records: list[dict[str, Any]] | None = None) -> Path:
    """Write annotation.json with its images; return its path."""
    records = odd_records() if records is None else records
    for number, record in enumerate(records):
        picture(folder / record["image_file"], (record["width"], record["height"]), number)
    return write_annotations(folder, records, CATEGORY)


def assert_close(first: Any, second: Any) -> None:
    """Compare JSON values; numbers within 1e-6."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        first, second = list(first.values()), list(second.values())
    if isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_close(one, other)
    elif isinstance(first, float) or isinstance(second, float):
        assert abs(first - second) <= 1e-6
    else:
        assert first == second
