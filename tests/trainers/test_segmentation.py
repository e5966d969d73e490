"""Segmentation and change detection under the one loop: they learn, resume to the bit, and leave their report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from configs.loading import process_config
from configs.schema import ON_CPU_ONLY
from data_loader.mask_classes import VOID
from nets.net_interface import declared_task, net_task
from tests.helpers.breaking import dying_after_save
from tests.helpers.masks import CLASSES, mask_nets, write_config, write_scenes
from trainers import builder
from trainers.evaluation.segmentation_metrics import (
    CHANGE_IOU,
    ChangeValidation,
    SegmentationMetrics,
    SegmentationValidation,
)

VIEWS: dict[str, Any] = {
    "random_crop_scale": [0.3, 1.0],
    "vertical_flip": 0.5,
    "quarter_turns": True,
    "balanced_crops": 0.5,
    "copy_paste": 0.5,
    "translate": 0.1,
}


@pytest.fixture(autouse=True)
def tiny_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with mask_nets(tmp_path, monkeypatch):
        yield


def run_train(config: Path, *args: str) -> int:
    return train.main(["--config", str(config), *args])


def test_it_learns_and_leaves_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path)
    config = write_config(tmp_path, num_epochs=8, validation_interval=4, is_tensorboard=True, ema_decay=0.5)
    assert run_train(config) == 0
    out = capsys.readouterr().out
    assert "10 training and 5 validation images, 3 classes" in out and "train: pixels: ground " in out
    best, last = (load_checkpoint(tmp_path / f"weights/{name}.pth") for name in ("net", "net_last"))
    values = [point["mean_iou"] for point in last.progress["curves"]["val"]]
    assert best.progress["best"]["mean_iou"] == max(values) > 0.9
    assert f"best mean IoU {max(values):.2%} in epoch" in out and "pixel accuracy" in out
    metadata = best.metadata
    assert (metadata.task, metadata.output, metadata.class_names) == (
        *("segmentation", "mask_logits"),
        ("ground", "road", "water"),
    )
    assert [(found.value, found.color, found.title) for found in metadata.mask_classes] == [
        *((0, (155, 155, 155), "地面"), (3, (110, 193, 228), "道路"), (7, (0, 0, 255), "水体"))
    ]
    report = json.loads((tmp_path / "weights/report.json").read_text(encoding="utf-8"))
    assert report["task"] == "segmentation" and report["best"]["mean_iou"] == max(values)
    assert np.sum(report["confusion"]) == 5 * 24 * 24 and len(report["worst"]) == 5
    confusion = np.array(report["confusion"])
    road = confusion[1, 1] / (confusion[1].sum() + confusion[:, 1].sum() - confusion[1, 1])
    assert report["per_class"][1]["iou"] == pytest.approx(road)
    page = (tmp_path / "weights/report.html").read_text(encoding="utf-8")
    assert f"<span>Mean IoU</span><b>{max(values):.2%}</b>".replace("%", "") in page.replace(" %", "").replace("%", "")
    assert page.count('title="' + report["worst"][0]["path"]) == 2 and ">IoU</button>" in page and ">Pixels<" in page
    events = min((tmp_path / "logs").rglob("events.out.tfevents.*"), key=lambda file: int(file.suffix[1:]))
    accumulator = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    assert {"val/worst", "val/confusion_matrix", "train/pictures"} <= set(accumulator.Tags()["images"])
    assert {"val/mean_iou", "val/iou_road"} <= set(accumulator.Tags()["scalars"])


def test_change_detection_learns_what_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, has_pairs=True)
    changes = {"model_net_name": "TinyChange", "num_classes": 2, "data_aug": False, "validation_interval": 6}
    assert run_train(write_config(tmp_path, **changes, num_epochs=12)) == 0
    checkpoint = load_checkpoint(tmp_path / "weights/net.pth")
    assert checkpoint.progress["best"]["change_f1"] > 0.7
    assert "best IoU of change" in capsys.readouterr().out
    preprocess = checkpoint.metadata.preprocess
    assert (preprocess.channels, preprocess.images, len(preprocess.mean)) == (6, 2, 6)
    assert checkpoint.net["layers.0.weight"].shape == (12, 6, 3, 3)
    report = json.loads((tmp_path / "weights/report.json").read_text(encoding="utf-8"))
    assert report["rows"][0] == ["F1 of change", f"{100 * report['best']['change_f1']:.2f} %"]


def test_a_list_trains_as_its_folders_do(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=4, valid=3)
    for split, count in (("train", 4), ("valid", 3)):
        names = [f"{number:02d}.png" for number in range(count)]
        lines = [f"{split}/images/{name}----{split}/labels/{name}" for name in names]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    assert run_train(write_config(tmp_path, save_path=str(tmp_path / "folders"))) == 0
    lists = {"train_data_file": str(tmp_path / "train.txt"), "val_data_file": str(tmp_path / "valid.txt")}
    roots = {"train_data_root_dir": str(tmp_path), "val_data_root_dir": str(tmp_path)}
    assert run_train(write_config(tmp_path, **lists, **roots, save_path=str(tmp_path / "lists"))) == 0
    ends = [load_checkpoint(tmp_path / name / "net_last.pth") for name in ("folders", "lists")]
    assert weights_sha256(ends[0].net) == weights_sha256(ends[1].net)


@pytest.mark.parametrize(("has_pairs", "augment_on"), [(False, "cpu"), (True, "cpu"), (True, "device")])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, has_pairs: bool, augment_on: str) -> None:
    """To the bit, with batch norm, an average, accumulation and every view: in an epoch and at its end."""
    write_scenes(tmp_path, train=9, valid=3, has_pairs=has_pairs)
    of_pairs = {"model_net_name": "TinyChange", "num_classes": 2} if has_pairs else {}
    views = {key: value for key, value in VIEWS.items() if augment_on == "cpu" or key not in ON_CPU_ONLY}
    changes = {**views, **of_pairs, "augment_on": augment_on, "ema_decay": 0.9, "accumulation_steps": 2}
    changes |= {"num_epochs": 3, "log_interval": 1}
    assert run_train(write_config(tmp_path, **changes, save_path=str(tmp_path / "whole"))) == 0
    whole = load_checkpoint(tmp_path / "whole/net_last.pth")
    for stop_at in (1, 2):  # a step is two batches of 4 and 5, an epoch is one step
        folder = tmp_path / f"stopped_at_{stop_at}"
        config = write_config(tmp_path, **changes, batch_size=4, save_path=str(folder), save_interval_steps=1)
        with dying_after_save(stop_at, KeyboardInterrupt):
            assert run_train(config) == 130
        torch.manual_seed(99)
        assert run_train(config, "--resume") == 0
        resumed = load_checkpoint(folder / "net_last.pth")
        assert weights_sha256(whole.net) == weights_sha256(resumed.net)
        assert weights_sha256(whole.deployed()) == weights_sha256(resumed.deployed())
        assert whole.progress["curves"] == resumed.progress["curves"]


def test_the_same_bits_with_loader_processes(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=5, valid=3)
    ends = []
    for workers in (0, 2):
        folder = tmp_path / f"workers_{workers}"
        assert run_train(write_config(tmp_path, **VIEWS, dataloader_workers=workers, save_path=str(folder))) == 0
        ends.append(weights_sha256(load_checkpoint(folder / "net_last.pth").net))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("net", "usual", "other"),
    [("TinyMasks", "cross_entropy", "cross_entropy+dice"), ("TinyChange", "cross_entropy+dice", "cross_entropy")],
)
def test_the_usual_loss_is_the_tasks(tmp_path: Path, net: str, usual: str, other: str) -> None:
    write_scenes(tmp_path, train=4, valid=2, has_pairs=net == "TinyChange")
    common = {"model_net_name": net, "num_epochs": 1, "num_classes": 2 if net == "TinyChange" else 3}
    found = {}
    for loss in ("auto", usual, other):
        folder = tmp_path / loss
        assert run_train(write_config(tmp_path, **common, mask_loss=loss, save_path=str(folder))) == 0
        found[loss] = weights_sha256(load_checkpoint(folder / "net_last.pth").net)
    assert found["auto"] == found[usual] != found[other]


def test_accumulated_batches_equal_the_big_batch(tmp_path: Path) -> None:
    """Although the images have pixels of no class, each another number of them."""
    write_scenes(tmp_path, train=8, valid=2)
    for number in range(8):
        path = tmp_path / f"train/labels/{number:02d}.png"
        values = np.array(Image.open(path))
        values[: number // 2 + 1] = 99
        Image.fromarray(values).save(path)
    results = []
    for size, steps in ((8, 1), (2, 4)):
        config = write_config(
            tmp_path, model_args={"norm": False}, batch_size=size, accumulation_steps=steps, num_epochs=1,
            class_weights="balanced", mask_loss="cross_entropy+dice",
        )  # fmt: skip
        assert run_train(config) == 0
        results.append(load_checkpoint(tmp_path / "weights/net_last.pth").net)
    start = builder.build_start_net(process_config(config), lambda text: None).state_dict()
    moved = max(float((results[0][name] - start[name]).abs().max()) for name in start)
    apart = max(float((results[0][name] - results[1][name]).abs().max()) for name in start)
    assert apart < moved / 1000


def test_other_classes_are_refused_on_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, train=4, valid=2)
    assert run_train(write_config(tmp_path)) == 0
    renamed = [{**CLASSES[0], "name": "grass"}, *CLASSES[1:]]
    (tmp_path / "classes.json").write_text(json.dumps(renamed), encoding="utf-8")
    assert run_train(write_config(tmp_path, num_epochs=3), "--resume") == 2
    assert "--resume cannot go on with other classes" in capsys.readouterr().err


def test_a_nets_task_is_read_without_importing_it() -> None:
    nets = (("tiny_masks_module", "TinyMasks"), ("tiny_masks_module", "TinyChange"), ("tiny_masks_module", "tiny"))
    assert [declared_task(*net) for net in nets] == [net_task(*net) for net in nets]
    assert [declared_task(*net) for net in nets] == ["segmentation", "change_detection", "segmentation"]


def counted(predictions: np.ndarray, masks: np.ndarray, num_classes: int) -> tuple[list[float | None], float]:
    """Return each class's IoU and the share of right pixels, pixel by pixel: an independent count."""
    both, either, right, total = [0] * num_classes, [0] * num_classes, 0, 0
    for prediction, label in zip(predictions.ravel().tolist(), masks.ravel().tolist(), strict=True):
        if label == VOID:
            continue
        total, right = total + 1, right + (prediction == label)
        for k in range(num_classes):
            both[k] += prediction == k == label
            either[k] += k in (prediction, label)
    return [b / e if e else None for b, e in zip(both, either, strict=True)], right / total


@pytest.mark.parametrize("kind", [SegmentationValidation, ChangeValidation])
def test_metrics_against_an_independent_count(kind: type[SegmentationValidation]) -> None:
    """With a class that is nowhere (3), one that is only predicted (2), and an image without a known pixel."""
    generator = np.random.default_rng(1)
    predictions, masks = generator.integers(0, 3, (7, 6, 5)), generator.integers(0, 2, (7, 6, 5))
    masks[generator.uniform(size=masks.shape) < 0.2] = VOID
    masks[4] = VOID
    logits = torch.nn.functional.one_hot(torch.from_numpy(predictions), 4).permute(0, 3, 1, 2).float()
    metrics = SegmentationMetrics(4, torch.device("cpu"))
    losses = torch.arange(7.0)
    for part in (slice(0, 3), slice(3, 7)):
        indices = torch.arange(7)[part]
        metrics.update(logits[part], torch.from_numpy(masks[part].astype(np.uint8)), indices, losses[part])
    result = metrics.compute([f"{i}.png" for i in range(7)], ["a", "b", "c", "d"], kind)
    ious, accuracy = counted(predictions, masks, 4)
    assert ious[2] == 0 and ious[3] is None
    assert [row["iou"] for row in result.per_class] == pytest.approx(ious)
    scalars = result.scalars()
    assert scalars["mean_iou"] == pytest.approx(np.mean([iou for iou in ious if iou is not None]))
    assert scalars["pixel_accuracy"] == pytest.approx(accuracy) and result.loss == 3
    f1 = [None if iou is None else 2 * iou / (1 + iou) for iou in ious]  # F1 = 2 IoU / (1 + IoU)
    assert [row["f1"] for row in result.per_class] == pytest.approx(f1)
    if kind is ChangeValidation:
        assert scalars[CHANGE_IOU.key] == pytest.approx(np.mean(ious[1:3]))
        assert scalars["change_f1"] == pytest.approx(np.mean(f1[1:3]))
    assert len(result.worst) == 6 and "4.png" not in {row.path for row in result.worst}
    of_images = {
        f"{i}.png": np.mean([iou for iou in counted(predictions[i], masks[i], 4)[0] if iou is not None])
        for i in range(7)
        if i != 4
    }
    assert {row.path: row.iou for row in result.worst} == pytest.approx(of_images)
    assert result.worst[0].iou == min(of_images.values())
    assert result.best_image == max(of_images, key=lambda path: of_images[path])
    assert kind.from_dict(result.to_dict()) == result


def test_the_best_image_holds_more_than_background() -> None:
    masks = torch.zeros(4, 3, 3, dtype=torch.uint8)  # the first one is all background, and predicted without a mistake
    masks[1, 0], masks[2, :2], masks[3, :2] = 1, 1, 1
    predictions = torch.tensor([0, 1, 1, 1])[:, None, None] * masks
    predictions[1] = 0
    logits = torch.nn.functional.one_hot(predictions.long(), 2).permute(0, 3, 1, 2).float()
    for background, best in ((None, "a"), (0, "c"), (1, "a")):
        metrics = SegmentationMetrics(2, torch.device("cpu"), background=background)
        metrics.update(logits, masks, torch.arange(4), torch.zeros(4))
        assert metrics.compute(["a", "b", "c", "d"], ["x", "y"], SegmentationValidation).best_image == best


def test_a_split_without_any_known_pixel_has_no_scores() -> None:
    metrics = SegmentationMetrics(2, torch.device("cpu"))
    metrics.update(
        torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), VOID, dtype=torch.uint8), torch.zeros(1), torch.ones(1)
    )
    result = metrics.compute(["a"], ["a", "b"], ChangeValidation)
    assert set(result.scalars().values()) == {0.0} and result.worst == [] and result.loss == 1
