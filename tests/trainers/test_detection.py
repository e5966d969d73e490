"""Detection under the one loop: it learns, resumes to the bit, and leaves its report."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from artifacts.detections import NMS_IOU
from common.paths import ROOT
from configs.loading import process_config
from nets import net_interface
from tests.conftest import slow_but
from tests.helpers.boxes import NAMES, box_nets, scene, voc, write_boxes, write_coco, write_config
from tests.helpers.breaking import dying_after_save, kill_training, results_of
from trainers import builder
from trainers.data.reading import read_data
from trainers.runtime.distributed import World

OWN_NETS = net_interface.NETS_DIR
VIEWS: dict[str, Any] = {
    "random_crop_scale": [0.5, 1.0],
    "random_crop_ratio": [0.8, 1.25],
    "vertical_flip": 0.5,
    "quarter_turns": True,
    "balanced_crops": 0.5,
    "mosaic": 0.4,
    "mixup_boxes": 0.5,
    "img_width": 64,
}


@pytest.fixture(autouse=True)
def tiny_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with box_nets(tmp_path, monkeypatch):
        yield


def run_train(config: Path, *args: str) -> int:
    return train.main(["--config", str(config), *args])


def test_it_learns_and_leaves_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_boxes(tmp_path, train=24, valid=8)
    config = write_config(tmp_path, num_epochs=24, validation_interval=8, is_tensorboard=True, ema_decay=0.5)
    assert run_train(config) == 0
    out = capsys.readouterr().out
    assert "24 training and 8 validation images, 2 classes" in out and "train: objects: blue " in out
    best, last = (load_checkpoint(tmp_path / f"weights/{name}.pth") for name in ("net", "net_last"))
    values = [point["map50"] for point in last.progress["curves"]["val"]]
    assert best.progress["best"]["map50"] == max(values) > 0.8
    assert f"best mAP at IoU 0.5 {max(values):.2%} in epoch" in out and "  F1 " in out
    metadata = best.metadata
    assert (metadata.task, metadata.output, metadata.class_names) == ("detection", "boxes", NAMES)
    assert [found.name for found in metadata.mask_classes] == list(NAMES)
    report = json.loads((tmp_path / "weights/report.json").read_text(encoding="utf-8"))
    assert report["task"] == "detection" and report["best"]["map50"] == max(values)
    assert metadata.thresholds == {"nms_iou": NMS_IOU, "score": float(dict(report["rows"])["score threshold"])}
    truths = [name for number in range(100, 107) for name, *_ in scene(number)[1]]
    assert [row["support"] for row in report["per_class"]] == [truths.count(name) for name in NAMES]
    assert report["best"]["map50"] == pytest.approx(np.mean([row["ap50"] for row in report["per_class"]]))
    for row, curve in zip(report["per_class"], report["precision_recall"], strict=True):
        assert len(curve) == 101 and np.mean(curve) == pytest.approx(row["ap50"], abs=1e-4)
    page = (tmp_path / "weights/report.html").read_text(encoding="utf-8")
    assert "<h2>Precision and recall</h2>" in page and page.count('class="dot curve') == 2
    assert ">AP50</button>" in page and ">Objects<" in page and "IoU 0.5 to 0.95" in page
    assert all(page.count(row["path"]) >= 2 for row in report["worst"])
    events = min((tmp_path / "logs").rglob("events.out.tfevents.*"), key=lambda file: int(file.suffix[1:]))
    accumulator = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    assert {"val/worst", "val/precision_recall", "train/pictures"} == set(accumulator.Tags()["images"])
    tags = {"val/map50", "val/map50_95", "val/ap50_red", "val/f1", "val/score_threshold", "train/class_loss"}
    assert tags <= set(accumulator.Tags()["scalars"])


def test_coco_and_voc_train_alike(tmp_path: Path) -> None:
    write_boxes(tmp_path, train=6, valid=3)
    coco = write_coco(tmp_path)
    assert run_train(write_config(tmp_path, save_path=str(tmp_path / "voc"))) == 0
    roots = {"train_data_root_dir": str(coco / "train"), "val_data_root_dir": str(coco / "valid")}
    assert run_train(write_config(tmp_path, **roots, save_path=str(tmp_path / "coco"))) == 0
    files = {
        f"{split}_data_file": str(coco / folder / "_annotations.coco.json")
        for split, folder in (("train", "train"), ("val", "valid"))
    }
    assert run_train(write_config(tmp_path, **roots, **files, save_path=str(tmp_path / "files"))) == 0
    ends = [load_checkpoint(tmp_path / name / "net_last.pth") for name in ("voc", "coco", "files")]
    assert len({weights_sha256(end.net) for end in ends}) == 1
    assert [[found.value for found in end.metadata.mask_classes] for end in ends] == [[0, 1], [3, 7], [3, 7]]


def test_one_class_alone(tmp_path: Path) -> None:
    write_boxes(tmp_path, train=4, valid=2)
    for path in tmp_path.rglob("*.xml"):
        path.write_text(path.read_text(encoding="utf-8").replace("blue", "red"), encoding="utf-8")
    assert run_train(write_config(tmp_path, num_classes=1, num_epochs=1)) == 0
    assert load_checkpoint(tmp_path / "weights/net.pth").metadata.class_names == ("red",)


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """To the bit, with batch norm, an average, accumulation and every view: in an epoch and at its end."""
    write_boxes(tmp_path, train=9, valid=3)
    changes = {**VIEWS, "ema_decay": 0.9, "accumulation_steps": 2, "num_epochs": 3, "log_interval": 1}
    assert run_train(write_config(tmp_path, **changes, save_path=str(tmp_path / "whole"))) == 0
    whole = load_checkpoint(tmp_path / "whole/net_last.pth")
    for stop_at in (1, 2):  # a step is two batches of 4 and 5, an epoch is one step
        folder = tmp_path / f"stopped_at_{stop_at}"
        config = write_config(tmp_path, **changes, save_path=str(folder), save_interval_steps=1)
        with dying_after_save(stop_at, KeyboardInterrupt):
            assert run_train(config) == 130
        torch.manual_seed(99)
        assert run_train(config, "--resume") == 0
        resumed = load_checkpoint(folder / "net_last.pth")
        assert weights_sha256(whole.net) == weights_sha256(resumed.net)
        assert weights_sha256(whole.deployed()) == weights_sha256(resumed.deployed())
        assert whole.progress["curves"] == resumed.progress["curves"]
        assert whole.metadata.thresholds == resumed.metadata.thresholds


@pytest.mark.parametrize("workers", slow_but([2], [0, 2]))
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, workers: int) -> None:
    """By SIGKILL, at a moment that nothing waits for."""
    write_boxes(tmp_path, train=9, valid=3)
    config = write_config(tmp_path, **VIEWS, ema_decay=0.9, num_epochs=4, log_interval=1, save_interval_steps=1)
    before = time.perf_counter()
    assert run_train(config, "--set", f"save_path={tmp_path / 'whole'}") == 0
    seconds = time.perf_counter() - before
    found = kill_training(tmp_path / "killed", config, 1, workers, results_of(tmp_path / "whole"), seconds)
    assert (found["kills"], found["unloadable"], found["ended otherwise"]) == (1, 0, 0), found.get("output")


def test_the_same_bits_with_loader_processes(tmp_path: Path) -> None:
    write_boxes(tmp_path, train=5, valid=3)
    ends = []
    for workers in (0, 2):
        folder = tmp_path / f"workers_{workers}"
        assert run_train(write_config(tmp_path, **VIEWS, dataloader_workers=workers, save_path=str(folder))) == 0
        ends.append(weights_sha256(load_checkpoint(folder / "net_last.pth").net))
    assert ends[0] == ends[1]


def test_accumulated_batches_equal_the_big_batch(tmp_path: Path) -> None:
    """Although the images have other numbers of objects, and one has none."""
    write_boxes(tmp_path, train=8, valid=2)
    results = []
    for size, steps in ((8, 1), (2, 4)):
        config = write_config(
            tmp_path, model_args={"norm": False}, batch_size=size, accumulation_steps=steps, num_epochs=1,
            optimizer="sgd",
        )  # fmt: skip
        assert run_train(config) == 0
        results.append(load_checkpoint(tmp_path / "weights/net_last.pth").net)
    start = builder.build_start_net(process_config(config), lambda text: None).state_dict()
    moved = max(float((results[0][name] - start[name]).abs().max()) for name in start)
    apart = max(float((results[0][name] - results[1][name]).abs().max()) for name in start)
    assert apart < moved / 1000


IN_TWO = """
import sys, nets
from pathlib import Path
from nets import net_interface
net_interface.NETS_DIR = Path(sys.argv[1])
nets.__path__.append(sys.argv[1])
import train
sys.exit(train.main(sys.argv[2:]))
"""


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    """13 images in batches of 8 leave a rest of 5, shared 3 to 2; of validation's 5 each is counted once."""
    write_boxes(tmp_path, train=13, valid=5)
    changes = {"model_args": {"norm": False}, "optimizer": "sgd", "learning_rate": 0.01}
    assert run_train(write_config(tmp_path, **changes, batch_size=8)) == 0
    single = load_checkpoint(tmp_path / "weights/net_last.pth")
    config = write_config(tmp_path, **changes, batch_size=4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-c", IN_TWO, str(tmp_path / "nets"), "--config", str(config)]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "2 processes" in outputs[0][0] and outputs[0][0].count("epoch 2/2") == 1
    double = load_checkpoint(tmp_path / "weights/net_last.pth")
    start = builder.build_start_net(process_config(config), lambda text: None).state_dict()
    moved = max(float((single.net[name] - start[name]).abs().max()) for name in start)
    apart = max(float((single.net[name] - double.net[name]).abs().max()) for name in start)
    assert apart < moved / 1000
    for mine, theirs in zip(single.progress["curves"]["val"], double.progress["curves"]["val"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["map50"] == pytest.approx(theirs["map50"], abs=1e-3)
    support = [sum(row["support"] for row in end.progress["best_result"]["per_class"]) for end in (single, double)]
    assert support == [sum(len(scene(number)[1]) for number in range(100, 104))] * 2


def test_other_classes_are_refused_on_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_boxes(tmp_path, train=4, valid=2)
    assert run_train(write_config(tmp_path)) == 0
    for path in tmp_path.rglob("*.xml"):
        path.write_text(path.read_text(encoding="utf-8").replace(">blue<", ">azure<"), encoding="utf-8")
    assert run_train(write_config(tmp_path, num_epochs=3), "--resume") == 2
    assert "--resume cannot go on with other classes" in capsys.readouterr().err
    for path in tmp_path.rglob("*.xml"):  # the other order
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(">azure<", ">x<").replace(">red<", ">blue<").replace(">x<", ">red<"))
    (tmp_path / "train/classes.txt").write_text("red\nblue\n", encoding="utf-8")
    changes = {"train_mode": "update", "pretrained_path": str(tmp_path / "weights"), "pretrained_file": "net.pth"}
    assert run_train(write_config(tmp_path, **changes, save_path=str(tmp_path / "more"))) == 2
    assert "its classes are not the lists', in their order: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("augment_on=device", "augment_on moves images alone, without their boxes"),
        ("rotation_degrees=9", "rotation_degrees would make boxes larger than their objects; use quarter_turns"),
        ("class_weights=balanced", "class_weights are not in the loss of boxes; use balanced_crops"),
        ("balanced_sampling=true", "balanced_sampling draws images by their one class; use balanced_crops"),
        ("num_classes=5", "its annotations: 2 classes, but num_classes is 5: blue ("),
        ("train_data_root_dir=FOLDER", "its folder train is a split: name "),
    ],
)
def test_keys_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, sentence: str) -> None:
    config = write_config(write_boxes(tmp_path, train=6, valid=2))
    assert run_train(config, "--set", change.replace("FOLDER", str(tmp_path))) == 2
    assert sentence in capsys.readouterr().err


def test_one_class_is_for_detection_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net_interface, "NETS_DIR", OWN_NETS)
    write_boxes(tmp_path, train=4, valid=2)
    other = {"model_module_name": "linknet_module", "model_net_name": "linknet18", "num_classes": 1}
    assert run_train(write_config(tmp_path, **other)) == 2
    assert "num_classes must be at least 2: one alone is for detection" in capsys.readouterr().err


def test_bad_annotations_end_the_training_or_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_boxes(tmp_path, train=6, valid=2)
    path = tmp_path / "train/labels/01.xml"
    path.write_text(voc([("red", 30, 1, 20, 9)]), encoding="utf-8")
    (tmp_path / "train/images/02.png").write_bytes(b"")
    assert run_train(write_config(tmp_path)) == 2
    err = capsys.readouterr().err
    assert f'images/01.png: its annotation {path}: object 1 ("red"): xmin and xmax are swapped: 30 and 20' in err
    assert "images/02.png: it is empty (0 bytes)" in err and "Traceback" not in err
    lines: list[str] = []
    config = process_config(write_config(tmp_path, bad_images="skip", max_bad_share=0.4))
    samples, _, skipped = read_data(config, World(), lines.append)
    assert len(samples.samples) == 4 and len(skipped) == 2
    counts = [name for number in (0, 3, 4) for name, *_ in scene(number)[1]]
    assert samples.class_counts() == [counts.count(name) for name in NAMES]
