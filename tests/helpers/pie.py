"""Requests of the PIE-Engine platform on small scenes, trained by small nets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from platforms.pie_engine import nets, train
from platforms.pie_engine.nets import CHANGE, DETECTION, SEGMENTATION, Net
from tests.helpers import boxes, masks

LABELS = {
    SEGMENTATION: [
        {"class_name": "background", "class_value": 0, "class_title": "背景", "class_color": "155,155,155"},
        {"class_name": "road", "class_value": 3, "class_title": "道路", "class_color": "110,193,228"},
        {"class_name": "water", "class_value": 7, "class_title": "水体", "class_color": "0,0,255"},
    ],
    CHANGE: [{"class_name": "change", "class_value": 255, "class_title": "变化", "class_color": "255,255,255"}],
    DETECTION: [
        {"class_name": "red", "class_value": 1, "class_title": "红", "class_color": "255,0,0"},
        {"class_name": "blue", "class_value": 2, "class_title": "蓝", "class_color": "0,0,255"},
    ],
}
MODELS = {SEGMENTATION: "LinkNet34", CHANGE: "siamese", DETECTION: "yolov4"}
PICTURES = {
    SEGMENTATION: {"image.png", "label.png", "pred.png"},
    CHANGE: {"A.png", "B.png", "label.png", "pred.png"},
    DETECTION: {"pred.png"},
}


@contextmanager
def small_nets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train small nets under the names of the platform's, and export nothing; the current folder is folder/run."""
    tiny = {
        SEGMENTATION: {"model_module_name": "tiny_masks_module", "model_net_name": "TinyMasks"},
        CHANGE: {"model_module_name": "tiny_masks_module", "model_net_name": "TinyChange"},
        DETECTION: {
            **{"model_module_name": "tiny_boxes_module", "model_net_name": "TinyBoxes", "model_type": ""},
            **{"train_mode": "fromscratch", "pretrained_file": ""},
        },
    }
    for_all = {"precision": "fp32", "dataloader_workers": 0}
    small = {task: (Net(nets.NETS[task][0].names, {**keys, **for_all}),) for task, keys in tiny.items()}
    monkeypatch.setattr(nets, "NETS", small)
    monkeypatch.setattr(train, "EXPORTS", ())
    (folder / "run").mkdir()
    monkeypatch.chdir(folder / "run")
    with masks.mask_nets(folder, monkeypatch):
        (folder / "nets/tiny_boxes_module.py").write_text(boxes.NET, encoding="utf-8")
        yield
    sys.modules.pop("nets.tiny_boxes_module", None)


def write_data(folder: Path, task: str) -> Path:
    """Write a task's scenes; return their folder."""
    folder.mkdir()
    if task == DETECTION:
        return boxes.write_boxes(folder)
    return masks.write_scenes(folder, has_pairs=task == CHANGE)


def request(task: str, data: Path, **changes: Any) -> None:
    """Write traincfg.json into the current folder."""
    side = "64" if task == DETECTION else "32"
    values: dict[str, Any] = {
        "training_id": "训练 1",
        "dataset_id": "",
        "dataset_path": str(data),
        "class_name": ",".join(row["class_name"] for row in LABELS[task]),
        "label": json.dumps(LABELS[task], ensure_ascii=False),
        "n_class": len([row for row in LABELS[task] if row["class_name"] != "background"]),
        "load_size": side,
        "model_name": MODELS[task],
        "learning_rate": "0.01",
        "epochs": 2,
        "batch_size": 4,
        "gpu_num": 0,
        "resume_path": "",
    }
    kept = {key: value for key, value in (values | changes).items() if value is not ...}
    Path("traincfg.json").write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


def training_log() -> dict[str, Any]:
    text = Path("output/trainlog.json").read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert text == json.dumps(values, ensure_ascii=False, indent=4) + "\n"
    return values
